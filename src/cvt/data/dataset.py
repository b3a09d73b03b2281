"""Labelled images from any source, and their split into training and validation images."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image
from sklearn.model_selection import train_test_split

from cvt.config import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from cvt.data.classes import match_classes
from cvt.data.images import decode, read_file
from cvt.data.listing import LeftOut
from cvt.system.errors import InputError

_T = TypeVar("_T")

IMAGENET_PREPROCESS = Preprocess(mean=IMAGENET_MEAN, std=IMAGENET_STD)
"""For images of unknown statistics: the preprocessing of the published weights."""

SPLITS = {"train": "train", "training": "train", "trainset": "train", "val": "val", "valid": "val",
          "validation": "val", "dev": "val", "test": "test", "testing": "test", "testset": "test",
          "eval": "test", "evaluation": "test"}
"""Accepted names of the splits, in lower case."""


# Words beside that of the split in the names of directories and archives: training_set, val_images.
_SPLIT_NOISE = frozenset(("set", "sets", "data", "dataset", "images", "image", "imgs", "img",
                          "split", "folder", "samples"))


def find_splits(names: Iterable[str], where: str) -> dict[str, list[str]]:
    """The names for each of train, val and test, without regard to case: train, Training,
    train_images, train2017, seg_train beside seg_test. Empty if they name no splits.

    Names belong together if they differ in the word for the split only. A training split beside
    another one is preferred to a split alone. Raises InputError, starting with `where`, if several
    groups of names are splits.
    """
    groups: dict[tuple[str, ...], dict[str, list[str]]] = {}
    for name in names:
        words = [w for w in re.findall(r"[^\W\d_]+", name.lower()) if w not in _SPLIT_NOISE]
        kinds = [w for w in words if w in SPLITS]
        if len(kinds) == 1:
            others = tuple(w for w in words if w not in SPLITS)
            groups.setdefault(others, {}).setdefault(SPLITS[kinds[0]], []).append(name)
    pairs = [group for group in groups.values() if "train" in group and len(group) > 1]
    if len(pairs) > 1:
        raise InputError(f"{where} has several pairs of splits: " + " and ".join(
            "/".join(name for names in group.values() for name in names) for group in pairs)
            + "; give a directory with one")
    return pairs[0] if pairs else groups.get((), {})


@dataclass(frozen=True, kw_only=True)
class LabeledImages:
    """Labelled images, read on demand."""

    classes: tuple[str, ...]
    """The name of each label."""
    labels: tuple[int, ...]
    """The label of each image, an index into classes."""
    names: Sequence[str]
    """The name of each image: a path, or a number in the dataset."""
    fetch: Callable[[int], bytes | Image.Image]
    """Returns the bytes of the file of the image at an index, or the image itself if it does not
    come from a file. Raises OSError if it is missing. Must be picklable, for worker processes."""
    files: bool = False
    """Whether each name is the path of a file that holds the image and nothing else."""
    size: Callable[[int], int] | None = None
    """Returns the size in bytes of the file at an index without reading it; None for images that
    do not come from files. Raises OSError as fetch does."""

    @classmethod
    def from_files(cls, classes: tuple[str, ...], paths: Iterable[str | Path],
                   labels: Sequence[int]) -> LabeledImages:
        """Images that are files at `paths`."""
        names = [str(p) for p in paths]
        return cls(classes=classes, labels=tuple(labels), names=names,
                   fetch=partial(_read_path, names), files=True, size=partial(_path_size, names))

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> Image.Image:
        """The image at an index, RGB. Raises InputError or OSError if it cannot be read."""
        return decode(self.fetch(index), self.names[index])

    def choose(self, indices: Sequence[int]) -> LabeledImages:
        """The images at `indices`, in that order."""
        return replace(self, labels=tuple(self.labels[i] for i in indices),
                       names=[self.names[i] for i in indices],
                       fetch=partial(_at, self.fetch, indices),
                       size=self.size and partial(_at, self.size, indices))


# Module functions, not closures: images are pickled to send them to worker processes.
def _read_path(paths: Sequence[str], index: int) -> bytes:
    return read_file(Path(paths[index]))


def _path_size(paths: Sequence[str], index: int) -> int:
    return Path(paths[index]).stat().st_size


def _at(function: Callable[[int], _T], indices: Sequence[int], index: int) -> _T:
    return function(indices[index])


def _fetch_either(one: LabeledImages, other: LabeledImages, index: int) -> bytes | Image.Image:
    return one.fetch(index) if index < len(one) else other.fetch(index - len(one))


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Training and validation images, and the preprocessing that suits them.

    Raises InputError if both splits do not have the same classes in the same order.
    """

    train: LabeledImages
    val: LabeledImages
    preprocess: Preprocess = IMAGENET_PREPROCESS
    left_out: LeftOut = field(default_factory=LeftOut)
    """What the source holds besides these images."""
    notes: tuple[str, ...] = ()
    """What to know about how the source was read, each in one line."""

    def __post_init__(self) -> None:
        if self.train.classes != self.val.classes:
            raise InputError(f"train has the classes {_shortened(self.train.classes)}, val has "
                             f"{_shortened(self.val.classes)}; give both the same names in the "
                             "same order, as `relabel` does")

    @property
    def messages(self) -> tuple[str, ...]:
        """What was left out, if anything, and the notes, each in one line."""
        return (*((f"left out: {self.left_out}",) if self.left_out else ()), *self.notes)

    @property
    def all(self) -> LabeledImages:
        """The training images, then the validation images."""
        one, other = self.train, self.val
        return LabeledImages(classes=one.classes, labels=one.labels + other.labels,
                             names=[*one.names, *other.names], files=one.files and other.files,
                             fetch=partial(_fetch_either, one, other))


def split(images: LabeledImages, val_fraction: float | None, seed: int, name: str) -> Dataset:
    """Hold out the same fraction of each class, the same images for the same `seed`; with None all
    of them, for an evaluation.

    Raises InputError, which calls the dataset `name`, for a class with a single image.
    """
    train, val = split_indices(images, val_fraction, seed, name)
    return Dataset(train=images.choose(train), val=images.choose(val))


def split_indices(images: LabeledImages, val_fraction: float | None, seed: int, name: str
                  ) -> tuple[list[int], list[int]]:
    """The sorted indices of the training and validation images of `split`."""
    if val_fraction is None:
        return [], list(range(len(images)))
    labels = np.array(images.labels)
    single = [images.classes[label] for label, n in
              zip(*np.unique(labels, return_counts=True), strict=True) if n < 2]
    if single:
        raise InputError(f"{name} has the class {single[0]!r} with one image, which cannot be "
                         "both trained on and held out; add images, or make train/ and val/")
    try:
        train, val = train_test_split(np.arange(len(labels)), test_size=val_fraction,
                                      random_state=seed, stratify=labels)
    except ValueError as error:
        raise InputError(f"{name} cannot be split with data.val_fraction={val_fraction}: {error}"
                         ) from None
    return np.sort(train).tolist(), np.sort(val).tolist()


def subset(images: LabeledImages, n: int, seed: int) -> LabeledImages:
    """`n` of the images, the same fraction of each class, the same ones for the same `seed`.

    Raises InputError if `n` is smaller than the number of classes.
    """
    return images.choose(_subset(images, n, seed).tolist()) if n < len(images) else images


def rest(images: LabeledImages, n: int, seed: int) -> LabeledImages:
    """The images that `subset` leaves out."""
    left = np.setdiff1d(np.arange(len(images)), _subset(images, n, seed))
    return images.choose(left.tolist())


def _subset(images: LabeledImages, n: int, seed: int) -> np.ndarray:
    """Sorted indices."""
    if n < len(set(images.labels)):
        raise InputError(f"{n} training images are too few for {len(set(images.labels))} "
                         "classes; take at least one of each")
    order = np.random.default_rng(seed).permutation(len(images))
    labels = np.array(images.labels)[order]
    # One image of each class first, then always the class that lags most behind its fraction.
    rank = np.empty(len(order))
    for label in np.unique(labels):
        mine = np.flatnonzero(labels == label)
        rank[mine] = np.r_[-1, (np.arange(1, len(mine)) + 0.5) / len(mine)]
    chosen = order[rank.argsort(kind="stable")[:n]]
    return np.sort(chosen)


def relabel(images: LabeledImages, classes: tuple[str, ...], has: str = "the images have",
            lacks: str = "the model was not trained on", remedy: str = "") -> LabeledImages:
    """The same images with labels that are indices into `classes`, matched by name.

    Raises InputError for a class that is not in `classes`, worded as in `match_classes`.
    """
    if images.classes == classes:
        return images
    indices = match_classes(images.classes, classes, has, lacks,
                            remedy or f"it knows {_shortened(classes)}")
    return replace(images, classes=classes,
                   labels=tuple(indices[label] for label in images.labels))


def check_trained(dataset: Dataset, name: str) -> None:
    """Raise InputError, which calls the dataset `name`, for a class without training images, unless
    there are none at all, as in an evaluation."""
    if not len(dataset.train):
        return
    if extra := sorted(set(dataset.val.labels) - set(dataset.train.labels)):
        raise InputError(f"{name} has the class {dataset.val.classes[extra[0]]!r} in val but not "
                         "in train; add training images of it or take it out")


def _shortened(classes: Sequence[str]) -> str:
    return ", ".join(classes[:10]) + (", ..." if len(classes) > 10 else "")
