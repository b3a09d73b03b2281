"""Labelled pictures: digits, Fashion-MNIST and folders, each split into train and val."""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torchvision.datasets import FashionMNIST

from cvt.config import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from cvt.data.config import DataConfig
from cvt.data.images import list_images, read_image
from cvt.errors import InputError

FASHION_MNIST_CLASSES = ("T-shirt", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt",
                         "Sneaker", "Bag", "Ankle boot")
# Where Debian's package dataset-fashion-mnist puts its files.
DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
DOWNLOADS = Path("data/fashion_mnist")


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """Labelled pictures, read when asked for."""

    classes: tuple[str, ...]
    """The name of each label."""
    labels: tuple[int, ...]
    """One label a picture, an index into classes."""
    names: Sequence[str]
    """What to call each picture: a path, or a number in the dataset."""
    read: Callable[[int], Image.Image]
    """The picture at an index, RGB. Raises InputError where its file cannot be read."""

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A dataset, split, and the preprocessing that suits it."""

    train: Pictures
    val: Pictures
    preprocess: Preprocess

    @property
    def all(self) -> Pictures:
        """Both halves together."""
        one, other = self.train, self.val
        return Pictures(classes=one.classes, labels=one.labels + other.labels,
                        names=[*one.names, *other.names], read=partial(_read_either, one, other))


def load_dataset(config: DataConfig) -> Dataset:
    """The dataset that `config` names.

    Raises InputError for a folder without pictures, with fewer than two classes, or with a class in
    val/ that train/ lacks.
    """
    if config.name == "digits":
        return digits(config.val_fraction, config.split_seed)
    if config.name == "fashion_mnist":
        return fashion_mnist(config.path)
    assert config.path is not None  # DataConfig requires it
    return folder(config.path, config.val_fraction, config.split_seed)


def relabel(pictures: Pictures, classes: tuple[str, ...]) -> Pictures:
    """The same pictures with labels that count in `classes`, matched by name.

    Raises InputError for a class that is not in `classes`.
    """
    if pictures.classes == classes:
        return pictures
    unknown = [name for name in pictures.classes if name not in classes]
    if unknown:
        raise InputError(f"the pictures have the class {unknown[0]!r}, which the model was not "
                         f"trained on; it knows {', '.join(classes[:10])}"
                         + (", ..." if len(classes) > 10 else ""))
    place = [classes.index(name) for name in pictures.classes]
    return replace(pictures, classes=classes,
                               labels=tuple(place[label] for label in pictures.labels))


def digits(val_fraction: float = 0.2, seed: int = 0) -> Dataset:
    """The 1,797 handwritten digits of scikit-learn: 10 classes, 8x8 gray, seen at 32x32."""
    data = load_digits()
    pixels = (data.images * (255 / 16)).round().astype(np.uint8)  # samples are 0 to 16
    classes = tuple(str(name) for name in data.target_names)
    train, val = split_indices(data.target, val_fraction, seed, "digits")
    return Dataset(
        train=_arrays(pixels, data.target, classes, train, "digit"),
        val=_arrays(pixels, data.target, classes, val, "digit"),
        # Mean and deviation of the training pictures' samples, as fractions of full scale.
        preprocess=Preprocess(size=32, crop=1.0, mean=(0.305,) * 3, std=(0.376,) * 3))


def fashion_mnist(root: Path | None = None) -> Dataset:
    """Fashion-MNIST (Xiao et al., 2017): 10 classes of clothes, 28x28 gray, 60,000 and 10,000.

    The IDX files are read from `root`, by default from where Debian's package dataset-fashion-mnist
    puts them, else from data/fashion_mnist; where they are not, torchvision downloads them and
    checks their hashes. Raises InputError where that fails.
    """
    home = root or (DEBIAN_FASHION_MNIST if DEBIAN_FASHION_MNIST.is_dir() else DOWNLOADS)
    if not any(home.glob("train-images-idx3-ubyte*")):
        try:
            FashionMNIST(home, download=True)
        except (RuntimeError, OSError) as error:
            raise InputError(f"Fashion-MNIST could not be downloaded to {home}: {error}; put its "
                             "four IDX files there yourself, or install Debian's package "
                             "dataset-fashion-mnist") from None
        home = home / "FashionMNIST" / "raw"  # where torchvision puts them
    train, val = _idx_pair(home, "train"), _idx_pair(home, "t10k")
    return Dataset(
        train=_arrays(*train, FASHION_MNIST_CLASSES, np.arange(len(train[1])), "train"),
        val=_arrays(*val, FASHION_MNIST_CLASSES, np.arange(len(val[1])), "test"),
        # Mean and deviation of the training pictures' samples.
        preprocess=Preprocess(size=28, crop=1.0, mean=(0.2860,) * 3, std=(0.3530,) * 3))


def folder(root: Path, val_fraction: float = 0.2, seed: int = 0) -> Dataset:
    """Pictures sorted into one directory for each class.

    With `root`/train and `root`/val the split is yours; otherwise a `val_fraction` of each class is
    held out, the same pictures for the same `seed`.
    """
    if not root.is_dir():
        raise InputError(f"data.root={root} is not a directory; give one with train/ and val/, or "
                         "with one sub-directory for each class")
    preprocess = Preprocess(mean=IMAGENET_MEAN, std=IMAGENET_STD)
    halves = [name for name in ("train", "val") if (root / name).is_dir()]
    if len(halves) == 1:
        other = "val" if halves == ["train"] else "train"
        raise InputError(f"{root} has {halves[0]}/ but no {other}/; add it, or give a directory "
                         "with one sub-directory for each class, to be split by data.val_fraction")
    if halves:
        classes, paths, labels = _scan(root / "train")
        val_classes, val_paths, val_labels = _scan(root / "val", least=1)
        extra = sorted(set(val_classes) - set(classes))
        if extra:
            raise InputError(f"{root / 'val'} has the class {extra[0]!r}, which {root / 'train'} "
                             "lacks; add training pictures of it or move it away")
        place = [classes.index(name) for name in val_classes]
        return Dataset(train=_files(classes, paths, labels),
                       val=_files(classes, val_paths, [place[label] for label in val_labels]),
                       preprocess=preprocess)
    classes, paths, labels = _scan(root)
    chosen = split_indices(np.array(labels), val_fraction, seed, str(root))
    train_set, val_set = (_files(classes, [paths[i] for i in part], [labels[i] for i in part])
                          for part in chosen)
    return Dataset(train=train_set, val=val_set, preprocess=preprocess)


def split_indices(labels: np.ndarray, val_fraction: float, seed: int,
                  name: str) -> tuple[np.ndarray, np.ndarray]:
    """Sorted indices of the training and held-out pictures, the same fraction of each class."""
    few = [int(label) for label, n in zip(*np.unique(labels, return_counts=True), strict=True)
           if n < 2]
    if few:
        raise InputError(f"{name} has a class (number {few[0]}) with one picture, which cannot be "
                         "both trained on and held out; add pictures, or make train/ and val/")
    try:
        train, val = train_test_split(np.arange(len(labels)), test_size=val_fraction,
                                      random_state=seed, stratify=labels)
    except ValueError as error:
        raise InputError(f"{name} cannot be split with data.val_fraction={val_fraction}: {error}"
                         ) from None
    return np.sort(train), np.sort(val)


def _arrays(pixels: np.ndarray, labels: np.ndarray, classes: tuple[str, ...], indices: np.ndarray,
            word: str) -> Pictures:
    return Pictures(classes=classes, labels=tuple(int(label) for label in labels[indices]),
                    names=[f"{word} {i}" for i in indices],
                    read=partial(_read_array, pixels[indices]))


def _files(classes: tuple[str, ...], paths: Sequence[Path], labels: Sequence[int]) -> Pictures:
    return Pictures(classes=classes, labels=tuple(labels), names=[str(p) for p in paths],
                    read=partial(_read_file, paths))


# Module functions, not closures: pictures travel to worker processes, which pickle them.
def _read_array(pixels: np.ndarray, index: int) -> Image.Image:
    return Image.fromarray(pixels[index]).convert("RGB")


def _read_file(paths: Sequence[Path], index: int) -> Image.Image:
    return read_image(paths[index])


def _read_either(one: Pictures, other: Pictures, index: int) -> Image.Image:
    return one.read(index) if index < len(one) else other.read(index - len(one))


def _scan(root: Path, least: int = 2) -> tuple[tuple[str, ...], list[Path], list[int]]:
    """The classes of a directory, at least `least`, its pictures, and their labels."""
    found = {d.name: list_images(d) for d in sorted(root.iterdir())
             if d.is_dir() and not d.name.startswith(".")}
    found = {name: paths for name, paths in found.items() if paths}
    if not found:
        raise InputError(f"{root} has no pictures in sub-directories; make one sub-directory for "
                         "each class and put its pictures there")
    if len(found) < least:
        raise InputError(f"{root} has the one class {next(iter(found))!r}; classifying takes at "
                         "least two sub-directories with pictures")
    classes = tuple(found)
    paths = [path for name in classes for path in found[name]]
    labels = [label for label, name in enumerate(classes) for _ in found[name]]
    return classes, paths, labels


def _idx_pair(home: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Pictures (n, H, W) and labels (n,), uint8, of one half of a dataset in IDX format."""
    images = _idx(home / f"{name}-images-idx3-ubyte", 3)
    labels = _idx(home / f"{name}-labels-idx1-ubyte", 1)
    if len(images) != len(labels):
        raise InputError(f"{home} has {len(images)} {name} pictures but {len(labels)} labels; copy "
                         "its IDX files again")
    return images, labels


def _idx(path: Path, ndim: int) -> np.ndarray:
    """An IDX file of unsigned bytes in `ndim` dimensions, gzipped or not."""
    packed = path.with_name(path.name + ".gz")
    try:
        data = path.read_bytes() if path.is_file() else gzip.decompress(packed.read_bytes())
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{packed} is damaged ({error}); copy it again") from None
    shape = tuple(int(n) for n in np.frombuffer(data, ">i4", ndim, offset=4)
                  ) if len(data) >= 4 + 4 * ndim else ()
    # The first word is two zero bytes, 8 for unsigned bytes, and the number of dimensions.
    if data[:4] != bytes((0, 0, 8, ndim)) or len(data) != 4 + 4 * ndim + math.prod(shape):
        raise InputError(f"{path} is not an IDX file of bytes in {ndim} dimensions, or is cut off; "
                         "copy it again")
    return np.frombuffer(data, np.uint8, offset=4 + 4 * ndim).reshape(shape)
