"""Randomness as a function of position (seed, epoch, index), so that any part of a run can be
repeated on its own."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch


def seed_all(*key: int) -> None:
    """Seed torch, numpy and random with a hash of `key`, non-negative integers.

    The same key gives the same draws, whatever was drawn before: (seed, epoch, index) for a sample,
    (seed, step) for a training step. Accelerators are seeded once the process uses them.
    """
    # The length is included because SeedSequence treats (1, 2) and (1, 2, 0) as equal.
    a, b, c, d = (int(word) for word in np.random.SeedSequence((len(key), *key)).generate_state(4))
    random.seed(a)
    np.random.seed(b)  # timm's augmentations draw from this global state
    # torch.manual_seed does the same for every kind of device, at 200 us a call.
    torch.default_generator.manual_seed(c << 32 | d)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(c << 32 | d)
    elif torch.xpu.is_initialized():
        torch.xpu.manual_seed_all(c << 32 | d)
    elif torch.backends.mps.is_available():
        torch.mps.manual_seed(c << 32 | d)


@contextlib.contextmanager
def randomness_restored() -> Iterator[None]:
    """Restore the CPU random states of torch, numpy and random after the block."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
