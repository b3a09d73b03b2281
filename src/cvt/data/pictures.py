"""Labelled pictures, wherever they come from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from PIL import Image
from sklearn.model_selection import train_test_split

from cvt.config import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from cvt.data.classes import match
from cvt.data.images import rgb_of
from cvt.system.errors import InputError

# How pictures of unknown statistics are seen: as the published weights see ImageNet's.
AS_IMAGENET = Preprocess(mean=IMAGENET_MEAN, std=IMAGENET_STD)

SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val",
          "validation": "val", "test": "test"}
"""What the halves, and the test set, may be called, in lower case."""


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """Labelled pictures, read when asked for."""

    classes: tuple[str, ...]
    """The name of each label."""
    labels: tuple[int, ...]
    """One label a picture, an index into classes."""
    names: Sequence[str]
    """What to call each picture: a path, or a number in the dataset."""
    fetch: Callable[[int], bytes | Image.Image]
    """The file of the picture at an index, or the picture where it never was a file. Raises OSError
    where it is not there."""
    files: bool = False
    """Whether each name is the path of a file that holds the picture and nothing else."""
    size: Callable[[int], int] | None = None
    """Bytes of the file at an index, which are not read for it; None for images that never were
    files. Raises OSError as fetch does."""

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> Image.Image:
        """The picture at an index, RGB. Raises InputError where it cannot be read."""
        return rgb_of(self.fetch(index), self.names[index])

    def choose(self, indices: Sequence[int]) -> Pictures:
        """Those at `indices`, in that order."""
        return replace(self, labels=tuple(self.labels[i] for i in indices),
                       names=[self.names[i] for i in indices],
                       fetch=partial(_fetch_chosen, self, indices),
                       size=self.size and partial(_size_chosen, self, indices))


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A dataset, split, and the preprocessing that suits it.

    Raises InputError where the labels of both halves do not count in the same classes.
    """

    train: Pictures
    val: Pictures
    preprocess: Preprocess

    def __post_init__(self) -> None:
        if self.train.classes != self.val.classes:
            raise InputError(f"train has the classes {_some(self.train.classes)}, val has "
                             f"{_some(self.val.classes)}; give both the same names in the same "
                             "order, as `relabel` does")

    @property
    def all(self) -> Pictures:
        """Both halves together."""
        one, other = self.train, self.val
        return Pictures(classes=one.classes, labels=one.labels + other.labels,
                        names=[*one.names, *other.names], files=one.files and other.files,
                        fetch=partial(_fetch_either, one, other))


def split(pictures: Pictures, val_fraction: float, seed: int, name: str) -> Dataset:
    """The same fraction of each class held out, the same pictures for the same `seed`.

    Raises InputError, in which the dataset is called `name`, for a class of a single picture.
    """
    train, val = _split(pictures, val_fraction, seed, name)
    return Dataset(train=pictures.choose(train.tolist()), val=pictures.choose(val.tolist()),
                   preprocess=AS_IMAGENET)


def subset(pictures: Pictures, n: int, seed: int) -> Pictures:
    """`n` of the pictures, the same share of each class, the same for the same `seed`.

    Raises InputError where that leaves a class without one.
    """
    return pictures.choose(_subset(pictures, n, seed).tolist()) if n < len(pictures) else pictures


def rest(pictures: Pictures, n: int, seed: int) -> Pictures:
    """Those of the pictures that `subset` leaves."""
    left = np.setdiff1d(np.arange(len(pictures)), _subset(pictures, n, seed))
    return pictures.choose(left.tolist())


def _subset(pictures: Pictures, n: int, seed: int) -> np.ndarray:
    """Sorted indices."""
    if n < len(set(pictures.labels)):
        raise InputError(f"{n} training pictures are too few for {len(set(pictures.labels))} "
                         "classes; take at least one of each")
    order = np.random.default_rng(seed).permutation(len(pictures))
    labels = np.array(pictures.labels)[order]
    # One of each class first, then in turn those whose share lags the most.
    rank = np.empty(len(order))
    for label in np.unique(labels):
        mine = np.flatnonzero(labels == label)
        rank[mine] = np.r_[-1, (np.arange(1, len(mine)) + 0.5) / len(mine)]
    chosen = order[rank.argsort(kind="stable")[:n]]
    return np.sort(chosen)


def relabel(pictures: Pictures, classes: tuple[str, ...], who: str = "the pictures have",
            whom: str = "the model was not trained on", remedy: str = "") -> Pictures:
    """The same pictures with labels that count in `classes`, matched by name.

    Raises InputError for a class that is not in `classes`, in the words of `match`.
    """
    if pictures.classes == classes:
        return pictures
    place = match(pictures.classes, classes, who, whom, remedy or f"it knows {_some(classes)}")
    return replace(pictures, classes=classes,
                   labels=tuple(place[label] for label in pictures.labels))


def check_trained(train: Pictures, val: Pictures, name: str) -> None:
    """Raise InputError, in which the dataset is called `name`, for a class of validation pictures
    alone."""
    known = set(train.labels)
    if extra := sorted(set(val.labels) - known):
        raise InputError(f"{name} has the class {train.classes[extra[0]]!r} in val but not in "
                         "train; add training pictures of it or take it out")


def _some(classes: Sequence[str]) -> str:
    return ", ".join(classes[:10]) + (", ..." if len(classes) > 10 else "")


def _split(pictures: Pictures, val_fraction: float, seed: int, name: str
           ) -> tuple[np.ndarray, np.ndarray]:
    """Sorted indices of the training and held-out pictures, the same fraction of each class."""
    labels = np.array(pictures.labels)
    few = [pictures.classes[label] for label, n in
           zip(*np.unique(labels, return_counts=True), strict=True) if n < 2]
    if few:
        raise InputError(f"{name} has the class {few[0]!r} with one picture, which cannot be "
                         "both trained on and held out; add pictures, or make train/ and val/")
    try:
        train, val = train_test_split(np.arange(len(labels)), test_size=val_fraction,
                                      random_state=seed, stratify=labels)
    except ValueError as error:
        raise InputError(f"{name} cannot be split with data.val_fraction={val_fraction}: {error}"
                         ) from None
    return np.sort(train), np.sort(val)


# Module functions, not closures: pictures travel to worker processes, which pickle them.
def _fetch_chosen(pictures: Pictures, indices: Sequence[int], index: int) -> bytes | Image.Image:
    return pictures.fetch(indices[index])


def _size_chosen(pictures: Pictures, indices: Sequence[int], index: int) -> int:
    assert pictures.size is not None
    return pictures.size(indices[index])


def _fetch_either(one: Pictures, other: Pictures, index: int) -> bytes | Image.Image:
    return one.fetch(index) if index < len(one) else other.fetch(index - len(one))
