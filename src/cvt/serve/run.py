"""Run the server from start to graceful shutdown."""

from __future__ import annotations

import math
import signal
import socket
import time
from pathlib import Path
from types import FrameType

import uvicorn

from cvt.predict.predictor import Predictor
from cvt.serve.app import Explainer, Server, create_app
from cvt.serve.config import ServeConfig
from cvt.serve.protocol import limited_protocol
from cvt.serve.telemetry import configure_logging, log_event
from cvt.system.errors import InputError

# Seconds that an idle connection stays open: longer than proxies keep theirs (nginx 60), or a
# request that is sent just as the server closes gets no response.
_KEEP_ALIVE = 75


def serve(predictor: Predictor, config: ServeConfig, *, name: str,
          explainer: Explainer | None = None, samples: Path | None = None,
          api_key: str | None = None, log_level: str = "info") -> None:
    """Serve `predictor` as `name` until SIGTERM or SIGINT, then finish the requests in flight.

    explainer: computes /v1/explain; None if the model cannot be explained. samples: a folder of
    images for the page. api_key: required for /v1 and /metrics. Raises InputError if the address
    cannot be listened on.
    """
    server = Server(predictor, config, name=name, explainer=explainer, samples=samples,
                    api_key=api_key)
    configure_logging(log_level)
    # After its shutdown, uvicorn passes the signals on to the handlers that were there before.
    before = {sig: signal.signal(sig, lambda *_: None) for sig in (signal.SIGINT, signal.SIGTERM)}
    try:
        with listen(config) as sock:
            GracefulServer(server).run(sockets=[sock])
    finally:
        for sig, handler in before.items():
            signal.signal(sig, handler)
    log_event("stopped")


def listen(config: ServeConfig) -> socket.socket:
    """A socket that listens on the address of `config`. Raises InputError if that fails."""
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    try:
        sock = socket.create_server((config.host, config.port), family=family, backlog=1024)
        # Connections inherit it; asyncio sets it only on sockets that it made itself. Without it
        # a response's body waits up to 40 ms until its head is acknowledged.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock
    except OSError as error:
        raise InputError(f"cannot listen on {config.host}, port {config.port}: "
                         f"{error.strerror or error}; choose another with --port or --host"
                         ) from None


class GracefulServer(uvicorn.Server):
    """uvicorn for `server`; it logs its address, and keeps accepting for `shutdown_delay`."""

    def __init__(self, server: Server) -> None:
        config = server.config
        super().__init__(uvicorn.Config(
            create_app(server), http=limited_protocol(config, server.metrics), ws="none",
            lifespan="on", log_config=None, access_log=False, server_header=False,
            proxy_headers=False, timeout_graceful_shutdown=math.ceil(config.shutdown_timeout),
            timeout_keep_alive=_KEEP_ALIVE))
        self._server = server
        self._stop_at: float | None = None  # of time.monotonic()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and log the address."""
        await super().startup(sockets)
        for sock in sockets or ():
            host, port = sock.getsockname()[:2]
            url_host = f"[{host}]" if ":" in host else host
            log_event("listening", url=f"http://{url_host}:{port}/", model=self._server.name,
                      backend=self._server.predictor.backend,
                      precision=self._server.predictor.precision)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin the shutdown; a second signal skips the delay."""
        if self._stop_at is None:
            self._server.shutting_down = True
            self._stop_at = time.monotonic() + self._server.config.shutdown_delay
        else:
            super().handle_exit(sig, frame)

    async def on_tick(self, counter: int) -> bool:
        """Whether to stop listening."""
        over = self._stop_at is not None and time.monotonic() >= self._stop_at
        return await super().on_tick(counter) or over
