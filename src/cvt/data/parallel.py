"""Work on every image, by threads: Pillow, hashes and files all let others run meanwhile."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

from cvt.system.machine import available_cores

_T = TypeVar("_T")

# Results that wait to be taken, for each thread.
_AHEAD = 16


def in_threads(look: Callable[[int], _T], indices: Sequence[int]) -> Iterator[_T]:
    """`look` at each index, in their order, with a thread for each core; few results wait.

    What `look` raises is raised here, and what has not begun by then is not begun.
    """
    threads = available_cores()
    rest = iter(indices)
    waiting: deque[Future[_T]] = deque()
    pool = ThreadPoolExecutor(threads, "cvt-look")
    try:
        waiting.extend(pool.submit(look, i) for i in islice(rest, _AHEAD * threads))
        while waiting:
            yield waiting.popleft().result()
            waiting.extend(pool.submit(look, i) for i in islice(rest, 1))
    finally:
        pool.shutdown(cancel_futures=True)
