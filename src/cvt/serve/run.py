"""A server from its start to its end."""

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
from cvt.serve.protocol import protocol_of
from cvt.serve.watch import start_log, tell
from cvt.system.errors import InputError

# Seconds that a connection may wait for its next request: longer than proxies keep theirs (nginx
# 60), for who sends one as the other end closes gets no answer.
_KEEP_ALIVE = 75


def serve(predictor: Predictor, config: ServeConfig, *, name: str,
          explainer: Explainer | None = None, samples: Path | None = None,
          api_key: str | None = None, log_level: str = "info") -> None:
    """Serve `predictor` as `name` until SIGTERM or SIGINT, then answer what is in hand.

    explainer: what answers /v1/explain, if anything does. samples: a folder of images that the
    page offers. api_key: what /v1 and /metrics ask for. Raises InputError where the address cannot
    be listened on.
    """
    server = Server(predictor, config, name=name, explainer=explainer, samples=samples,
                    api_key=api_key)
    start_log(log_level)
    # uvicorn gives signals on to what was there before, once it has ended.
    before = {sig: signal.signal(sig, lambda *_: None) for sig in (signal.SIGINT, signal.SIGTERM)}
    try:
        with listen(config) as taken:
            Uvicorn(server).run(sockets=[taken])
    finally:
        for sig, handler in before.items():
            signal.signal(sig, handler)
    tell("ended")


def listen(config: ServeConfig) -> socket.socket:
    """A socket on the address of `config`. Raises InputError where there can be none."""
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    try:
        taken = socket.create_server((config.host, config.port), family=family, backlog=1024)
        # Connections inherit it; asyncio sets it only on sockets that it made itself. Without it
        # an answer's body waits up to 40 ms until its head is acknowledged.
        taken.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return taken
    except OSError as error:
        raise InputError(f"cannot listen on {config.host}, port {config.port}: "
                         f"{error.strerror or error}; choose another with --port or --host"
                         ) from None


class Uvicorn(uvicorn.Server):
    """uvicorn for `server`, which tells where it listens, and gives notice before it ends."""

    def __init__(self, server: Server) -> None:
        super().__init__(uvicorn.Config(
            create_app(server), http=protocol_of(server.config, server.figures), ws="none",
            lifespan="on", log_config=None, access_log=False, server_header=False,
            proxy_headers=False, timeout_graceful_shutdown=math.ceil(server.config.drain),
            timeout_keep_alive=_KEEP_ALIVE))
        self._server = server
        self._until: float | None = None  # of time.monotonic(): when to stop listening

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and tell where."""
        await super().startup(sockets)
        for taken in sockets or ():
            host, port = taken.getsockname()[:2]
            named = f"[{host}]" if ":" in host else host
            tell("listening", url=f"http://{named}:{port}/", model=self._server.name,
                 backend=self._server.predictor.backend,
                 precision=self._server.predictor.precision)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to end; at the second signal without notice."""
        if self._until is None:
            self._server.draining = True
            self._until = time.monotonic() + self._server.config.notice
        else:  # asked for the second time
            super().handle_exit(sig, frame)

    async def on_tick(self, counter: int) -> bool:
        """Whether to stop listening."""
        over = self._until is not None and time.monotonic() >= self._until
        return await super().on_tick(counter) or over
