"""Images that are the same, or nearly: resized, recompressed, brightened.

A fingerprint is 64 bits from the lowest frequencies of the image's cosine transform (the
perceptual hash of Zauner, 2010) and a gray thumbnail. Images are near when their hashes differ in
at most DISTANCE bits and their thumbnails, brightness and contrast aside, agree. Letters: n
images, m pairs.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations, count
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.fft import dctn

DISTANCE = 6  # bits of 64 in which the hashes of near images may differ
SIDE = 16  # pixels, of a thumbnail
# Correlation of the thumbnails from which images are near.
AGREEMENT = 0.995
# Gray levels, deviation of a thumbnail, below which an image is blank: its hash is noise.
BLANK = 2.0

Pairs = tuple[NDArray[np.int64], NDArray[np.int64]]  # (m,), (m,) places of images

_GRID = 32  # pixels, side of what the cosine transform sees
# The 64 lowest frequencies but the mean, which is brightness.
_LOWEST = tuple(np.array(sorted(((u, v) for u in range(16) for v in range(16) if u + v),
                                key=lambda f: (f[0] + f[1], f))[:64]).T)
_BITS = np.uint64(1) << np.arange(64, dtype=np.uint64)
_BYTES = 8  # a hash has eight
_AT_ONCE = 1 << 16  # pairs whose thumbnails are compared together


class Fingerprint(NamedTuple):
    """What is kept of an image to find those that look like it."""

    hash: int
    """64 bits."""
    thumbnail: NDArray[np.uint8]
    """Gray, (SIDE, SIDE)."""


def fingerprint(image: Image.Image) -> Fingerprint:
    """That of an RGB image of any size."""
    small = image.resize((_GRID, _GRID), Image.Resampling.BILINEAR, reducing_gap=3.0).convert("L")
    gray = np.asarray(small, np.float32)  # (32, 32)
    low = dctn(gray, norm="ortho")[_LOWEST]  # (64,)
    bits = int((_BITS * (low > np.median(low))).sum())
    step = _GRID // SIDE
    thumbnail = gray.reshape(SIDE, step, SIDE, step).mean((1, 3)).round().astype(np.uint8)
    return Fingerprint(bits, thumbnail)


def blank(thumbnails: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Which of the thumbnails (n, SIDE, SIDE) are of one colour, near enough: (n,)."""
    return np.concatenate([np.zeros(0, bool), *(
        thumbnails[i:i + _AT_ONCE].std((1, 2), dtype=np.float32) < BLANK
        for i in range(0, len(thumbnails), _AT_ONCE))])


def near_pairs(hashes: NDArray[np.uint64], thumbnails: NDArray[np.uint8]) -> Iterator[Pairs]:
    """Every pair of near images once, a part at a time.

    hashes (n,); thumbnails (n, SIDE, SIDE), none of them blank. All pairs within DISTANCE bits are
    found: with at most six bits changed, two of the eight bytes at least are as they were, so only
    images that share two bytes are compared, for each of the 28 choices of two.
    """
    parts = np.ascontiguousarray(hashes).view(np.uint8).reshape(-1, _BYTES)  # (n, 8)
    for one, other in combinations(range(_BYTES), _BYTES - DISTANCE):
        for i, j in _sharing(parts[:, [one, other]].copy().view(np.uint16)[:, 0]):
            changed = hashes[i] ^ hashes[j]
            close = _ones(changed) <= DISTANCE
            i, j, changed = i[close], j[close], changed[close]
            # A pair that shares more than two bytes comes up again: its first two are its turn.
            same = changed.view(np.uint8).reshape(-1, _BYTES) == 0
            first = same.argmax(1)
            same[np.arange(len(same)), first] = False
            turn = (first == one) & (same.argmax(1) == other)
            i, j = i[turn], j[turn]
            for start in range(0, len(i), _AT_ONCE):
                a, b = i[start:start + _AT_ONCE], j[start:start + _AT_ONCE]
                agree = _correlation(thumbnails[a], thumbnails[b]) >= AGREEMENT
                if agree.any():
                    yield a[agree], b[agree]


def _sharing(keys: NDArray[np.uint16]) -> Iterator[Pairs]:
    """Every pair of places with equal keys once, at most n of them at a time."""
    order = keys.argsort(kind="stable")
    ranked = keys[order]
    end = ranked.searchsorted(ranked, side="right")  # of the run of equal keys that each is in
    place = np.arange(len(keys))
    for step in count(1):
        place = place[place + step < end[place]]
        if not len(place):
            return
        yield order[place], order[place + step]


def _ones(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """How many bits of each are set: in pairs, in fours, in bytes, then their sum."""
    one, two, four, eight = (np.uint64(v) for v in (
        0x5555555555555555, 0x3333333333333333, 0x0F0F0F0F0F0F0F0F, 0x0101010101010101))
    words = words - (words >> np.uint64(1) & one)
    words = (words & two) + (words >> np.uint64(2) & two)
    return (words + (words >> np.uint64(4)) & four) * eight >> np.uint64(56)


def _correlation(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Of thumbnails (m, SIDE, SIDE) with others, each with its own: (m,) in [-1, 1]."""
    x, y = (v.reshape(len(v), -1).astype(np.float32) for v in (a, b))
    x -= x.mean(1, keepdims=True)
    y -= y.mean(1, keepdims=True)
    product: NDArray[np.float32] = np.einsum("mp,mp->m", x, y)
    return product / np.sqrt(np.einsum("mp,mp->m", x, x) * np.einsum("mp,mp->m", y, y))
