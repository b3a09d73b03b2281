"""Work on many images with threads: Pillow, hashing and file access all release the GIL."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

from cvt.system.machine import available_cores

_T = TypeVar("_T")

_PENDING_PER_THREAD = 16  # results computed ahead of the consumer


def in_threads(function: Callable[[int], _T], indices: Sequence[int]) -> Iterator[_T]:
    """`function` of each index, in order, computed by one thread per core.

    Only a few results are held at a time. An exception of `function` is raised here, and work that
    has not started by then is cancelled.
    """
    threads = available_cores()
    rest = iter(indices)
    pending: deque[Future[_T]] = deque()
    pool = ThreadPoolExecutor(threads, "cvt-images")
    try:
        pending.extend(pool.submit(function, i)
                       for i in islice(rest, _PENDING_PER_THREAD * threads))
        while pending:
            yield pending.popleft().result()
            pending.extend(pool.submit(function, i) for i in islice(rest, 1))
    finally:
        pool.shutdown(cancel_futures=True)
