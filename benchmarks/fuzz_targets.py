"""Fuzz targets of `hostile.py`.

    python benchmarks/fuzz_targets.py image|form|request CORPUS [OPTIONS]

A separate file, because atheris measures coverage only in modules that are imported after it.
"""

from __future__ import annotations

import asyncio
import logging
import re
import socket
import sys
import threading
import time
from collections.abc import Callable

import atheris
import numpy as np

with atheris.instrument_imports(include=["PIL", "python_multipart", "cvt", "h11", "uvicorn"]):
    from cvt.config import Preprocess
    from cvt.data.images import read_image
    from cvt.data.preprocess import prepare
    from cvt.predict.predictor import Predictor
    from cvt.serve.app import Server
    from cvt.serve.body import MemoryBudget, RequestBody
    from cvt.serve.config import ServeConfig
    from cvt.serve.errors import RequestError
    from cvt.serve.run import GracefulServer, listen
    from cvt.serve.telemetry import LOG
    from cvt.system.errors import InputError


def image(data: bytes) -> None:
    """Decode and preprocess the bytes of an image."""
    try:
        array = prepare(Preprocess(size=32), read_image(data, max_pixels=1_000_000))
    except InputError:
        return
    assert array.shape == (3, 32, 32)
    assert np.isfinite(array).all()


def form(data: bytes) -> None:
    """Parse the bytes of a form."""
    class Request:
        headers = {"content-type": "multipart/form-data; boundary=b"}

        async def stream(self):
            for start in range(0, len(data), 64):  # in chunks, as from a network
                yield data[start:start + 64]

    async def read() -> None:
        with RequestBody(Request(), config, memory) as body:
            try:
                uploads = await body.uploads()
            except RequestError:
                return
            assert 0 < len(uploads) <= config.max_images
            assert sum(len(u.data) for u in uploads) <= len(data)

    config = ServeConfig()
    memory = MemoryBudget(config.max_buffered_bytes)
    asyncio.run(read())
    assert memory.used == 0


def request_target() -> Callable[[bytes], None]:
    """A server in this process; each input is the bytes of a connection."""
    config = ServeConfig(port=0, read_timeout=0.5)
    server = Server(Predictor("cvt_nano.fashion_mnist"), config, name="tiny", samples=None,
                    api_key=None, explainer=None)
    LOG.setLevel(logging.CRITICAL)
    taken = listen(config).__enter__()
    uvicorn = GracefulServer(server)
    threading.Thread(target=uvicorn.run, kwargs={"sockets": [taken]}, daemon=True).start()
    while not uvicorn.started:
        time.sleep(0.01)
    address = taken.getsockname()

    def request(data: bytes) -> None:
        with socket.create_connection(address[:2], timeout=10) as link:
            try:
                link.sendall(data)
                link.shutdown(socket.SHUT_WR)
                response = b""
                while received := link.recv(65536):
                    response += received
            except ConnectionError:
                return  # the server closed the connection early
        for status in re.findall(rb"^HTTP/1\.1 (\d+)", response, re.M):
            assert status not in (b"500", b"502"), response

    return request


if __name__ == "__main__":
    target = {"image": image, "form": form}.get(sys.argv[1]) or request_target()
    atheris.Setup([sys.argv[0], *sys.argv[2:]], target)
    atheris.Fuzz()
