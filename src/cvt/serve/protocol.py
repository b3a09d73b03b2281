"""Limits that uvicorn lacks: time to read a request, number of connections, unread bodies."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from cvt.serve.config import ServeConfig
from cvt.serve.errors import RequestError
from cvt.serve.telemetry import Metrics

_LINGER = 1.0  # seconds that a rejected client has to stop sending


def limited_protocol(config: ServeConfig, metrics: Metrics) -> type[H11Protocol]:
    """uvicorn's HTTP/1.1 protocol with the limits of `config`."""

    class LimitedProtocol(H11Protocol):
        """One connection."""

        _timer: asyncio.TimerHandle | None = None
        _rejected = False

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)  # type: ignore[arg-type]
            if len(self.connections) > config.max_connections:
                metrics.requests.labels("other", 503).inc()
                self._reject(RequestError("too_many_connections", "the server has too many open "
                                          "connections; try again later", retry_after=1))
            else:
                self._start_timer()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_timer()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            if self._rejected or self.transport.is_closing():
                return
            if self._timer is None and self.conn.their_state is h11.IDLE:
                self._start_timer()  # the first byte of the connection's next request
            super().data_received(data)
            if not self._receiving():
                self._stop_timer()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            # A request pipelined behind it has a timeout of its own.
            if self._timer is None and self._receiving():
                self._start_timer()

        def send_400_response(self, msg: str) -> None:
            metrics.requests.labels("other", 400).inc()
            self._reject(RequestError("bad_request", msg))

        def _receiving(self) -> bool:
            """Whether a request has arrived in part."""
            state = self.conn.their_state
            begun = state is h11.IDLE and bool(self.conn.trailing_data[0])
            return begun or state is h11.SEND_BODY

        def _start_timer(self) -> None:
            self._timer = self.loop.call_later(config.read_timeout, self._on_timeout)

        def _stop_timer(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

        def _on_timeout(self) -> None:
            cycle: Any = self.cycle
            body = self.conn.their_state is h11.SEND_BODY
            if not self._receiving() or (body and cycle.response_started):
                self.transport.close()
                return
            if body:  # the application waits for the rest, and will log the request
                cycle.scope["state"]["status"] = 408
                cycle.disconnected = True
                cycle.message_event.set()
            else:
                metrics.requests.labels("other", 408).inc()
            self._reject(RequestError("request_timeout", "the request did not arrive within "
                                      f"{config.read_timeout:g} s"))

        def _reject(self, error: RequestError) -> None:
            """Respond without the application, and close the connection."""
            body = json.dumps(error.body(None)).encode()
            headers = [("content-type", "application/json"), ("content-length", str(len(body))),
                       ("connection", "close"), *error.headers.items()]
            # Not through h11, whose state a malformed request may have broken.
            head = f"HTTP/1.1 {error.status} {error.code}\r\n" + "".join(
                f"{name}: {value}\r\n" for name, value in headers)
            self.transport.write(head.encode("ascii") + b"\r\n" + body)
            self._rejected = True
            self._stop_timer()
            self.connections.discard(self)  # uvicorn need not wait for it
            # Closing while bytes are unread would reset the connection before the response is read.
            self.transport.write_eof()
            self.flow.resume_reading()
            self.loop.call_later(_LINGER, self.transport.close)

    return LimitedProtocol
