"""The JSON of every answer."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field


class Scored(BaseModel):
    """A class and how likely it is."""

    index: int = Field(description="Which logit, counted from 0.")
    name: str
    probability: float = Field(description="In [0, 1]; all classes' sum to 1.")


class Error(BaseModel):
    """Why there is no answer."""

    code: str = Field(description="For programs.")
    message: str = Field(description="For people.")
    request_id: str | None = None


class ErrorBody(BaseModel):
    """Every answer but 200."""

    error: Error


class Prediction(BaseModel):
    """What the model says of one image."""

    name: str | None = Field(default=None, description="The file's name in the form, as given.")
    classes: list[Scored] | None = Field(default=None, description="The likeliest first.")
    error: Error | None = Field(default=None, description="Why it could not be read.")


class Classified(BaseModel):
    """The images of a request, in their order."""

    model: str
    predictions: list[Prediction]
    seconds: float = Field(description="From the request's head to the answer.")


class Explained(BaseModel):
    """Where the network looks in an image. Maps are rows of values, from the top down."""

    model: str
    classes: list[Scored] = Field(description="All of them, the likeliest first.")
    target: str = Field(description="The class that Grad-CAM is of.")
    input: str = Field(description="The image as the network sees it, a PNG as a data: URL.")
    attention: list[list[list[list[float]]]] = Field(
        description="Of the class token: by block of the last stage, by head, a map of the keys.")
    rollout: list[list[float]] | None = Field(default=None, description="Attention rollout.")
    grad_cam: dict[str, list[list[float]]] = Field(description="By stage, counted from 1.")
    tokens: list[str] = Field(description="Every stage's tokens in their first three principal "
                              "components, a PNG as a data: URL.")
    seconds: float


class Model(BaseModel):
    """What is served."""

    name: str
    classes: list[str]
    image_size: int
    preprocess: dict[str, Any]
    backend: str
    precision: str
    explainable: bool
    limits: dict[str, float]
    samples: list[str] = Field(description="Names of the page's images to try, by number.")
    version: str


class Health(BaseModel):
    """That the server is well."""

    status: str
