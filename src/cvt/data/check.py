"""What is wrong with a dataset, before it costs a training run."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from cvt.config import Preprocess
from cvt.data.dataset import Dataset, LabeledImages
from cvt.data.duplicates import SIDE, Fingerprint, Pairs, blank, fingerprint, near_pairs
from cvt.data.header import Header, header_of
from cvt.data.images import fault, rgb_of
from cvt.data.parallel import in_threads
from cvt.data.prepare import check_shape
from cvt.system.errors import InputError

Kind = Literal["file", "pixels", "near"]

# Training images that are named for one validation image which they give away.
MOST_LEAKS = 10
# Links between near images that are held before they are joined to groups.
_MOST_LINKS = 1 << 22


@dataclass(frozen=True, kw_only=True)
class ImageSource:
    """Where an image is to be found."""

    split: Literal["train", "val"]
    name: str
    """Its path, or what its source calls it."""
    label: str
    """The name of its class."""


@dataclass(frozen=True, kw_only=True)
class Unreadable(ImageSource):
    """An image that training and evaluation cannot use."""

    reason: str
    """One line, with the image's name."""


@dataclass(frozen=True, kw_only=True)
class ClassCount:
    """The images of a class, unreadable ones included."""

    name: str
    train: int
    val: int
    unreadable: int


@dataclass(frozen=True, kw_only=True)
class Sides:
    """Widths or heights, in pixels."""

    least: int
    median: float
    largest: int


@dataclass(frozen=True, kw_only=True)
class Group:
    """Images that are one, in the dataset's order."""

    kind: Kind
    """file: byte for byte. pixels: the same pixels in other files. near: look alike."""
    members: tuple[ImageSource, ...]

    @property
    def conflicting(self) -> bool:
        """Whether they have more than one label."""
        return len({image.label for image in self.members}) > 1


@dataclass(frozen=True, kw_only=True)
class Leak:
    """A validation image that is trained on."""

    kind: Kind
    val: ImageSource
    train: ImageSource


@dataclass(frozen=True, kw_only=True)
class DatasetReport:
    """What `check` found."""

    train: int
    """Training images."""
    val: int
    """Validation images."""
    classes: tuple[ClassCount, ...]
    """In the order of the labels."""
    unreadable: tuple[Unreadable, ...]
    """All of them, in the dataset's order; what follows is about the others."""
    width: Sides | None
    """None where no image can be read."""
    height: Sides | None
    small: int
    """Images whose short side is less than `size`."""
    size: int
    """Pixels, side of the network's input."""
    modes: dict[str, int]
    """Images stored in each of Pillow's modes: L is gray, P a palette, ..."""
    formats: dict[str, int]
    """Images in each file format; none for a source of arrays."""
    frames: int
    """Images of several frames, of which the first is used."""
    turned: int
    """Images that their EXIF data turns or mirrors."""
    blank: int
    """Images of one colour, or nearly; not searched for near duplicates."""
    exact: tuple[Group, ...]
    """Groups of equal images, of the kinds file and pixels."""
    near: tuple[Group, ...]
    """Groups that near duplicates link, their equal ones included."""
    leaks: tuple[Leak, ...]
    """Validation images that training has too, with at most MOST_LEAKS training images each."""

    @property
    def leaked(self) -> int:
        """Validation images that training has too."""
        return len({leak.val.name for leak in self.leaks})

    @property
    def faulty(self) -> bool:
        """Whether an image cannot be read or training has a validation image."""
        return bool(self.unreadable or self.leaks)

    @property
    def imbalance(self) -> float:
        """Training images of the largest class for one of the smallest that has any."""
        counts = [c.train for c in self.classes if c.train]
        return max(counts) / min(counts) if counts else 1.0

    def without(self, split: Literal["train", "val"]) -> tuple[str, ...]:
        """Classes that have no image in that half."""
        return tuple(c.name for c in self.classes if not getattr(c, split))

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists, numbers and strings, as JSON has them."""
        groups = {key: [{**asdict(g), "conflicting": g.conflicting} for g in getattr(self, key)]
                  for key in ("exact", "near")}
        return {**asdict(self), "imbalance": self.imbalance, "leaked": self.leaked,
                "classes_without_train": list(self.without("train")),
                "classes_without_val": list(self.without("val")), **groups}


def check(dataset: Dataset, preprocess: Preprocess | None = None,
          progress: Callable[[int, int], object] | None = None) -> DatasetReport:
    """Read every image of `dataset` and compare each with all others.

    `preprocess` is the network's, by default the dataset's own; `progress` is called with how many
    images are done and how many there are. Of an image a hash and a thumbnail of 16x16 pixels
    are kept, and no more. Images are near duplicates as `cvt.data.duplicates` says: copies that
    were resized, recompressed or brightened a little, but not those cut or mirrored.
    """
    images, seen = dataset.all, _Seen(len(dataset.all))
    preprocess = preprocess or dataset.preprocess
    for i, look in enumerate(in_threads(partial(_look, images, preprocess),
                                        range(len(images)))):
        seen.add(i, look)
        if progress:
            progress(i + 1, len(images))
    found = _Duplicates(seen, len(dataset.train))
    where = partial(_where, dataset)
    readable = seen.group >= 0
    sides = seen.sides[readable]
    return DatasetReport(
        train=len(dataset.train), val=len(dataset.val), classes=_classes(dataset, seen),
        unreadable=tuple(Unreadable(**asdict(where(i)), reason=seen.reasons[i])
                         for i in sorted(seen.reasons)),
        width=_sides(sides[:, 0]), height=_sides(sides[:, 1]),
        small=int((sides.min(1) < preprocess.size).sum()) if len(sides) else 0,
        size=preprocess.size, modes=_by_count(seen.modes), formats=_by_count(seen.formats),
        frames=seen.frames, turned=seen.turned, blank=found.blank,
        exact=tuple(Group(kind=seen.kind(members), members=tuple(map(where, members)))
                    for members in found.exact()),
        near=tuple(Group(kind="near", members=tuple(map(where, members)))
                   for members in found.near()),
        leaks=tuple(Leak(kind=kind, val=where(val), train=where(train))
                    for val, train, kind in found.leaks()))


class _Look(NamedTuple):
    """What is kept of an image."""

    file: bytes  # SHA-256 of its file, empty where it never was one
    pixels: bytes  # SHA-256 of its size and pixels
    print: Fingerprint
    sides: tuple[int, int]
    header: Header


def _look(images: LabeledImages, preprocess: Preprocess, index: int) -> _Look | str:
    """What is kept of an image, or why it cannot be read."""
    name = images.names[index]
    try:
        found = images.fetch(index)
        image = rgb_of(found, name)
        check_shape(preprocess, *image.size)
        return _Look(file=hashlib.sha256(found).digest() if isinstance(found, bytes) else b"",
                     pixels=hashlib.sha256(b"%dx%d" % image.size + image.tobytes()).digest(),
                     print=fingerprint(image), sides=image.size, header=header_of(found))
    except (InputError, OSError) as error:
        return fault(error, name)


class _Seen:
    """What is kept of n images, in arrays, for there may be millions."""

    def __init__(self, n: int) -> None:
        self.reasons: dict[int, str] = {}
        self.group = np.full(n, -1, np.int64)  # equal for equal pixels, -1 for an unreadable one
        self.file = np.full(n, -1, np.int64)  # equal for equal files, -1 for what never was one
        self.hashes = np.zeros(n, np.uint64)
        self.thumbnails = np.zeros((n, SIDE, SIDE), np.uint8)
        self.sides = np.zeros((n, 2), np.int32)
        self.modes: Counter[str] = Counter()
        self.formats: Counter[str] = Counter()
        self.frames = self.turned = 0
        self._groups: dict[bytes, int] = {}
        self._files: dict[bytes, int] = {}

    def add(self, i: int, look: _Look | str) -> None:
        if isinstance(look, str):
            self.reasons[i] = look
            return
        self.group[i] = self._groups.setdefault(look.pixels, len(self._groups))
        if look.file:
            self.file[i] = self._files.setdefault(look.file, len(self._files))
        self.hashes[i], self.thumbnails[i], self.sides[i] = *look.print, look.sides
        self.modes[look.header.mode] += 1
        self.formats.update([look.header.format] if look.header.format else [])
        self.frames += look.header.frames
        self.turned += look.header.turned

    def kind(self, members: Sequence[int]) -> Kind:
        """Of images with equal pixels."""
        files = {int(self.file[i]) for i in members}
        return "file" if len(files) == 1 and -1 not in files else "pixels"


class _Duplicates:
    """Images of equal pixels are a group, and groups that look alike are linked."""

    def __init__(self, seen: _Seen, train: int) -> None:
        self.seen, self.train = seen, train
        readable = np.flatnonzero(seen.group >= 0)
        order = readable[seen.group[readable].argsort(kind="stable")]
        number, first = np.unique(seen.group[order], return_index=True)
        self.members = np.split(order, first[1:]) if len(order) else []
        heads = order[first]  # the first image of each group
        self.trained = heads < train
        self.held_out = np.array([group[-1] >= train for group in self.members], bool)
        thumbnails = seen.thumbnails[heads]
        empty = blank(thumbnails)
        self.blank = sum(len(self.members[g]) for g in np.flatnonzero(empty))  # images
        self.label = np.arange(len(number))  # equal for linked groups
        self._leaks: dict[int, list[tuple[int, Kind]]] = {}
        self._equal_leaks()
        clear = np.flatnonzero(~empty)
        links: list[Pairs] = []
        for i, j in near_pairs(seen.hashes[heads[clear]], thumbnails[clear]):
            links.append((clear[i], clear[j]))
            self._near_leaks(clear[i], clear[j])
            if sum(len(a) for a, _ in links) > _MOST_LINKS:
                self._join(links)
                links.clear()
        self._join(links)

    def exact(self) -> Iterator[list[int]]:
        """Places of equal images, two or more; groups in the order of their first."""
        yield from (group.tolist() for group in self.members if len(group) > 1)

    def near(self) -> Iterator[list[int]]:
        """Places of the images of linked groups, in the order of their first."""
        order = self.label.argsort(kind="stable")
        _, first = np.unique(self.label[order], return_index=True)
        found = (sorted(int(i) for g in groups for i in self.members[g])
                 for groups in np.split(order, first[1:]) if len(groups) > 1)
        yield from sorted(found)

    def leaks(self) -> Iterator[tuple[int, int, Kind]]:
        """Validation image, training image and how they are one."""
        for val in sorted(self._leaks):
            yield from ((val, train, kind) for train, kind in self._leaks[val])

    def _join(self, links: Sequence[Pairs]) -> None:
        n = len(self.label)
        i, j = (np.concatenate([np.zeros(0, np.int64), *ends]) for ends in
                ([a for a, _ in links], [b for _, b in links]))
        i, j = np.r_[i, np.arange(n)], np.r_[j, self.label]
        graph = coo_array((np.ones(len(i), bool), (i, j)), shape=(n, n))
        self.label = connected_components(graph, directed=False)[1]

    def _equal_leaks(self) -> None:
        for g in np.flatnonzero(self.trained & self.held_out):
            self._leak(self.members[g], self.members[g], None)

    def _near_leaks(self, one: NDArray[np.int64], other: NDArray[np.int64]) -> None:
        across = self.trained[one] & self.held_out[other] | self.held_out[one] & self.trained[other]
        for a, b in zip(one[across].tolist(), other[across].tolist(), strict=True):
            self._leak(self.members[a], self.members[b], "near")
            self._leak(self.members[b], self.members[a], "near")

    def _leak(self, one: NDArray[np.int64], other: NDArray[np.int64], kind: Kind | None) -> None:
        """The validation images of one group are as the training images of the other."""
        cut, end = one.searchsorted(self.train), min(MOST_LEAKS, other.searchsorted(self.train))
        for val in one[cut:].tolist() if end else ():
            named = self._leaks.setdefault(val, [])
            for train in other[:max(0, min(end, MOST_LEAKS - len(named)))].tolist():
                named.append((train, kind or self.seen.kind((val, train))))


def _where(dataset: Dataset, index: int) -> ImageSource:
    n = len(dataset.train)
    half, i = (dataset.train, index) if index < n else (dataset.val, index - n)
    return ImageSource(split="train" if index < n else "val", name=half.names[i],
                   label=half.classes[half.labels[i]])


def _classes(dataset: Dataset, seen: _Seen) -> tuple[ClassCount, ...]:
    labels = np.array(dataset.all.labels)
    bad = labels[sorted(seen.reasons)]
    counts = [np.bincount(np.array(part, np.int64), minlength=len(dataset.train.classes)).tolist()
              for part in (dataset.train.labels, dataset.val.labels, bad)]
    return tuple(ClassCount(name=name, train=train, val=val, unreadable=unreadable)
                 for name, train, val, unreadable in
                 zip(dataset.train.classes, *counts, strict=True))


def _sides(values: NDArray[np.int32]) -> Sides | None:
    return Sides(least=int(values.min()), median=float(np.median(values)),
                 largest=int(values.max())) if len(values) else None


def _by_count(counts: Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
