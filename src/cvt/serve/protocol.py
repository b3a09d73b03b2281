"""What uvicorn leaves open: a request's time, unread bodies, and how many may be connected."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from cvt.serve.config import ServeConfig
from cvt.serve.refusals import Refusal
from cvt.serve.watch import Figures

_LINGER = 1.0  # seconds that a refused sender has to stop


def protocol_of(config: ServeConfig, figures: Figures) -> type[H11Protocol]:
    """uvicorn's HTTP/1.1 with the limits of `config`."""

    class Limited(H11Protocol):
        """One connection."""

        _alarm: asyncio.TimerHandle | None = None
        _refused = False

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)  # type: ignore[arg-type]
            if len(self.connections) > config.max_connections:
                figures.requests.labels("other", 503).inc()
                self._refuse(Refusal("full", "as many connections are open as may be; try again",
                                     retry_after=1))
            else:
                self._set_alarm()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_alarm()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            if self._refused or self.transport.is_closing():
                return
            if self._alarm is None and self.conn.their_state is h11.IDLE:
                self._set_alarm()  # the first byte of the connection's next request
            super().data_received(data)
            if not self._midway():
                self._stop_alarm()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            # What is pipelined behind it has a time of its own.
            if self._alarm is None and self._midway():
                self._set_alarm()

        def send_400_response(self, msg: str) -> None:
            figures.requests.labels("other", 400).inc()
            self._refuse(Refusal("bad_request", msg))

        def _midway(self) -> bool:
            """Whether a request has begun to arrive, and not ended."""
            state = self.conn.their_state
            begun = state is h11.IDLE and bool(self.conn.trailing_data[0])
            return begun or state is h11.SEND_BODY

        def _set_alarm(self) -> None:
            self._alarm = self.loop.call_later(config.read_timeout, self._end)

        def _stop_alarm(self) -> None:
            if self._alarm is not None:
                self._alarm.cancel()
                self._alarm = None

        def _end(self) -> None:
            """The time is over."""
            cycle: Any = self.cycle
            body = self.conn.their_state is h11.SEND_BODY
            if not self._midway() or (body and cycle.response_started):
                self.transport.close()
                return
            if body:  # the application waits for the rest, and will tell of it
                cycle.scope["state"]["status"] = 408
                cycle.disconnected = True
                cycle.message_event.set()
            else:
                figures.requests.labels("other", 408).inc()
            self._refuse(Refusal("slow", f"the request did not arrive within "
                                 f"{config.read_timeout:g} s"))

        def _refuse(self, refusal: Refusal) -> None:
            """Answer without the application, and close."""
            body = json.dumps(refusal.body(None)).encode()
            headers = [("content-type", "application/json"), ("content-length", str(len(body))),
                       ("connection", "close"), *refusal.headers.items()]
            # Not by h11, whose state a broken request may have spoilt.
            head = f"HTTP/1.1 {refusal.status} {refusal.code}\r\n" + "".join(
                f"{name}: {value}\r\n" for name, value in headers)
            self.transport.write(head.encode("ascii") + b"\r\n" + body)
            self._refused = True
            self._stop_alarm()
            self.connections.discard(self)  # it is none of uvicorn's any more
            # To close while bytes are unread would take the answer back before it is seen.
            self.transport.write_eof()
            self.flow.resume_reading()
            self.loop.call_later(_LINGER, self.transport.close)

    return Limited
