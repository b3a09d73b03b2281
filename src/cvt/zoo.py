"""Every published CvT by name: where its weights are, what computes them, what they reach.

microsoft's are on the hub, those of `cvt_nano` in this package. A name is a variant (`cvt_13`: the
network, untrained) or a tag (`cvt_13.msft_in1k`: the network with these weights). Wherever the
package takes a model, it takes a tag, a path or `hf-hub:org/name`.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from cvt.config import VARIANTS, Act, Preprocess, imagenet_preprocess

_SHIPPED = Path(__file__).parent / "weights/shipped"


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """A row of the zoo: one set of weights."""

    variant: str
    """The network, a key of VARIANTS."""
    repo: str | None = None
    """The hub's repository, with the weights in the names of transformers; None for weights that
    lie in this package, in shipped/TAG/."""
    file: str | None = None
    """What the official release called the file."""
    trained_on: tuple[str, ...]
    """The datasets it learned from, in the hub's words where it has them; the last has its
    classes."""
    preprocess: Preprocess
    """From an image to the network's input."""
    tested_on: str
    """The labelled images that the figures are of."""
    n: int
    """How many they are."""
    paper_top1: float | None = None
    """Top-1 in percent, Table 3 of the paper."""
    measured_top1: float
    """Top-1 in percent: microsoft's as others measured it (README of the PaddleViT port), ours as
    benchmarks/shipped.py did."""
    measured_top5: float
    """Top-5 of the same measurement."""
    act: Act = "quick_gelu"
    """The activation that the weights were trained with."""
    revision: str = "main"
    """The repository's revision: a branch, a tag or a commit."""
    licence: str = "apache-2.0"
    """As the repository's card says, or the one in shipped/TAG/."""

    @property
    def size(self) -> int:
        """Side in pixels of the images it sees."""
        return self.preprocess.size


def _msft(variant: str, repo: str, file: str, size: int, *top: float) -> Pretrained:
    return Pretrained(variant=variant, repo=f"microsoft/{repo}", file=file,
                      preprocess=imagenet_preprocess(size),
                      trained_on=(*(["imagenet-21k"] if "22k" in repo else []), "imagenet-1k"),
                      tested_on="ImageNet-1k", n=50000,
                      paper_top1=top[0], measured_top1=top[1], measured_top5=top[2])


def _ours(variant: str, data: str, preprocess: Preprocess, tested_on: str, n: int, *top: float
          ) -> Pretrained:
    return Pretrained(variant=variant, trained_on=(data,), preprocess=preprocess,
                      tested_on=tested_on, n=n, measured_top1=top[0], measured_top5=top[1])


ZOO: Mapping[str, Pretrained] = {
    "cvt_13.msft_in1k":
        _msft("cvt_13", "cvt-13", "CvT-13-224x224-IN-1k.pth", 224, 81.6, 81.59, 95.72),
    "cvt_13.msft_in1k_384":
        _msft("cvt_13", "cvt-13-384", "CvT-13-384x384-IN-1k.pth", 384, 83.0, 83.00, 96.36),
    "cvt_13.msft_in22k_ft_in1k_384":
        _msft("cvt_13", "cvt-13-384-22k", "CvT-13-384x384-IN-22k.pth", 384, 83.3, 83.26, 97.09),
    "cvt_21.msft_in1k":
        _msft("cvt_21", "cvt-21", "CvT-21-224x224-IN-1k.pth", 224, 82.5, 82.52, 96.06),
    "cvt_21.msft_in1k_384":
        _msft("cvt_21", "cvt-21-384", "CvT-21-384x384-IN-1k.pth", 384, 83.3, 83.27, 96.16),
    "cvt_21.msft_in22k_ft_in1k_384":
        _msft("cvt_21", "cvt-21-384-22k", "CvT-21-384x384-IN-22k.pth", 384, 84.9, 84.91, 97.62),
    "cvt_w24.msft_in22k_ft_in1k_384":
        _msft("cvt_w24", "cvt-w24-384-22k", "CvT-w24-384x384-IN-22k.pth", 384, 87.7, 87.58, 98.47),
    "cvt_nano.fashion_mnist":
        _ours("cvt_nano", "zalando-datasets/fashion_mnist",
              Preprocess(size=28, crop=1.0, mean=(0.286,) * 3, std=(0.353,) * 3),
              "Fashion-MNIST, test", 10000, 93.58, 99.86),
    "cvt_nano.digits":
        _ours("cvt_nano", "digits",
              Preprocess(size=16, crop=1.0, mean=(0.305,) * 3, std=(0.376,) * 3),
              "digits, held out", 360, 99.17, 100.00),
}
"""The row of every tag, by which `create_model` and `load_model` know it."""


def shipped(name: str | Path) -> Path | None:
    """The directory in this package that holds the weights of a tag; None for any other name."""
    row = ZOO.get(str(name))
    return _SHIPPED / str(name) if row and row.repo is None else None


def list_models(pattern: str = "*") -> list[str]:
    """Every name that `create_model` takes, variants and tags, that matches `pattern`.

    >>> list_models("cvt_w24*")
    ['cvt_w24', 'cvt_w24.msft_in22k_ft_in1k_384']
    """
    return sorted(name for name in (*VARIANTS, *ZOO) if fnmatchcase(name, pattern))


@functools.cache
def imagenet_classes() -> tuple[str, ...]:
    """The names of ImageNet's 1,000 classes, in the order of every checkpoint's logits."""
    from timm.data import ImageNetInfo  # where the names are, and slow to import

    info = ImageNetInfo()
    return tuple(info.index_to_description(i) for i in range(1000))
