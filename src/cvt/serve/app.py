"""The HTTP API: routes, error responses, and the state of the server behind them."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp

from cvt.data.classes import find_class
from cvt.data.images import read_image
from cvt.data.preprocess import prepare
from cvt.predict.predictor import Predictor, top_classes
from cvt.serve.batcher import Batcher, Input, Logits
from cvt.serve.body import FORM, MemoryBudget, RequestBody, Upload
from cvt.serve.config import ServeConfig, split_list
from cvt.serve.errors import ERROR_CODES, RequestError
from cvt.serve.middleware import RequestMiddleware
from cvt.serve.page import PAGE, read_samples
from cvt.serve.schemas import (
    ClassifyResponse,
    ClassProbability,
    Error,
    ErrorResponse,
    ExplainResponse,
    HealthResponse,
    ModelResponse,
    Prediction,
)
from cvt.serve.telemetry import Metrics, log_event
from cvt.system.errors import InputError
from cvt.system.machine import available_cores

_VERSION = version("cvt-torch")

Explainer = Callable[[bytes, str | None], ExplainResponse]

_PROTECTED = ("/v1/", "/metrics")
_MAX_EXPLANATIONS = 4  # in flight: each takes as long as tens of images
_LIMITS = ("max_request_bytes", "max_images", "max_pixels", "max_queue_size", "queue_timeout",
           "read_timeout")
_BODY_ERRORS = ("bad_request", "unauthorized", "request_timeout", "request_too_large",
                "too_many_images", "unsupported_media_type", "unreadable_image", "invalid_request",
                "overloaded")


class Server:
    """A model and the state of its server."""

    def __init__(self, predictor: Predictor, config: ServeConfig, *, name: str,
                 explainer: Explainer | None, samples: Path | None, api_key: str | None) -> None:
        self.predictor, self.config, self.name = predictor, config, name
        self.explainer = explainer
        self.samples = [] if samples is None else read_samples(samples)
        self.api_key = api_key
        self.metrics = Metrics()
        self.memory = MemoryBudget(config.max_buffered_bytes)
        self.shutting_down = False
        """Whether SIGTERM has arrived."""
        self.batcher: Batcher
        self._explanations = 0
        self._explain_pool = ThreadPoolExecutor(1, "cvt-explain")

    @contextlib.asynccontextmanager
    async def lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        """Warm up, and run the batcher until the server stops."""
        card, max_batch_size = self.predictor.card, self.config.max_batch_size
        size = card.preprocess.size
        for images in sorted({*range(1, min(4, max_batch_size) + 1), max_batch_size}):
            for _twice in range(2):  # a runtime compiles for a shape when it sees it again
                await asyncio.to_thread(self.predictor.logits, np.zeros(
                    (images, card.model.in_chans, size, size), np.float32))
        async with Batcher(self._prepare, self.predictor.logits, self.config,
                           threads=available_cores(),
                           on_batch=self.metrics.batch_size.observe) as self.batcher:
            self.metrics.images_in_flight.set_function(lambda: self.batcher.in_flight)
            self.metrics.buffered_bytes.set_function(lambda: self.memory.used)
            yield
        self._explain_pool.shutdown(wait=True)

    def _prepare(self, data: bytes) -> Input:
        return prepare(self.predictor.card.preprocess,
                       read_image(data, "the file", max_pixels=self.config.max_pixels))

    async def classify(self, uploads: list[Upload], top_k: int) -> list[Prediction]:
        """The most probable classes of each image, or its error."""
        results = await self.batcher.logits([bytes(upload.data) for upload in uploads])
        return [self._prediction(upload, result, top_k)
                for upload, result in zip(uploads, results, strict=True)]

    def _prediction(self, upload: Upload, result: Logits | Exception, top_k: int) -> Prediction:
        if isinstance(result, InputError):
            self.metrics.images.labels("unreadable").inc()
            return Prediction(name=upload.name,
                              error=Error(code="unreadable_image", message=str(result)))
        if isinstance(result, Exception):
            raise result
        self.metrics.images.labels("classified").inc()
        if not np.isfinite(result).all():
            raise FloatingPointError("the network's logits are not finite numbers in "
                                     f"{self.predictor.precision}")
        return Prediction(name=upload.name, classes=[
            ClassProbability(index=i, name=self.predictor.card.classes[i], probability=probability)
            for i, probability in top_classes(result, top_k)])

    def check_explainable(self, target: str | None) -> Explainer:
        """The explainer. Raises RequestError if there is none, if it is overloaded, and for an
        unknown target class."""
        if self.explainer is None:
            raise RequestError("not_explainable", f"{self.name} is an exported model, which has no "
                               "attention to show; serve the model that it was exported from")
        if target is not None:
            try:
                find_class(target, self.predictor.card.classes)
            except InputError as error:
                raise RequestError("invalid_request", str(error)) from None
        if self._explanations >= _MAX_EXPLANATIONS:
            raise RequestError("overloaded", "the server is overloaded: it computes other "
                               "explanations; try again later", retry_after=1)
        return self.explainer

    async def explain(self, upload: Upload, target: str | None) -> ExplainResponse:
        """What the network attends to in an image."""
        explainer = self.check_explainable(target)
        self._explanations += 1
        try:
            result = await asyncio.get_running_loop().run_in_executor(
                self._explain_pool, explainer, bytes(upload.data), target)
        except InputError as error:
            self.metrics.images.labels("unreadable").inc()
            raise RequestError("unreadable_image", str(error)) from None
        finally:
            self._explanations -= 1
        self.metrics.images.labels("explained").inc()
        return result

    def model(self) -> ModelResponse:
        """The model and the limits of the server."""
        card = self.predictor.card
        return ModelResponse(
            name=self.name, classes=list(card.classes), image_size=card.preprocess.size,
            preprocess=asdict(card.preprocess), backend=self.predictor.backend,
            precision=self.predictor.precision, explainable=self.explainer is not None,
            limits={name: getattr(self.config, name) for name in _LIMITS},
            samples=[name for name, _, _ in self.samples], version=_VERSION)


def create_app(server: Server) -> ASGIApp:
    """The ASGI application of `server`, for uvicorn or another ASGI server."""
    api = FastAPI(
        title="CvT", version=_VERSION, lifespan=server.lifespan, docs_url=None, redoc_url=None,
        description="Image classification with a Convolutional vision Transformer. Every response "
        "has an X-Request-Id; every error is "
        "{\"error\": {\"code\", \"message\", \"request_id\"}}.")
    _add_error_handlers(api)
    _add_api(api, server)
    _add_page(api, server)
    paths = [route.path for route in api.routes]  # type: ignore[attr-defined]
    app: ASGIApp = api
    if origins := split_list(server.config.allowed_origins):
        app = CORSMiddleware(
            app, allow_origins=origins, allow_methods=["GET", "POST"],
            allow_headers=["authorization", "content-type", "x-api-key", "x-request-id"],
            expose_headers=["x-request-id"])
    return RequestMiddleware(app, server.config, server.metrics, paths=paths,
                             protected=_PROTECTED, api_key=server.api_key)


def _add_api(api: FastAPI, server: Server) -> None:
    binary = {"type": "string", "format": "binary"}
    body = {"requestBody": {"required": True, "content": {
        **{kind: {"schema": binary}
           for kind in ("application/octet-stream", "image/jpeg", "image/png")},
        FORM: {"schema": {"type": "object", "properties": {
            "images": {"type": "array", "items": binary}}}}}}}
    num_classes = len(server.predictor.card.classes)
    top_k_query = Query(min(5, num_classes), ge=1, le=num_classes, description="Number of classes "
                        "to return, most probable first.")
    target_query = Query(None, description="The class that Grad-CAM explains; by default the most "
                         "probable.")

    @contextlib.asynccontextmanager
    async def uploads_of(request: Request) -> AsyncIterator[list[Upload]]:
        with RequestBody(request, server.config, server.memory) as body:
            uploads = await body.uploads()
            request.state.log_fields = {"bytes": body.size, "images": len(uploads)}
            yield uploads

    @api.post("/v1/classify", openapi_extra=body, response_model=ClassifyResponse,
              responses=_error_responses(*_BODY_ERRORS, "queue_timeout"))
    async def classify(request: Request, top_k: int = top_k_query) -> Response:
        """Classify one image (its bytes) or several (files of a form).

        An unreadable image among several has an error in its place; a single one returns 422.
        """
        server.batcher.check_capacity()  # before the body is read
        start = time.perf_counter()
        async with uploads_of(request) as uploads:
            predictions = await server.classify(uploads, top_k)
        if len(predictions) == 1 and (error := predictions[0].error):
            raise RequestError(error.code, error.message)
        return _json(ClassifyResponse(model=server.name, predictions=predictions,
                                      duration_seconds=round(time.perf_counter() - start, 6)))

    @api.post("/v1/explain", openapi_extra=body, response_model=ExplainResponse,
              responses=_error_responses(*_BODY_ERRORS, "not_explainable"))
    async def explain(request: Request, target: str | None = target_query) -> Response:
        """Explain one image: attention, attention rollout, Grad-CAM and tokens."""
        server.check_explainable(target)  # before the body is read
        async with uploads_of(request) as uploads:
            if len(uploads) > 1:
                raise RequestError("too_many_images", "only one image is explained at a time")
            return _json(await server.explain(uploads[0], target))

    @api.get("/v1/model", response_model=ModelResponse, responses=_error_responses("unauthorized"))
    async def model() -> Response:
        """The model and the limits of the server."""
        return _json(server.model())

    @api.get("/healthz")
    async def healthz() -> HealthResponse:
        """Liveness: the process responds."""
        return HealthResponse(status="ok")

    @api.get("/readyz", responses=_error_responses("shutting_down"))
    async def readyz() -> HealthResponse:
        """Readiness: the server accepts requests; 503 once it is shutting down."""
        if server.shutting_down:
            raise RequestError("shutting_down", "the server is shutting down", retry_after=1)
        return HealthResponse(status="ok")

    @api.get("/metrics", response_class=Response, responses={
        **_error_responses("unauthorized"), 200: {"content": {"text/plain": {}}}})
    async def metrics() -> Response:
        """Metrics in the Prometheus text format."""
        return Response(server.metrics.text(), media_type="text/plain; version=0.0.4")


def _add_page(api: FastAPI, server: Server) -> None:
    for path, (content, media_type) in PAGE.items():
        api.add_api_route(path, functools.partial(_static, content, media_type),
                          include_in_schema=False, response_class=Response)

    @api.get("/samples/{number}", include_in_schema=False)
    async def sample(number: int) -> Response:
        if not 0 <= number < len(server.samples):
            raise HTTPException(404)
        _, content, media_type = server.samples[number]
        return await _static(content, media_type)


async def _static(content: bytes, media_type: str) -> Response:
    return Response(content, media_type=media_type, headers={"cache-control": "no-cache"})


def _add_error_handlers(api: FastAPI) -> None:
    async def request_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestError)
        return JSONResponse(error.body(request.state.request_id), error.status, error.headers)

    async def validation_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"][1:]))
        return await request_error(request, RequestError("invalid_request",
                                                         f"{where}: {first['msg']}"))

    async def http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        code, message = {
            404: ("not_found", "there is nothing at this path"),
            405: ("method_not_allowed", f"this path does not support {request.method}"),
        }.get(error.status_code, ("bad_request", error.detail))
        response = RequestError(code, message)
        response.headers.update(error.headers or {})
        return await request_error(request, response)

    async def disconnected(_: Request, __: Exception) -> Response:
        return Response(status_code=499)  # nobody reads it; it is for the log

    async def internal_error(request: Request, error: Exception) -> Response:
        log_event("internal_error", logging.ERROR, error, request_id=request.state.request_id)
        return await request_error(request, RequestError(
            "internal_error", "the server failed on this request; find the reason in its log by "
            "the request's id"))

    for kind, handler in (
            (RequestError, request_error), (RequestValidationError, validation_error),
            (HTTPException, http_error), (ClientDisconnect, disconnected),
            (Exception, internal_error)):
        api.add_exception_handler(kind, handler)


def _error_responses(*codes: str) -> dict[int | str, dict[str, Any]]:
    """The error responses of a route, for the OpenAPI document."""
    responses: dict[int | str, dict[str, Any]] = {}
    for code in codes:
        status, meaning = ERROR_CODES[code]
        response = responses.setdefault(status, {"model": ErrorResponse, "description": ""})
        separator = "; " if response["description"] else ""
        response["description"] += f"{separator}`{code}`: {meaning}"
    return responses


def _json(response: BaseModel) -> Response:
    return Response(response.model_dump_json(exclude_none=True), media_type="application/json")
