"""Images of many requests as batches of one network, and never more of them than agreed.

Threads read images, one thread runs the network, and a task of the event loop makes batches of
what is ready. While the network computes, images gather; so batches grow with the load, and a
lone image does not wait for company.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from cvt.serve.config import ServeConfig
from cvt.serve.refusals import Refusal

Input = NDArray[np.float32]  # one prepared image (C, H, W)
Logits = NDArray[np.float32]  # of one image (K,)


class _LateError(Exception):
    """An image's deadline has passed before the network saw it."""


@dataclass
class _Waiting:
    """An image that is ready, and whoever waits for its logits."""

    pixels: Input
    answer: asyncio.Future[Logits]
    until: float  # of time.monotonic()
    since: float = field(default_factory=time.monotonic)


class Batcher:
    """Logits of images, for any number of tasks of one event loop.

    prepare: from a file's bytes to the network's input; what it raises is that image's answer.
    network: from a batch (B, C, H, W) to logits (B, K). readers: threads that prepare. batches: is
    told the size of every batch.
    """

    def __init__(self, prepare: Callable[[bytes], Input], network: Callable[[Input], Logits],
                 config: ServeConfig, *, readers: int,
                 batches: Callable[[int], None] = lambda _: None) -> None:
        self._prepare, self._network, self._config = prepare, network, config
        self._told = batches
        self._readers = ThreadPoolExecutor(readers, "cvt-read")
        self._one = ThreadPoolExecutor(1, "cvt-network")
        self._ready: deque[_Waiting] = deque()
        self._arrived = asyncio.Event()
        self._reading = 0
        self._seconds = 0.1  # an image takes, an average of the last batches
        self._loop: asyncio.Task[None] | None = None
        self.inside = 0
        """Images that are read, waiting or computed."""

    async def __aenter__(self) -> Batcher:
        self._loop = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._loop is not None
        self._loop.cancel()
        await asyncio.gather(self._loop, return_exceptions=True)
        for pool in (self._readers, self._one):
            pool.shutdown(wait=True, cancel_futures=True)

    def check_room(self, images: int = 1) -> None:
        """Raise Refusal where there is no room for so many more."""
        if (over := self.inside + images - self._config.max_queue) > 0:
            raise Refusal("busy", "as many images are in hand as may be; ask again",
                          retry_after=over * self._seconds)

    async def logits(self, files: Sequence[bytes]) -> list[Logits | Exception]:
        """Of each file the logits (K,), or what `prepare` or the network raised for it.

        All of them are taken, or none. Raises Refusal where there is no room for them now, and
        where the network does not come to them in time.
        """
        self.check_room(len(files))
        self.inside += len(files)
        until = time.monotonic() + self._config.deadline
        found = await asyncio.gather(*(self._of_one(data, until) for data in files))
        if any(isinstance(answer, _LateError) for answer in found):
            raise Refusal("late", f"the network did not come to it within {self._config.deadline:g}"
                          " s; ask again", retry_after=self.inside * self._seconds)
        return found

    async def _of_one(self, data: bytes, until: float) -> Logits | Exception:
        loop = asyncio.get_running_loop()
        self._reading += 1
        try:
            try:
                pixels = await loop.run_in_executor(self._readers, self._read, data, until)
            finally:
                self._reading -= 1
                self._arrived.set()
            waiting = _Waiting(pixels, loop.create_future(), until)
            self._ready.append(waiting)
            return await waiting.answer
        except Exception as error:
            return error
        finally:
            self.inside -= 1

    def _read(self, data: bytes, until: float) -> Input:
        if time.monotonic() > until:
            raise _LateError
        return self._prepare(data)

    async def _run(self) -> None:
        """Batch after batch, for ever."""
        loop = asyncio.get_running_loop()
        while True:
            batch = await self._next()
            start = time.monotonic()
            try:
                found = await loop.run_in_executor(self._one, self._logits, batch)
            except Exception as error:  # a runtime's: it is these images', and the server goes on
                for waiting in batch:
                    waiting.answer.set_exception(error)
                continue
            for waiting, row in zip(batch, found, strict=True):
                waiting.answer.set_result(row)
            self._told(len(batch))
            self._seconds += 0.2 * ((time.monotonic() - start) / len(batch) - self._seconds)

    def _logits(self, batch: Sequence[_Waiting]) -> Logits:
        return self._network(np.stack([waiting.pixels for waiting in batch]))

    async def _next(self) -> list[_Waiting]:
        """What the network sees next: at least one image."""
        most = self._config.max_batch
        while True:
            self._drop_late()
            waited = time.monotonic() - self._ready[0].since if self._ready else 0.0
            # Those that are being read now may come in time to be of the same batch.
            if self._ready and (len(self._ready) >= most or not self._reading
                                or waited >= self._config.max_wait):
                return [self._ready.popleft() for _ in range(min(most, len(self._ready)))]
            self._arrived.clear()
            try:
                async with asyncio.timeout(self._config.max_wait - waited if self._ready else None):
                    await self._arrived.wait()
            except TimeoutError:
                continue

    def _drop_late(self) -> None:
        now = time.monotonic()
        while self._ready and self._ready[0].until < now:  # the oldest is the first
            self._ready.popleft().answer.set_exception(_LateError())
