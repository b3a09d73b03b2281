"""The addresses of the server and what they answer."""

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
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp

from cvt.data.images import read_image
from cvt.data.prepare import prepare
from cvt.predict.predictor import Predictor, ranked
from cvt.serve.batcher import Batcher, Input, Logits
from cvt.serve.body import FORM, Body, Memory, Upload
from cvt.serve.config import ServeConfig
from cvt.serve.gate import Gate
from cvt.serve.page import PAGE, Samples
from cvt.serve.refusals import CODES, Refusal
from cvt.serve.schemas import (
    Classified,
    Error,
    ErrorBody,
    Explained,
    Health,
    Model,
    Prediction,
    Scored,
)
from cvt.serve.watch import Figures, tell
from cvt.system.errors import InputError, did_you_mean
from cvt.system.machine import available_cores

_VERSION = version("cvt-torch")

Explainer = Callable[[bytes, str | None], Explained]

_GUARDED = ("/v1/", "/metrics")
_EXPLANATIONS = 4  # in hand at once: each takes as long as tens of images


class Server:
    """A model's state while it is served."""

    def __init__(self, predictor: Predictor, config: ServeConfig, *, name: str,
                 explainer: Explainer | None, samples: Path | None, api_key: str | None) -> None:
        self.predictor, self.config, self.name = predictor, config, name
        self.explainer, self.samples = explainer, Samples(samples)
        self.api_key = api_key
        self.figures = Figures()
        self.memory = Memory(config.max_bodies)
        self.draining = False
        """Whether SIGTERM has come."""
        self.batcher: Batcher
        self._explaining = 0
        self._one = ThreadPoolExecutor(1, "cvt-explain")

    @contextlib.asynccontextmanager
    async def life(self, _: FastAPI) -> AsyncIterator[None]:
        """Warm up, and have a batcher until the end."""
        card = self.predictor.card
        size = card.preprocess.size
        most = self.config.max_batch
        for images in sorted({*range(1, min(4, most) + 1), most}):
            for _twice in range(2):  # a runtime compiles for a shape when it comes again
                await asyncio.to_thread(self.predictor.logits, np.zeros(
                    (images, card.model.in_chans, size, size), np.float32))
        async with Batcher(self._prepare, self._logits, self.config,
                           readers=available_cores(),
                           batches=self.figures.batches.observe) as self.batcher:
            self.figures.inside.set_function(lambda: self.batcher.inside)
            self.figures.bytes.set_function(lambda: self.memory.held)
            yield
        self._one.shutdown(wait=True)

    def _prepare(self, data: bytes) -> Input:
        return prepare(self.predictor.card.preprocess,
                       read_image(data, "the file", max_pixels=self.config.max_pixels))

    def _logits(self, batch: Input) -> Logits:
        return self.predictor.logits(batch)

    async def classify(self, uploads: list[Upload], top_k: int) -> list[Prediction]:
        """Of each image its classes, or its error."""
        found = await self.batcher.logits([bytes(upload.data) for upload in uploads])
        return [self._prediction(upload, answer, top_k)
                for upload, answer in zip(uploads, found, strict=True)]

    def _prediction(self, upload: Upload, answer: Logits | Exception, top_k: int) -> Prediction:
        if isinstance(answer, InputError):
            self.figures.images.labels("unreadable").inc()
            return Prediction(name=upload.name, error=Error(code="unreadable", message=str(answer)))
        if isinstance(answer, Exception):
            raise answer
        self.figures.images.labels("classified").inc()
        return Prediction(name=upload.name, classes=self._scored(answer, top_k))

    def _scored(self, logits: Logits, top_k: int) -> list[Scored]:
        if not np.isfinite(logits).all():
            raise FloatingPointError("the network's logits are not finite numbers in "
                                     f"{self.predictor.precision}")
        return [Scored(index=i, name=self.predictor.card.classes[i], probability=probability)
                for i, probability in ranked(logits, top_k)]

    def check_explainable(self, target: str | None) -> Explainer:
        """What explains. Raises Refusal where nothing does, or not now, or not that class."""
        if self.explainer is None:
            raise Refusal("not_explainable", f"{self.name} is an exported graph, which has no "
                          "attention left to show; serve the model that it was exported from")
        classes = self.predictor.card.classes
        if target is not None and target not in classes:
            raise Refusal("invalid", f"there is no class {target!r}; "
                          f"{did_you_mean(target, classes)}")
        if self._explaining >= _EXPLANATIONS:
            raise Refusal("busy", "as many explanations are in hand as may be; ask again",
                          retry_after=1)
        return self.explainer

    async def explain(self, upload: Upload, target: str | None) -> Explained:
        """What the model looks at in an image."""
        explainer = self.check_explainable(target)
        self._explaining += 1
        try:
            found = await asyncio.get_running_loop().run_in_executor(
                self._one, explainer, bytes(upload.data), target)
        except InputError as error:
            self.figures.images.labels("unreadable").inc()
            raise Refusal("unreadable", str(error)) from None
        finally:
            self._explaining -= 1
        self.figures.images.labels("explained").inc()
        return found

    def model(self) -> Model:
        """What is served."""
        card = self.predictor.card
        limits = asdict(self.config)
        return Model(
            name=self.name, classes=list(card.classes), image_size=card.preprocess.size,
            preprocess=asdict(card.preprocess), backend=self.predictor.backend,
            precision=self.predictor.precision, explainable=self.explainer is not None,
            limits={name: limits[name] for name in (
                "max_body", "max_images", "max_pixels", "max_queue", "deadline",
                "read_timeout")},
            samples=self.samples.names, version=_VERSION)


def create_app(server: Server) -> ASGIApp:
    """The application of `server`, for uvicorn or another ASGI server."""
    api = FastAPI(
        title="CvT", version=_VERSION, lifespan=server.life, docs_url=None, redoc_url=None,
        description="Classification with a Convolutional vision Transformer. Every answer has an "
        "X-Request-Id; every error is {\"error\": {\"code\", \"message\", \"request_id\"}}.")
    _add_answers_to_errors(api)
    _add_api(api, server)
    _add_page(api, server)
    paths = [route.path for route in api.routes]  # type: ignore[attr-defined]
    app: ASGIApp = api
    if origins := server.config.listed("origins"):
        app = CORSMiddleware(
            app, allow_origins=origins, allow_methods=["GET", "POST"],
            allow_headers=["authorization", "content-type", "x-api-key", "x-request-id"],
            expose_headers=["x-request-id"])
    return Gate(app, server.config, server.figures, paths=paths, guarded=_GUARDED,
                api_key=server.api_key)


def _add_api(api: FastAPI, server: Server) -> None:
    body = {"requestBody": {"required": True, "content": {
        "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        "image/jpeg": {"schema": {"type": "string", "format": "binary"}},
        "image/png": {"schema": {"type": "string", "format": "binary"}},
        FORM: {"schema": {"type": "object", "properties": {"images": {
            "type": "array", "items": {"type": "string", "format": "binary"}}}}}}}}
    most = len(server.predictor.card.classes)
    how_many = Query(min(5, most), ge=1, le=most, description="How many classes to name, the "
                     "likeliest first.")
    which = Query(None, description="The class that Grad-CAM is of; by default the likeliest.")

    async def uploads_of(request: Request, held: Body) -> list[Upload]:
        uploads = await held.uploads()
        request.state.told = {"bytes": held.size, "images": len(uploads)}
        return uploads

    @api.post("/v1/classify", openapi_extra=body, response_model=Classified,
              responses=_errors("bad_request", "no_key", "slow", "too_large", "too_many",
                                "wrong_type", "unreadable", "invalid", "busy", "late"))
    async def classify(request: Request, top_k: int = how_many) -> Response:
        """Classify one image (its bytes) or several (files of a form).

        With several, one that cannot be read has an error in its place; one alone answers 422.
        """
        server.batcher.check_room()  # before its body is read
        start = time.perf_counter()
        with Body(request, server.config, server.memory) as held:
            uploads = await uploads_of(request, held)
            predictions = await server.classify(uploads, top_k)
        if len(predictions) == 1 and (error := predictions[0].error):
            raise Refusal("unreadable", error.message)
        return _json(Classified(model=server.name, predictions=predictions,
                                seconds=round(time.perf_counter() - start, 6)))

    @api.post("/v1/explain", openapi_extra=body, response_model=Explained,
              responses=_errors("bad_request", "no_key", "slow", "too_large", "too_many",
                                "wrong_type", "unreadable", "invalid", "busy", "not_explainable"))
    async def explain(request: Request, target: str | None = which) -> Response:
        """Where the network looks in one image."""
        server.check_explainable(target)  # before its body is read
        with Body(request, server.config, server.memory) as held:
            uploads = await uploads_of(request, held)
            if len(uploads) > 1:
                raise Refusal("too_many", "one image is explained at a time")
            return _json(await server.explain(uploads[0], target))

    @api.get("/v1/model", response_model=Model, responses=_errors("no_key"))
    async def model() -> Response:
        """What is served, and its limits."""
        return _json(server.model())

    @api.get("/healthz")
    async def healthz() -> Health:
        """That the process answers."""
        return Health(status="ok")

    @api.get("/readyz", responses=_errors("draining"))
    async def readyz() -> Health:
        """That it takes requests: 503 once it is about to end."""
        if server.draining:
            raise Refusal("draining", "this server is about to end", retry_after=1)
        return Health(status="ok")

    @api.get("/metrics", response_class=Response, responses={
        **_errors("no_key"), 200: {"content": {"text/plain": {}}}})
    async def metrics() -> Response:
        """Figures for Prometheus."""
        return Response(server.figures.text(), media_type="text/plain; version=0.0.4")


def _add_page(api: FastAPI, server: Server) -> None:
    for path, (content, kind) in PAGE.items():
        api.add_api_route(path, functools.partial(_static, content, kind), include_in_schema=False,
                          response_class=Response)

    @api.get("/samples/{number}", include_in_schema=False)
    async def sample(number: int) -> Response:
        if not 0 <= number < len(server.samples.files):
            raise HTTPException(404)
        return await _static(*server.samples.files[number])


async def _static(content: bytes, kind: str) -> Response:
    return Response(content, media_type=kind, headers={"cache-control": "no-cache"})


def _add_answers_to_errors(api: FastAPI) -> None:
    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, Refusal)
        return JSONResponse(error.body(request.state.id), error.status, error.headers)

    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"][1:]))
        return await refused(request, Refusal("invalid", f"{where}: {first['msg']}"))

    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        code, message = {
            404: ("not_found", "there is nothing at this address"),
            405: ("wrong_method", f"{request.method} is not meant for this address"),
        }.get(error.status_code, ("bad_request", error.detail))
        refusal = Refusal(code, message)
        refusal.headers.update(error.headers or {})
        return await refused(request, refusal)

    async def left(_: Request, __: Exception) -> Response:
        return Response(status_code=499)  # to nobody

    async def failed(request: Request, error: Exception) -> Response:
        tell("failed", logging.ERROR, error, id=request.state.id)
        return await refused(request, Refusal("failed", "the server failed at this; its log tells "
                                              "why, by the request's id"))

    for kind, handler in ((Refusal, refused), (RequestValidationError, invalid),
                          (HTTPException, http), (ClientDisconnect, left), (Exception, failed)):
        api.add_exception_handler(kind, handler)


def _errors(*codes: str) -> dict[int | str, dict[str, Any]]:
    """What a route may answer beside 200, for its documentation."""
    found: dict[int | str, dict[str, Any]] = {}
    for code in codes:
        status, meaning = CODES[code]
        told = [found[status]["description"]] if status in found else []
        found[status] = {"model": ErrorBody,
                         "description": "; ".join([*told, f"`{code}`: {meaning}"])}
    return found


def _json(answer: Classified | Explained | Model) -> Response:
    return Response(answer.model_dump_json(exclude_none=True), media_type="application/json")
