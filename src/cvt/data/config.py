"""Which images, and how they are varied in training, as data. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cvt.system.errors import InputError
from cvt.system.schema import check, check_default, check_types


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """A dataset and its split into training and validation images."""

    name: Literal["digits", "fashion_mnist", "folder", "manifest", "huggingface",
                  "shards"] = "digits"
    """digits: 1,797 handwritten digits inside scikit-learn, no download. fashion_mnist: 60,000
    training and 10,000 test images of clothes. Your own, see root: folder, manifest (a table),
    huggingface (the library `datasets`), shards (tar archives)."""
    root: str | None = None
    """folder: a directory with train/ and val/, or with one sub-directory for each class, split by
    val_fraction. manifest: a CSV or Parquet file with the columns path, label and maybe split.
    huggingface: a name on the hub or a directory. shards: a directory with train-*.tar and
    val-*.tar in WebDataset's layout. fashion_mnist: where the IDX files are or shall be downloaded
    to; by default where Debian's package dataset-fashion-mnist puts them, else
    data/fashion_mnist."""
    val_fraction: float = 0.2
    """Fraction of each class held out for validation, in (0, 1), where the dataset has no split of
    its own."""
    split_seed: int = 0
    """Seed of that split; it does not depend on the training seed."""
    subset: str | None = None
    """huggingface: which configuration of the dataset, where it has several."""
    image_column: str | None = None
    """huggingface: the column of images, where it has several."""
    label_column: str | None = None
    """huggingface: the column of class labels, where it has several."""
    val_split: str | None = None
    """huggingface: the split to validate on; by default validation, else test."""
    max_unreadable: float = 0.05
    """Fraction of the images that may be unreadable, in [0, 1]. They are listed; in training
    others take their places, in validation they count as wrong. With more the run ends."""
    workers: int = 0
    """Processes that read and augment images beside the training process; 0 for none."""

    def __post_init__(self) -> None:
        check_types(self)
        check(0 < self.val_fraction < 1, f"val_fraction={self.val_fraction} must be in (0, 1)")
        check(0 <= self.max_unreadable <= 1,
              f"max_unreadable={self.max_unreadable} must be in [0, 1]")
        check(self.workers >= 0, f"workers={self.workers} must not be negative")
        if self.name not in ("digits", "fashion_mnist") and self.root is None:
            raise InputError(f"data.name={self.name} needs data.root, where the images are")
        if self.name == "digits" and self.root is not None:
            raise InputError(f"data.root={self.root} means nothing to digits, which are part of "
                             "scikit-learn; for your own images set data.name=folder")
        for name in ("subset", "image_column", "label_column", "val_split"):
            if self.name != "huggingface" and getattr(self, name) is not None:
                raise InputError(f"data.{name}={getattr(self, name)} is for "
                                 f"data.name=huggingface, not {self.name}")

    @property
    def path(self) -> Path | None:
        """`root` as a path."""
        return None if self.root is None else Path(self.root)


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """How training images are varied; the defaults vary nothing.

    The paper's recipe is crop="resized", hflip=0.5, color_jitter=0.4,
    rand_augment="rand-m9-mstd0.5-inc1", erasing=0.25, mixup=0.8, cutmix=1.0 with label smoothing
    0.1 (microsoft/CvT, experiments/imagenet/cvt).
    """

    crop: Literal["none", "shift", "resized"] = "none"
    """none: as in evaluation. shift: pad by an eighth of the side, cut at a random place. resized:
    cut a random part of random shape and resize it (Inception style)."""
    scale: tuple[float, float] = (0.08, 1.0)
    """Least and largest part of the area that crop="resized" keeps, in (0, 1]."""
    hflip: float = 0.0
    """Probability of a mirror image."""
    color_jitter: float = 0.0
    """Brightness, contrast and saturation change by a factor of up to 1 +- this; not together with
    rand_augment, which changes colours itself."""
    rand_augment: str = ""
    """RandAugment in timm's notation, such as rand-m9-mstd0.5-inc1; empty for none."""
    erasing: float = 0.0
    """Probability that a random rectangle is replaced by noise (Zhong et al., 2020)."""
    mixup: float = 0.0
    """Beta parameter of mixup (Zhang et al., 2018); 0 for none. A batch is mixed with itself in
    reverse order, targets as images, with one weight for all of it."""
    cutmix: float = 0.0
    """Beta parameter of CutMix (Yun et al., 2019); 0 for none. Targets are mixed by the area that
    is pasted. With both, each batch draws one, each as likely."""
    mix_prob: float = 1.0
    """Probability that a batch is mixed at all, by mixup or CutMix."""
    repeats: int = 1
    """Times that an image comes in a row, each time varied anew (Hoffer et al., 2020); an epoch
    then has as many fewer images."""
    label_smoothing: float = 0.0
    """Share of the target spread evenly over all classes, in [0, 1); of a mixed image's target,
    once. A teacher's answers are not smoothed."""

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("hflip", "erasing", "mix_prob"):
            check(0 <= getattr(self, name) <= 1, f"{name}={getattr(self, name)} must be in [0, 1]")
        for name in ("color_jitter", "mixup", "cutmix"):
            check(getattr(self, name) >= 0, f"{name}={getattr(self, name)} must not be negative")
        check(self.repeats >= 1, f"repeats={self.repeats} must be at least 1")
        check(0 <= self.label_smoothing < 1,
              f"label_smoothing={self.label_smoothing} must be in [0, 1)")
        check(self.crop == "resized" or self.scale == AugmentConfig.scale,
              f"scale={self.scale} is what crop='resized' keeps; set it, or leave scale out")
        check_default(self, "mix_prob", self.mixup > 0 or self.cutmix > 0,
                      "there is neither augment.mixup nor augment.cutmix")
        check_default(self, "repeats", any((
            self.crop != "none", self.hflip, self.color_jitter, self.rand_augment, self.erasing,
            self.mixes)), "nothing varies an image from one time to the next")
        check(len(self.scale) == 2 and 0 < self.scale[0] <= self.scale[1] <= 1,
              f"scale={self.scale} must be two rising fractions in (0, 1]")
        if self.rand_augment:
            check(self.rand_augment.startswith("rand-"), f"rand_augment={self.rand_augment!r} must "
                  "start with 'rand-', such as rand-m9-mstd0.5-inc1")
            check(self.color_jitter == 0, "rand_augment changes colours itself; set color_jitter=0 "
                  "or rand_augment=''")

    @property
    def mixes(self) -> bool:
        """Whether batches are mixed."""
        return (self.mixup > 0 or self.cutmix > 0) and self.mix_prob > 0
