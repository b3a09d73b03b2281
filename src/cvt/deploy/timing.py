"""Timing of calls that take turns in one process, and the statistics of their times.

Times measured on different days or in different processes differ by more than most optimizations
gain. So the candidates take turns, the order rotates every round, and the figures are a median with
its quartiles and the ratio of times from the same round.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch

Call = Callable[[], object]


def interleaved(candidates: Mapping[str, Call], rounds: int, warmup: int = 2,
                clock: Callable[[Call], float] | None = None) -> dict[str, list[float]]:
    """Seconds of each call, one value per round; the order rotates every round.

    A turn starts with one call that is not timed: it finds another candidate's weights in the
    caches, and that candidate's threads still spinning on the cores for some milliseconds.

    clock: runs a call and returns its seconds; `wall_clock` by default.
    """
    clock = clock or wall_clock
    for call in candidates.values():
        for _ in range(warmup):
            call()
    names = list(candidates)
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for i in range(rounds):
        turn = i % len(names)
        for name in names[turn:] + names[:turn]:
            candidates[name]()
            seconds[name].append(clock(candidates[name]))
    return seconds


def wall_clock(call: Call) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def steady_clock(call: Call) -> float:
    """Seconds of one call, the mean of as many calls as take a tenth of a second."""
    start, n = time.perf_counter(), 0
    while True:
        call()
        n += 1
        if (elapsed := time.perf_counter() - start) >= 0.1:
            return elapsed / n


def summary(seconds: Sequence[float]) -> dict[str, float]:
    """Median and quartiles in seconds, of at least two values."""
    low, mid, high = statistics.quantiles(seconds, n=4)
    return {"median_s": mid, "quartile1_s": low, "quartile3_s": high, "n": len(seconds)}


def ratio(base: Sequence[float], ours: Sequence[float]) -> dict[str, float]:
    """Speedup of `ours` over `base`: median and quartiles of the ratios within each round."""
    low, mid, high = statistics.quantiles([b / o for b, o in zip(base, ours, strict=True)], n=4)
    return {"median": mid, "quartile1": low, "quartile3": high}


def matmul_flops(dtype: torch.dtype, seconds: float = 0.6) -> float:
    """FLOP/s of this machine's best square matrix product, the peak for any network.

    Products of 512, 1024 and 2048 rows run for about `seconds` in all; the best median counts.
    """
    best = 0.0
    for n in (512, 1024, 2048):
        a, b = torch.randn(n, n).to(dtype), torch.randn(n, n).to(dtype)
        product = functools.partial(torch.mm, a, b, out=torch.empty(n, n, dtype=dtype))
        product()
        times = [wall_clock(product)]
        while sum(times) < seconds / 3:
            times.append(wall_clock(product))
        best = max(best, 2 * n**3 / statistics.median(times))
    return best
