"""The result of a check as plain data."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Kind = Literal["file", "pixels", "near"]
"""Why images are duplicates. file: equal files. pixels: different files of equal pixels. near: they
look alike."""


@dataclass(frozen=True, kw_only=True)
class ImageSource:
    """An image of the dataset."""

    split: Literal["train", "val"]
    name: str
    """Its path, or its name in the source."""
    label: str
    """The name of its class."""


@dataclass(frozen=True, kw_only=True)
class Unreadable(ImageSource):
    """An image that training and evaluation cannot read."""

    reason: str
    """One line, with the name of the image."""


@dataclass(frozen=True, kw_only=True)
class ClassCount:
    """The number of images of a class, unreadable ones included."""

    name: str
    train: int
    val: int
    unreadable: int


@dataclass(frozen=True, kw_only=True)
class Range:
    """Widths or heights of the images, in pixels."""

    min: int
    median: float
    max: int


@dataclass(frozen=True, kw_only=True)
class DuplicateGroup:
    """Images that are duplicates of each other, in the dataset's order."""

    kind: Kind
    images: tuple[ImageSource, ...]

    @property
    def conflicting_labels(self) -> bool:
        """Whether they have more than one label."""
        return len({image.label for image in self.images}) > 1


@dataclass(frozen=True, kw_only=True)
class Leak:
    """A validation image and its duplicate among the training images."""

    kind: Kind
    val: ImageSource
    train: ImageSource


@dataclass(frozen=True, kw_only=True)
class DatasetReport:
    """The result of `cvt.data.check.run.check`."""

    train: int
    """Training images."""
    val: int
    """Validation images."""
    classes: tuple[ClassCount, ...]
    """In the order of the labels."""
    left_out: dict[str, dict[str, int]]
    """What the source holds besides these images: the number of each suffix, by reason."""
    unreadable: tuple[Unreadable, ...]
    """All unreadable images, in the dataset's order; the fields below leave them out."""
    width: Range | None
    """None if no image is readable."""
    height: Range | None
    """None if no image is readable."""
    image_size: int
    """Pixels, side of the network's input."""
    smaller_than_input: int
    """Images whose short side is less than `image_size`."""
    modes: dict[str, int]
    """Number of images per mode in which they are stored: L is gray, P a palette, ..."""
    formats: dict[str, int]
    """Number of images per file format; empty for a source of arrays."""
    multi_frame: int
    """Images with several frames, of which the first is used."""
    exif_rotated: int
    """Images that their EXIF data rotates or mirrors."""
    blank: int
    """Images of (nearly) a single colour, which are not searched for near duplicates."""
    exact_duplicates: tuple[DuplicateGroup, ...]
    """Groups of equal images, of the kinds file and pixels."""
    near_duplicates: tuple[DuplicateGroup, ...]
    """Groups of images that look alike, equal ones included."""
    leaks: tuple[Leak, ...]
    """Validation images with a duplicate in train, each with at most `MAX_LEAKS_PER_IMAGE`
    training images."""

    @property
    def leaked(self) -> int:
        """Number of validation images with a duplicate in train."""
        return len({leak.val.name for leak in self.leaks})

    @property
    def has_errors(self) -> bool:
        """Whether there are unreadable images or leaks."""
        return bool(self.unreadable or self.leaks)

    @property
    def imbalance(self) -> float:
        """Training images of the largest class, divided by those of the smallest that has any."""
        counts = [c.train for c in self.classes if c.train]
        return max(counts) / min(counts) if counts else 1.0

    def classes_without(self, split: Literal["train", "val"]) -> tuple[str, ...]:
        """Names of the classes that have no image in that split."""
        return tuple(c.name for c in self.classes if not getattr(c, split))

    def to_dict(self) -> dict[str, Any]:
        """The report and its properties as plain data for JSON."""
        groups = {key: [{**asdict(group), "conflicting_labels": group.conflicting_labels}
                        for group in getattr(self, key)]
                  for key in ("exact_duplicates", "near_duplicates")}
        return {**asdict(self), "imbalance": self.imbalance, "leaked": self.leaked,
                "classes_without_train": list(self.classes_without("train")),
                "classes_without_val": list(self.classes_without("val")), **groups}
