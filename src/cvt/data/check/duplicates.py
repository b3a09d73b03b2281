"""Duplicates: images of equal pixels, and near duplicates: resized, recompressed, brightened.

The perceptual hash of an image is 64 bits from the lowest frequencies of its cosine transform
(Zauner, 2010) and a gray thumbnail. Images are near duplicates if their hashes differ in at most
MAX_DISTANCE bits and their thumbnails have a correlation of at least MIN_CORRELATION, which ignores
brightness and contrast. Letters: n images, m pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations, count
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.fft import dctn
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from cvt.data.check.report import Kind

MAX_DISTANCE = 6  # bits of 64
MIN_CORRELATION = 0.995
THUMBNAIL_SIDE = 16  # pixels
# Gray levels, standard deviation of a thumbnail below which the hash of an image is noise.
MAX_BLANK_DEVIATION = 2.0
MAX_LEAKS_PER_IMAGE = 10
"""Training images that are listed for one leaked validation image."""

Indices = NDArray[np.int64]
Pairs = tuple[Indices, Indices]  # (m,), (m,)

_DCT_SIDE = 32  # pixels
# The 64 lowest frequencies except for the mean, which is brightness.
_LOWEST = tuple(np.array(sorted(((u, v) for u in range(16) for v in range(16) if u + v),
                                key=lambda f: (f[0] + f[1], f))[:64]).T)
_BITS = np.uint64(1) << np.arange(64, dtype=np.uint64)
_HASH_BYTES = 8
_CHUNK = 1 << 16  # pairs whose thumbnails are compared together
_MAX_LINKS = 1 << 22  # links between near duplicates that are held before groups are joined


class PerceptualHash(NamedTuple):
    """What near duplicates have in common."""

    bits: int
    """64 bits."""
    thumbnail: NDArray[np.uint8]
    """Gray, (THUMBNAIL_SIDE, THUMBNAIL_SIDE)."""


def perceptual_hash(image: Image.Image) -> PerceptualHash:
    """The perceptual hash of an RGB image of any size."""
    resized = image.resize((_DCT_SIDE, _DCT_SIDE), Image.Resampling.BILINEAR, reducing_gap=3.0)
    gray = np.asarray(resized.convert("L"), np.float32)  # (32, 32)
    low = dctn(gray, norm="ortho")[_LOWEST]  # (64,)
    bits = int((_BITS * (low > np.median(low))).sum())
    step, side = _DCT_SIDE // THUMBNAIL_SIDE, THUMBNAIL_SIDE
    thumbnail = gray.reshape(side, step, side, step).mean((1, 3)).round().astype(np.uint8)
    return PerceptualHash(bits, thumbnail)


def is_blank(thumbnails: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Which thumbnails (n, THUMBNAIL_SIDE, THUMBNAIL_SIDE) are (nearly) of one colour: (n,)."""
    return np.concatenate([np.zeros(0, bool), *(
        thumbnails[i:i + _CHUNK].std((1, 2), dtype=np.float32) < MAX_BLANK_DEVIATION
        for i in range(0, len(thumbnails), _CHUNK))])


def near_pairs(bits: NDArray[np.uint64], thumbnails: NDArray[np.uint8]) -> Iterator[Pairs]:
    """All pairs of near duplicates, each once, in chunks.

    bits (n,); thumbnails (n, THUMBNAIL_SIDE, THUMBNAIL_SIDE), none of them blank. No pair within
    MAX_DISTANCE bits is missed: with at most six bits changed, at least two of the eight bytes are
    unchanged, so it suffices to compare images that share two bytes, for each of the 28 choices of
    two.
    """
    parts = np.ascontiguousarray(bits).view(np.uint8).reshape(-1, _HASH_BYTES)  # (n, 8)
    for one, other in combinations(range(_HASH_BYTES), _HASH_BYTES - MAX_DISTANCE):
        for i, j in _pairs_with_equal_keys(parts[:, [one, other]].copy().view(np.uint16)[:, 0]):
            changed = bits[i] ^ bits[j]
            close = _popcount(changed) <= MAX_DISTANCE
            i, j, changed = i[close], j[close], changed[close]
            # A pair that shares more than two bytes occurs again; only its first two count.
            same = changed.view(np.uint8).reshape(-1, _HASH_BYTES) == 0
            first = same.argmax(1)
            same[np.arange(len(same)), first] = False
            counts = (first == one) & (same.argmax(1) == other)
            i, j = i[counts], j[counts]
            for start in range(0, len(i), _CHUNK):
                a, b = i[start:start + _CHUNK], j[start:start + _CHUNK]
                near = _correlation(thumbnails[a], thumbnails[b]) >= MIN_CORRELATION
                if near.any():
                    yield a[near], b[near]


def _pairs_with_equal_keys(keys: NDArray[np.uint16]) -> Iterator[Pairs]:
    """All pairs of indices with equal keys, each once, at most n of them at a time."""
    order = keys.argsort(kind="stable")
    ranked = keys[order]
    end = ranked.searchsorted(ranked, side="right")  # of the run of equal keys around each
    place = np.arange(len(keys))
    for step in count(1):
        place = place[place + step < end[place]]
        if not len(place):
            return
        yield order[place], order[place + step]


def _popcount(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The number of bits set in each word: by pairs, fours and bytes, then their sum."""
    one, two, four, eight = (np.uint64(v) for v in (
        0x5555555555555555, 0x3333333333333333, 0x0F0F0F0F0F0F0F0F, 0x0101010101010101))
    words = words - (words >> np.uint64(1) & one)
    words = (words & two) + (words >> np.uint64(2) & two)
    return (words + (words >> np.uint64(4)) & four) * eight >> np.uint64(56)


def _correlation(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Of each thumbnail (m, side, side) with the one at the same index in b: (m,) in [-1, 1]."""
    x, y = (v.reshape(len(v), -1).astype(np.float32) for v in (a, b))
    x -= x.mean(1, keepdims=True)
    y -= y.mean(1, keepdims=True)
    product: NDArray[np.float32] = np.einsum("mp,mp->m", x, y)
    return product / np.sqrt(np.einsum("mp,mp->m", x, x) * np.einsum("mp,mp->m", y, y))


class Duplicates:
    """Groups of images of equal pixels, and links between groups that look alike.

    pixels (n,): equal numbers for equal pixels, -1 for an unreadable image; files (n,): equal
    numbers for equal files, -1 for images that do not come from files; bits (n,) and thumbnails
    (n, side, side): perceptual hashes. The first `train` images are training images.
    """

    def __init__(self, pixels: Indices, files: Indices, bits: NDArray[np.uint64],
                 thumbnails: NDArray[np.uint8], train: int) -> None:
        self._files, self._train = files, train
        readable = np.flatnonzero(pixels >= 0)
        order = readable[pixels[readable].argsort(kind="stable")]
        _, first = np.unique(pixels[order], return_index=True)
        self._groups = np.split(order, first[1:]) if len(order) else []
        heads = order[first]  # the first image of each group
        self._in_train = heads < train
        self._in_val = np.array([group[-1] >= train for group in self._groups], bool)
        thumbnails = thumbnails[heads]
        blank = is_blank(thumbnails)
        self.blank = sum(len(self._groups[g]) for g in np.flatnonzero(blank))
        """Number of blank images."""
        self._cluster = np.arange(len(heads))  # (groups,), equal for linked groups
        self._leaks: dict[int, list[tuple[int, Kind]]] = {}
        for g in np.flatnonzero(self._in_train & self._in_val):
            self._add_leaks(self._groups[g], self._groups[g], None)
        clear = np.flatnonzero(~blank)
        links: list[Pairs] = []
        for i, j in near_pairs(bits[heads[clear]], thumbnails[clear]):
            links.append((clear[i], clear[j]))
            self._add_near_leaks(clear[i], clear[j])
            if sum(len(a) for a, _ in links) > _MAX_LINKS:
                self._join(links)
                links.clear()
        self._join(links)

    def kind(self, images: Sequence[int]) -> Kind:
        """Whether images of equal pixels are equal files."""
        files = {int(self._files[i]) for i in images}
        return "file" if len(files) == 1 and -1 not in files else "pixels"

    def exact(self) -> Iterator[list[int]]:
        """Indices of equal images, two or more; groups in the order of their first image."""
        yield from (group.tolist() for group in self._groups if len(group) > 1)

    def near(self) -> Iterator[list[int]]:
        """Indices of the images of linked groups, in the order of their first image."""
        order = self._cluster.argsort(kind="stable")
        _, first = np.unique(self._cluster[order], return_index=True)
        yield from sorted(sorted(int(i) for g in linked for i in self._groups[g])
                          for linked in np.split(order, first[1:]) if len(linked) > 1)

    def leaks(self) -> Iterator[tuple[int, int, Kind]]:
        """Indices of a validation image and of its duplicate in train, and their kind."""
        for val in sorted(self._leaks):
            yield from ((val, train, kind) for train, kind in self._leaks[val])

    def _join(self, links: Sequence[Pairs]) -> None:
        n = len(self._cluster)
        i, j = (np.concatenate([np.zeros(0, np.int64), *ends]) for ends in
                ([a for a, _ in links], [b for _, b in links]))
        i, j = np.r_[i, np.arange(n)], np.r_[j, self._cluster]
        graph = coo_array((np.ones(len(i), bool), (i, j)), shape=(n, n))
        self._cluster = connected_components(graph, directed=False)[1]

    def _add_near_leaks(self, one: Indices, other: Indices) -> None:
        across = (self._in_train[one] & self._in_val[other]
                  | self._in_val[one] & self._in_train[other])
        for a, b in zip(one[across].tolist(), other[across].tolist(), strict=True):
            self._add_leaks(self._groups[a], self._groups[b], "near")
            self._add_leaks(self._groups[b], self._groups[a], "near")

    def _add_leaks(self, one: Indices, other: Indices, kind: Kind | None) -> None:
        """The validation images of one group are duplicates of the training images of another."""
        first_val = one.searchsorted(self._train)
        end = min(MAX_LEAKS_PER_IMAGE, other.searchsorted(self._train))
        for val in one[first_val:].tolist() if end else ():
            leaks = self._leaks.setdefault(val, [])
            for train in other[:max(0, min(end, MAX_LEAKS_PER_IMAGE - len(leaks)))].tolist():
                leaks.append((train, kind or self.kind((val, train))))
