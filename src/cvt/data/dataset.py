"""Labelled images, wherever they come from."""

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

# How images of unknown statistics are seen: as the published weights see ImageNet's.
AS_IMAGENET = Preprocess(mean=IMAGENET_MEAN, std=IMAGENET_STD)

SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val",
          "validation": "val", "test": "test"}
"""What the halves, and the test set, may be called, in lower case."""


@dataclass(frozen=True, kw_only=True)
class LabeledImages:
    """Labelled images, read when asked for."""

    classes: tuple[str, ...]
    """The name of each label."""
    labels: tuple[int, ...]
    """One label an image, an index into classes."""
    names: Sequence[str]
    """What to call each image: a path, or a number in the dataset."""
    fetch: Callable[[int], bytes | Image.Image]
    """The file of the image at an index, or the image where it never was a file. Raises OSError
    where it is not there."""
    files: bool = False
    """Whether each name is the path of a file that holds the image and nothing else."""
    size: Callable[[int], int] | None = None
    """Bytes of the file at an index, which are not read for it; None for images that never were
    files. Raises OSError as fetch does."""

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> Image.Image:
        """The image at an index, RGB. Raises InputError where it cannot be read."""
        return rgb_of(self.fetch(index), self.names[index])

    def choose(self, indices: Sequence[int]) -> LabeledImages:
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

    train: LabeledImages
    val: LabeledImages
    preprocess: Preprocess

    def __post_init__(self) -> None:
        if self.train.classes != self.val.classes:
            raise InputError(f"train has the classes {_some(self.train.classes)}, val has "
                             f"{_some(self.val.classes)}; give both the same names in the same "
                             "order, as `relabel` does")

    @property
    def all(self) -> LabeledImages:
        """Both halves together."""
        one, other = self.train, self.val
        return LabeledImages(classes=one.classes, labels=one.labels + other.labels,
                        names=[*one.names, *other.names], files=one.files and other.files,
                        fetch=partial(_fetch_either, one, other))


def split(images: LabeledImages, val_fraction: float, seed: int, name: str) -> Dataset:
    """The same fraction of each class held out, the same images for the same `seed`.

    Raises InputError, in which the dataset is called `name`, for a class of a single image.
    """
    train, val = _split(images, val_fraction, seed, name)
    return Dataset(train=images.choose(train.tolist()), val=images.choose(val.tolist()),
                   preprocess=AS_IMAGENET)


def subset(images: LabeledImages, n: int, seed: int) -> LabeledImages:
    """`n` of the images, the same share of each class, the same for the same `seed`.

    Raises InputError where that leaves a class without one.
    """
    return images.choose(_subset(images, n, seed).tolist()) if n < len(images) else images


def rest(images: LabeledImages, n: int, seed: int) -> LabeledImages:
    """Those of the images that `subset` leaves."""
    left = np.setdiff1d(np.arange(len(images)), _subset(images, n, seed))
    return images.choose(left.tolist())


def _subset(images: LabeledImages, n: int, seed: int) -> np.ndarray:
    """Sorted indices."""
    if n < len(set(images.labels)):
        raise InputError(f"{n} training images are too few for {len(set(images.labels))} "
                         "classes; take at least one of each")
    order = np.random.default_rng(seed).permutation(len(images))
    labels = np.array(images.labels)[order]
    # One of each class first, then in turn those whose share lags the most.
    rank = np.empty(len(order))
    for label in np.unique(labels):
        mine = np.flatnonzero(labels == label)
        rank[mine] = np.r_[-1, (np.arange(1, len(mine)) + 0.5) / len(mine)]
    chosen = order[rank.argsort(kind="stable")[:n]]
    return np.sort(chosen)


def relabel(images: LabeledImages, classes: tuple[str, ...], who: str = "the images have",
            whom: str = "the model was not trained on", remedy: str = "") -> LabeledImages:
    """The same images with labels that count in `classes`, matched by name.

    Raises InputError for a class that is not in `classes`, in the words of `match`.
    """
    if images.classes == classes:
        return images
    place = match(images.classes, classes, who, whom, remedy or f"it knows {_some(classes)}")
    return replace(images, classes=classes,
                   labels=tuple(place[label] for label in images.labels))


def check_trained(train: LabeledImages, val: LabeledImages, name: str) -> None:
    """Raise InputError, in which the dataset is called `name`, for a class of validation images
    alone."""
    known = set(train.labels)
    if extra := sorted(set(val.labels) - known):
        raise InputError(f"{name} has the class {train.classes[extra[0]]!r} in val but not in "
                         "train; add training images of it or take it out")


def _some(classes: Sequence[str]) -> str:
    return ", ".join(classes[:10]) + (", ..." if len(classes) > 10 else "")


def _split(images: LabeledImages, val_fraction: float, seed: int, name: str
           ) -> tuple[np.ndarray, np.ndarray]:
    """Sorted indices of the training and held-out images, the same fraction of each class."""
    labels = np.array(images.labels)
    few = [images.classes[label] for label, n in
           zip(*np.unique(labels, return_counts=True), strict=True) if n < 2]
    if few:
        raise InputError(f"{name} has the class {few[0]!r} with one image, which cannot be "
                         "both trained on and held out; add images, or make train/ and val/")
    try:
        train, val = train_test_split(np.arange(len(labels)), test_size=val_fraction,
                                      random_state=seed, stratify=labels)
    except ValueError as error:
        raise InputError(f"{name} cannot be split with data.val_fraction={val_fraction}: {error}"
                         ) from None
    return np.sort(train), np.sort(val)


# Module functions, not closures: images travel to worker processes, which pickle them.
def _fetch_chosen(images: LabeledImages, indices: Sequence[int], index: int) -> bytes | Image.Image:
    return images.fetch(indices[index])


def _size_chosen(images: LabeledImages, indices: Sequence[int], index: int) -> int:
    assert images.size is not None
    return images.size(indices[index])


def _fetch_either(one: LabeledImages, other: LabeledImages, index: int) -> bytes | Image.Image:
    return one.fetch(index) if index < len(one) else other.fetch(index - len(one))
