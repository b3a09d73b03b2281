"""Configuration of the dataset and of the augmentation. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cvt.system.errors import InputError
from cvt.system.schema import check, check_default, check_types


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Dataset, and its split into training and validation images."""

    name: Literal["digits", "fashion_mnist", "folder", "manifest", "huggingface",
                  "shards"] = "digits"
    """Source of the images. digits: 1,797 handwritten digits that come with scikit-learn.
    fashion_mnist: 60,000 training and 10,000 test images of clothes. For your own images, see
    root: folder, manifest (a table), huggingface (the library `datasets`), shards (tar
    archives)."""
    root: str | None = None
    """Location of the images. folder: a directory with train/ and val/, or with one sub-directory
    per class, which is split by val_fraction. manifest: a CSV or Parquet file with the columns
    path, label and optionally split; others are ignored. huggingface: a dataset on the hub or a
    directory. shards: a directory with train-*.tar and val-*.tar in WebDataset's layout.
    fashion_mnist: the directory of the IDX files, which are downloaded if missing; by default that
    of Debian's package dataset-fashion-mnist if it is installed, else data/fashion_mnist."""
    val_fraction: float = 0.2
    """Fraction of each class that is held out for validation, in (0, 1), if the dataset has no
    split of its own."""
    split_seed: int = 0
    """Seed of that split, independent of the training seed."""
    subset: str | None = None
    """huggingface: the configuration of the dataset, if it has several."""
    image_column: str | None = None
    """huggingface: the column of images, if there are several."""
    path_column: str | None = None
    """manifest: the column of paths; by default path."""
    label_column: str | None = None
    """The column of class labels. manifest: by default label; huggingface: needed if there are
    several."""
    val_split: str | None = None
    """huggingface: the validation split; by default validation, else test."""
    max_unreadable: float = 0.05
    """Maximum fraction of unreadable images, in [0, 1]; with more, the run ends. Unreadable images
    are listed. In training they are replaced by others, in validation they count as wrong."""
    workers: int = 0
    """Number of worker processes that read and augment images; 0 does so in the training
    process."""

    def __post_init__(self) -> None:
        check_types(self)
        check(0 < self.val_fraction < 1, f"val_fraction={self.val_fraction} must be in (0, 1)")
        check(0 <= self.max_unreadable <= 1,
              f"max_unreadable={self.max_unreadable} must be in [0, 1]")
        check(self.workers >= 0, f"workers={self.workers} must not be negative")
        if self.name not in ("digits", "fashion_mnist") and self.root is None:
            raise InputError(f"data.name={self.name} needs data.root, the location of the images")
        if self.name == "digits" and self.root is not None:
            raise InputError(f"data.root={self.root} has no effect on digits, which come "
                             "with scikit-learn; for your own images set data.name=folder")
        for name, sources in (("subset", ["huggingface"]), ("image_column", ["huggingface"]),
                              ("path_column", ["manifest"]), ("val_split", ["huggingface"]),
                              ("label_column", ["huggingface", "manifest"])):
            if self.name not in sources and getattr(self, name) is not None:
                raise InputError(f"data.{name}={getattr(self, name)} is for "
                                 f"data.name={' and '.join(sources)}, not {self.name}")

    @property
    def path(self) -> Path | None:
        """`root` as a path."""
        return None if self.root is None else Path(self.root)


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Augmentation of training images; off by default.

    The paper's recipe is crop="resized", hflip=0.5, color_jitter=0.4,
    rand_augment="rand-m9-mstd0.5-inc1", erasing=0.25, mixup=0.8, cutmix=1.0 with label smoothing
    0.1 (microsoft/CvT, experiments/imagenet/cvt).
    """

    crop: Literal["none", "shift", "resized"] = "none"
    """Random crop. none: as in evaluation. shift: pad by an eighth of the side and crop at a random
    place. resized: crop a random area and aspect ratio and resize it (RandomResizedCrop)."""
    scale: tuple[float, float] = (0.08, 1.0)
    """Minimum and maximum fraction of the area that crop="resized" keeps, in (0, 1]."""
    hflip: float = 0.0
    """Probability of a horizontal flip."""
    color_jitter: float = 0.0
    """Strength of color jitter: brightness, contrast and saturation are scaled by a factor in
    1 +- this. Excludes rand_augment, which changes colours itself."""
    rand_augment: str = ""
    """RandAugment in timm's notation, such as rand-m9-mstd0.5-inc1; empty disables it."""
    erasing: float = 0.0
    """Probability of random erasing: a random rectangle is replaced by noise (Zhong et al.,
    2020)."""
    mixup: float = 0.0
    """Alpha of mixup's Beta distribution (Zhang et al., 2018); 0 disables it. Each batch is mixed
    with itself in reverse order, images and targets, with one weight per batch."""
    cutmix: float = 0.0
    """Alpha of CutMix's Beta distribution (Yun et al., 2019); 0 disables it. Targets are mixed in
    proportion to the pasted area. With mixup too, each batch uses one of both, equally likely."""
    mix_prob: float = 1.0
    """Probability that a batch is mixed, by mixup or CutMix."""
    repeats: int = 1
    """Repeated augmentation: number of times that each image occurs in a row, each time augmented
    anew (Hoffer et al., 2020). An epoch keeps its length, so it has that many times fewer
    different images."""
    label_smoothing: float = 0.0
    """Label smoothing: fraction of the target that is spread evenly over all classes, in [0, 1).
    The target of a mixed image is smoothed once; a teacher's predictions are not smoothed."""

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
              f"scale={self.scale} is for crop='resized' alone; set that, or leave scale out")
        check_default(self, "mix_prob", self.mixup > 0 or self.cutmix > 0,
                      "augment.mixup and augment.cutmix are both 0")
        check_default(self, "repeats", any((
            self.crop != "none", self.hflip, self.color_jitter, self.rand_augment, self.erasing,
            self.mixes)), "without augmentation, repeats of an image are equal")
        check(len(self.scale) == 2 and 0 < self.scale[0] <= self.scale[1] <= 1,
              f"scale={self.scale} must be two increasing fractions in (0, 1]")
        if self.rand_augment:
            check(self.rand_augment.startswith("rand-"), f"rand_augment={self.rand_augment!r} must "
                  "start with 'rand-', such as rand-m9-mstd0.5-inc1")
            check(self.color_jitter == 0, "rand_augment changes colours itself; set color_jitter=0 "
                  "or rand_augment=''")

    @property
    def mixes(self) -> bool:
        """Whether batches are mixed."""
        return (self.mixup > 0 or self.cutmix > 0) and self.mix_prob > 0


def guess_source(root: str) -> str:
    """The `DataConfig.name` that suits `root`: manifest for a table, shards for a directory of tar
    archives, huggingface for a directory that `save_to_disk` wrote, else folder."""
    path = Path(root)
    if path.suffix.lower() in (".csv", ".tsv", ".parquet") and not path.is_dir():
        return "manifest"
    if path.is_dir() and _has_archives(path):
        return "shards"
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        return "huggingface"
    return "folder"


def _has_archives(root: Path) -> bool:
    """Whether there are tar archives in it, without the images that were unpacked from them, or in
    a directory in it."""
    from cvt.data.listing import LeftOut, is_hidden, list_directories, list_images  # slow to import

    def archives(home: Path) -> bool:
        return any(not is_hidden(path.name) for path in home.glob("*.tar"))

    directories = [root / name for name in list_directories(root, LeftOut())]
    homes = [home for home in (root, *directories) if archives(home)]
    return bool(homes) and not any(
        list_images(home) for home in (directories if homes == [root] else homes) if home.is_dir())
