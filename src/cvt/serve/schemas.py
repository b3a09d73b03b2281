"""JSON schemas of all responses."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, Field

from cvt.system.text import utf8

# A name of a class, model or file, whose bytes need not be UTF-8.
Name = Annotated[str, BeforeValidator(utf8)]


class ClassProbability(BaseModel):
    """A class and its probability."""

    index: int = Field(description="Index of the logit, from 0.")
    name: Name
    probability: float = Field(description="In [0, 1]; all classes sum to 1.")


class Error(BaseModel):
    """Why a request or an image failed."""

    code: str = Field(description="For programs.")
    message: Name = Field(description="For people.")
    request_id: str | None = None


class ErrorResponse(BaseModel):
    """Every response but 200."""

    error: Error


class Prediction(BaseModel):
    """Prediction for one image."""

    name: Name | None = Field(default=None, description="File name in the form, as sent.")
    classes: list[ClassProbability] | None = Field(default=None, description="Most probable first.")
    error: Error | None = Field(default=None, description="Why the image could not be read.")


class ClassifyResponse(BaseModel):
    """Predictions for the images of a request, in order."""

    model: Name
    predictions: list[Prediction]
    duration_seconds: float = Field(description="From the request's headers to the response.")


class ExplainResponse(BaseModel):
    """What the network attends to in an image. Maps are lists of rows, from top to bottom."""

    model: Name
    classes: list[ClassProbability] = Field(description="All classes, most probable first.")
    target: Name = Field(description="The class that Grad-CAM explains.")
    input: str = Field(description="The preprocessed image, a PNG as a data: URL.")
    attention: list[list[list[list[float]]]] = Field(
        description="Attention of the class token: for each block of the last stage and each head, "
        "a map over the keys.")
    rollout: list[list[float]] | None = Field(default=None, description="Attention rollout.")
    grad_cam: dict[str, list[list[float]]] = Field(description="By stage, from 1.")
    tokens: list[str] = Field(description="First three principal components of every stage's "
                              "tokens, a PNG as a data: URL.")
    duration_seconds: float


class ModelResponse(BaseModel):
    """The model and the limits of the server."""

    name: Name
    classes: list[Name]
    image_size: int
    preprocess: dict[str, Any]
    backend: str
    precision: str
    explainable: bool
    limits: dict[str, float]
    samples: list[Name] = Field(description="Names of the sample images at /samples/N, from 0.")
    version: str


class HealthResponse(BaseModel):
    """The state of the server."""

    status: str
