"""What every request passes: who may ask, what it is called, and what is told of it."""

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

from cvt.serve.config import LOCAL, ServeConfig
from cvt.serve.refusals import Refusal
from cvt.serve.watch import LOG, Figures, tell

_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
# Of every answer. Pages load from here alone, and nowhere may show them in a frame.
_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(self), microphone=(), geolocation=()",
}


class Gate:
    """ASGI middleware around `app`.

    paths: those that figures are kept of one by one. guarded: how paths begin that need the key.
    """

    def __init__(self, app: ASGIApp, config: ServeConfig, figures: Figures, *,
                 paths: Collection[str], guarded: tuple[str, ...], api_key: str | None) -> None:
        self._app, self._figures = app, figures
        self._paths, self._guarded = frozenset(paths), guarded
        self._key = None if api_key is None else api_key.encode()
        self._hosts = tuple(map(_name, config.listed("hosts"))) or (LOCAL if config.local else ())
        self._origins = config.listed("origins")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it."""
        if scope["type"] != "http":  # the beginning and the end of the server
            await self._app(scope, receive, send)
            return
        start = time.perf_counter()
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        scope["state"]["id"] = request_id = given if _ID.fullmatch(given) else uuid.uuid4().hex
        status = 0  # none yet

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                told = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    told.setdefault(name, value)
                told["x-request-id"] = request_id
            await send(message)

        try:
            self._check(scope, headers)
        except Refusal as refusal:
            await JSONResponse(refusal.body(request_id), refusal.status, refusal.headers)(
                scope, receive, sending)
        else:
            try:
                await self._app(scope, receive, sending)
            except Exception:
                if status != 500:  # else it is answered and in the log
                    raise
        finally:
            status = scope["state"].get("status", status)
            seconds = time.perf_counter() - start
            path = scope["path"] if scope["path"] in self._paths else "other"
            self._figures.requests.labels(path, status).inc()
            self._figures.seconds.labels(path).observe(seconds)
            if LOG.isEnabledFor(logging.INFO):
                tell("request", id=request_id, client=(scope["client"] or ("",))[0],
                     method=scope["method"], path=scope["path"], status=status,
                     seconds=round(seconds, 4), **scope["state"].get("told", {}))

    def _check(self, scope: Scope, headers: Headers) -> None:
        host = headers.get("host", "")
        if self._hosts and _name(host) not in self._hosts:
            # Else a page of another site, whose name was made to lead here, could ask and read.
            raise Refusal("wrong_host", f"this server does not go by the name {host!r}; its names "
                          "are set by --hosts")
        origin = headers.get("origin")
        if origin is not None and origin not in self._origins and (
                urlsplit(origin).netloc != host):
            raise Refusal("foreign_origin", f"pages of {origin!r} may not ask here; --origins "
                          "would let them")
        if self._key is not None and scope["path"].startswith(self._guarded):
            scheme, _, token = headers.get("authorization", "").partition(" ")
            key = token if scheme.lower() == "bearer" else headers.get("x-api-key", "")
            # In a time that does not depend on how much of it is right.
            if scope["method"] != "OPTIONS" and not hmac.compare_digest(
                    key.strip().encode(), self._key):
                raise Refusal("no_key", "this needs the API key, as Authorization: Bearer KEY or "
                              "X-API-Key: KEY")


def _name(host: str) -> str:
    """The name in a Host header, without its port; names have no case."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower()
