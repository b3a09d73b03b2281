"""Middleware for every request: access checks, request id, security headers, metrics and log."""

from __future__ import annotations

import hmac
import logging
import re
import time
import uuid
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cvt.serve.config import LOCAL, ServeConfig, split_list
from cvt.serve.errors import RequestError
from cvt.serve.telemetry import LOG, Metrics, log_event

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
# For every response: pages load only from this server, and no site may show them in a frame.
_SECURITY_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(self), microphone=(), geolocation=()",
}


class RequestMiddleware:
    """ASGI middleware around `app`.

    paths: those with metrics of their own. protected: prefixes of the paths that need the API key.
    """

    def __init__(self, app: ASGIApp, config: ServeConfig, metrics: Metrics, *,
                 paths: Collection[str], protected: tuple[str, ...], api_key: str | None) -> None:
        self._app, self._metrics = app, metrics
        self._paths, self._protected = frozenset(paths), protected
        self._key = None if api_key is None else api_key.encode()
        self._hosts = tuple(map(_hostname, split_list(config.allowed_hosts))) or (
            LOCAL if config.local else ())
        self._origins = split_list(config.allowed_origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or reject it."""
        if scope["type"] != "http":  # lifespan
            await self._app(scope, receive, send)
            return
        start = time.perf_counter()
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        scope["state"]["request_id"] = request_id
        status = 0  # none yet

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                response_headers = MutableHeaders(scope=message)
                for name, value in _SECURITY_HEADERS.items():
                    response_headers.setdefault(name, value)
                response_headers["x-request-id"] = request_id
            await send(message)

        try:
            self._check_access(scope, headers)
        except RequestError as error:
            await JSONResponse(error.body(request_id), error.status, error.headers)(
                scope, receive, send_with_headers)
        else:
            try:
                await self._app(scope, receive, send_with_headers)
            except Exception:
                if status != 500:  # else the response is sent and the error is logged
                    raise
        finally:
            status = scope["state"].get("status", status)
            seconds = time.perf_counter() - start
            path = scope["path"] if scope["path"] in self._paths else "other"
            self._metrics.requests.labels(path, status).inc()
            self._metrics.duration.labels(path).observe(seconds)
            if LOG.isEnabledFor(logging.INFO):
                log_event("request", request_id=request_id, client=(scope["client"] or ("",))[0],
                          method=scope["method"], path=scope["path"], status=status,
                          duration_seconds=round(seconds, 4),
                          **scope["state"].get("log_fields", {}))

    def _check_access(self, scope: Scope, headers: Headers) -> None:
        host = headers.get("host", "")
        if self._hosts and _hostname(host) not in self._hosts:
            # Against DNS rebinding: a page of another site whose name leads here could read it all.
            raise RequestError("host_not_allowed", f"the host {host!r} is not allowed; set "
                               "--allowed_hosts")
        origin = headers.get("origin")
        if origin is not None and origin not in self._origins and (
                urlsplit(origin).netloc != host):
            raise RequestError("origin_not_allowed", f"the origin {origin!r} is not allowed; set "
                               "--allowed_origins")
        if self._key is not None and scope["path"].startswith(self._protected):
            scheme, _, token = headers.get("authorization", "").partition(" ")
            key = token if scheme.lower() == "bearer" else headers.get("x-api-key", "")
            # In constant time, so that the time says nothing about the key.
            if scope["method"] != "OPTIONS" and not hmac.compare_digest(
                    key.strip().encode(), self._key):
                raise RequestError("unauthorized", "the API key is required, as Authorization: "
                                   "Bearer KEY or X-API-Key: KEY")


def _hostname(host: str) -> str:
    """The name in a Host header in lower case, without the port."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower()
