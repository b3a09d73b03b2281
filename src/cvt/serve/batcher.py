"""Dynamic batching: images of many requests in one batch, behind a bounded queue.

Threads read images, one thread runs the network, and a task of the event loop makes batches of the
images that are ready. Images gather while the network computes, so batches grow with the load and
a single image does not wait for others.
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
from cvt.serve.errors import RequestError

Input = NDArray[np.float32]  # one preprocessed image (C, H, W)
Logits = NDArray[np.float32]  # of one image (K,)


class _QueueTimeoutError(Exception):
    """The network did not come to an image within `queue_timeout`."""


@dataclass
class _Queued:
    """A preprocessed image, and the future of its logits."""

    pixels: Input
    logits: asyncio.Future[Logits]
    deadline: float  # of time.monotonic()
    since: float = field(default_factory=time.monotonic)


class Batcher:
    """Computes the logits of images, for any number of tasks of one event loop.

    prepare: from a file's bytes to the network's input; what it raises is that image's result.
    network: from a batch (B, C, H, W) to logits (B, K). threads: how many of them read images.
    on_batch: called with the size of every batch.
    """

    def __init__(self, prepare: Callable[[bytes], Input], network: Callable[[Input], Logits],
                 config: ServeConfig, *, threads: int,
                 on_batch: Callable[[int], None] = lambda _: None) -> None:
        self._prepare, self._network, self._config = prepare, network, config
        self._on_batch = on_batch
        self._read_pool = ThreadPoolExecutor(threads, "cvt-read")
        self._network_pool = ThreadPoolExecutor(1, "cvt-network")
        self._queue: deque[_Queued] = deque()
        self._arrived = asyncio.Event()
        self._reading = 0
        self._seconds_per_image = 0.1  # a moving average over the batches
        self._task: asyncio.Task[None] | None = None
        self.in_flight = 0
        """Images being read, queued or classified."""

    async def __aenter__(self) -> Batcher:
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        for pool in (self._read_pool, self._network_pool):
            pool.shutdown(wait=True, cancel_futures=True)

    def check_capacity(self, images: int = 1) -> None:
        """Raise RequestError if the queue has no room for `images` more."""
        if (excess := self.in_flight + images - self._config.max_queue_size) > 0:
            raise RequestError("overloaded", "the server is overloaded: its queue is full; try "
                               "again later", retry_after=excess * self._seconds_per_image)

    async def logits(self, files: Sequence[bytes]) -> list[Logits | Exception]:
        """The logits (K,) of each file, or what `prepare` or the network raised for it.

        Either all files are accepted or none. Raises RequestError if the queue has no room for
        them, and if the network does not come to them in time.
        """
        self.check_capacity(len(files))
        self.in_flight += len(files)
        deadline = time.monotonic() + self._config.queue_timeout
        results = await asyncio.gather(*(self._logits_of(data, deadline) for data in files))
        if any(isinstance(result, _QueueTimeoutError) for result in results):
            raise RequestError(
                "queue_timeout", "the image waited in the queue for more than "
                f"{self._config.queue_timeout:g} s; try again later",
                retry_after=self.in_flight * self._seconds_per_image)
        return results

    async def _logits_of(self, data: bytes, deadline: float) -> Logits | Exception:
        loop = asyncio.get_running_loop()
        self._reading += 1
        try:
            try:
                pixels = await loop.run_in_executor(self._read_pool, self._read, data, deadline)
            finally:
                self._reading -= 1
                self._arrived.set()
            queued = _Queued(pixels, loop.create_future(), deadline)
            self._queue.append(queued)
            return await queued.logits
        except Exception as error:
            return error
        finally:
            self.in_flight -= 1

    def _read(self, data: bytes, deadline: float) -> Input:
        if time.monotonic() > deadline:
            raise _QueueTimeoutError
        return self._prepare(data)

    async def _run(self) -> None:
        """Compute batch after batch until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            batch = await self._next_batch()
            start = time.monotonic()
            try:
                rows = await loop.run_in_executor(self._network_pool, self._compute, batch)
            except Exception as error:  # of a runtime; only these images fail, the server goes on
                for queued in batch:
                    queued.logits.set_exception(error)
                continue
            for queued, row in zip(batch, rows, strict=True):
                queued.logits.set_result(row)
            self._on_batch(len(batch))
            self._seconds_per_image += 0.2 * ((time.monotonic() - start) / len(batch)
                                              - self._seconds_per_image)

    def _compute(self, batch: Sequence[_Queued]) -> Logits:
        return self._network(np.stack([queued.pixels for queued in batch]))

    async def _next_batch(self) -> list[_Queued]:
        """Wait for the next batch, of at least one image."""
        max_size, max_delay = self._config.max_batch_size, self._config.max_batch_delay
        while True:
            self._drop_expired()
            waited = time.monotonic() - self._queue[0].since if self._queue else 0.0
            # Images that are being read now may still join this batch.
            if self._queue and (len(self._queue) >= max_size or not self._reading
                                or waited >= max_delay):
                return [self._queue.popleft() for _ in range(min(max_size, len(self._queue)))]
            self._arrived.clear()
            try:
                async with asyncio.timeout(max_delay - waited if self._queue else None):
                    await self._arrived.wait()
            except TimeoutError:
                continue

    def _drop_expired(self) -> None:
        now = time.monotonic()
        while self._queue and self._queue[0].deadline < now:  # the first is the oldest
            self._queue.popleft().logits.set_exception(_QueueTimeoutError())
