"""All pretrained weights by tag: where they are, their configuration and their accuracy.

microsoft's are on the Hugging Face hub, those of `cvt_nano` in this package. A name is a variant
(`cvt_13`, an untrained network) or a tag (`cvt_13.msft_in1k`, a network with weights). Wherever the
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
    """One set of pretrained weights."""

    variant: str
    """Network: a key of VARIANTS."""
    repo: str | None = None
    """Repository on the hub, in the format of transformers; None for weights in this package, in
    weights/shipped/TAG/."""
    file: str | None = None
    """File name in the official release."""
    trained_on: tuple[str, ...]
    """Training datasets, by their names on the hub if they are there; the last one defines the
    classes."""
    preprocess: Preprocess
    """Preprocessing from an image to the network's input."""
    tested_on: str
    """Test set of the measured accuracies."""
    n: int
    """Number of images of the test set."""
    paper_top1: float | None = None
    """Top-1 in percent from Table 3 of the paper."""
    measured_top1: float
    """Top-1 in percent as measured: for microsoft's by others (README of the PaddleViT port), for
    ours by benchmarks/shipped.py."""
    measured_top5: float
    """Top-5 in percent of the same measurement."""
    act: Act = "quick_gelu"
    """Activation that the weights were trained with."""
    revision: str = "main"
    """Revision of the repository: a branch, a tag or a commit."""
    license: str = "apache-2.0"
    """License from the model card of the repository, or of weights/shipped/TAG/."""

    @property
    def size(self) -> int:
        """Image side in pixels."""
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
"""The weights of every tag that `create_model` and `load_model` take."""


def shipped(name: str | Path) -> Path | None:
    """Directory of weights in this package for a tag; None for any other name."""
    row = ZOO.get(str(name))
    return _SHIPPED / str(name) if row and row.repo is None else None


def list_models(pattern: str = "*") -> list[str]:
    """Names of variants and tags for `create_model` that match the shell-style `pattern`.

    >>> list_models("cvt_w24*")
    ['cvt_w24', 'cvt_w24.msft_in22k_ft_in1k_384']
    """
    return sorted(name for name in (*VARIANTS, *ZOO) if fnmatchcase(name, pattern))


@functools.cache
def imagenet_classes() -> tuple[str, ...]:
    """Names of the 1,000 classes of ImageNet, in the order of the logits."""
    from timm.data import ImageNetInfo  # slow to import

    info = ImageNetInfo()
    return tuple(info.index_to_description(i) for i in range(1000))
