"""Datasets that come with a package or are downloaded: scikit-learn's digits and Fashion-MNIST."""

from __future__ import annotations

import gzip
import math
import zlib
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits
from torchvision.datasets import FashionMNIST

from cvt.config import Preprocess
from cvt.data.dataset import Dataset, LabeledImages, split
from cvt.system.errors import InputError

FASHION_MNIST_CLASSES = ("T-shirt", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt",
                         "Sneaker", "Bag", "Ankle boot")
# Where Debian's package dataset-fashion-mnist puts its files.
DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
DOWNLOADS = Path("data/fashion_mnist")


def digits(val_fraction: float = 0.2, seed: int = 0) -> Dataset:
    """The 1,797 handwritten digits of scikit-learn: 10 classes, 8x8 gray, resized to 32x32."""
    data = load_digits()
    pixels = (data.images * (255 / 16)).round().astype(np.uint8)  # samples are 0 to 16
    classes = tuple(str(name) for name in data.target_names)
    return replace(
        split(_from_arrays(pixels, data.target, classes, "digit"), val_fraction, seed, "digits"),
        # Mean and standard deviation of the training images, as fractions of full scale.
        preprocess=Preprocess(size=32, crop=1.0, mean=(0.305,) * 3, std=(0.376,) * 3))


def fashion_mnist(root: Path | None = None) -> Dataset:
    """Fashion-MNIST (Xiao et al., 2017): 10 classes of clothes, 28x28 gray, 60,000 training and
    10,000 test images.

    Reads the IDX files in `root`, by default those of Debian's package dataset-fashion-mnist if it
    is installed, else those in data/fashion_mnist. If they are missing, torchvision downloads them
    and verifies their checksums. Raises InputError if that fails.
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
        train=_from_arrays(*train, FASHION_MNIST_CLASSES, "train"),
        val=_from_arrays(*val, FASHION_MNIST_CLASSES, "test"),
        # Mean and standard deviation of the training images.
        preprocess=Preprocess(size=28, crop=1.0, mean=(0.2860,) * 3, std=(0.3530,) * 3))


def _from_arrays(pixels: np.ndarray, labels: np.ndarray, classes: tuple[str, ...], prefix: str
                 ) -> LabeledImages:
    """Images from gray pixels (n, H, W) uint8, named by `prefix` and their index."""
    return LabeledImages(classes=classes, labels=tuple(labels.tolist()),
                         names=[f"{prefix} {i}" for i in range(len(labels))],
                         fetch=partial(_fetch, pixels))


def _fetch(pixels: np.ndarray, index: int) -> Image.Image:
    return Image.fromarray(pixels[index]).convert("RGB")


def _idx_pair(home: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, H, W) and labels (n,), uint8, of one split in IDX format."""
    images = _read_idx(home / f"{name}-images-idx3-ubyte", 3)
    labels = _read_idx(home / f"{name}-labels-idx1-ubyte", 1)
    if len(images) != len(labels):
        raise InputError(f"{home} has {len(images)} {name} images but {len(labels)} labels; copy "
                         "its IDX files again")
    if labels.max(initial=0) >= len(FASHION_MNIST_CLASSES):
        raise InputError(f"{home} has the {name} label {labels.max()}, and Fashion-MNIST has "
                         f"{len(FASHION_MNIST_CLASSES)} classes; these are the files of another "
                         "dataset")
    return images, labels


def _read_idx(path: Path, ndim: int) -> np.ndarray:
    """An IDX file of unsigned bytes in `ndim` dimensions, gzipped or not."""
    gzipped = path.with_name(path.name + ".gz")
    try:
        data = path.read_bytes() if path.is_file() else gzip.decompress(gzipped.read_bytes())
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{gzipped} is corrupt ({error}); copy it again") from None
    shape = tuple(int(n) for n in np.frombuffer(data, ">i4", ndim, offset=4)
                  ) if len(data) >= 4 + 4 * ndim else ()
    # The first word is two zero bytes, 8 for unsigned bytes, and the number of dimensions.
    if data[:4] != bytes((0, 0, 8, ndim)) or len(data) != 4 + 4 * ndim + math.prod(shape):
        raise InputError(f"{path} is not an IDX file of bytes in {ndim} dimensions, or is "
                         "truncated; copy it again")
    return np.frombuffer(data, np.uint8, offset=4 + 4 * ndim).reshape(shape)
