"""Read every image of a dataset and report what is wrong with it."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cvt.config import Preprocess
from cvt.data.check.contact_sheet import contact_sheet
from cvt.data.check.duplicates import (
    THUMBNAIL_SIDE,
    Duplicates,
    PerceptualHash,
    perceptual_hash,
)
from cvt.data.check.report import (
    ClassCount,
    DatasetReport,
    DuplicateGroup,
    ImageSource,
    Leak,
    Range,
    Unreadable,
)
from cvt.data.dataset import Dataset, LabeledImages
from cvt.data.images import Header, decode, read_header
from cvt.data.parallel import in_threads
from cvt.data.preprocess import check_aspect_ratio
from cvt.data.sources.manifest import save_manifest
from cvt.data.unreadable import unreadable_reason
from cvt.system.errors import InputError
from cvt.system.files import replace_file
from cvt.system.schema import write_mapping

REPORT, MANIFEST, SHEET = "check.json", "manifest.csv", "contact_sheet.png"


def check(dataset: Dataset, preprocess: Preprocess | None = None,
          progress: Callable[[int, int], object] | None = None) -> DatasetReport:
    """Read every image of `dataset` and compare each with all others.

    preprocess: of the network, by default of the dataset. progress: called with the number of
    images done and in total. Only hashes and a thumbnail of 16x16 pixels are kept of an image. Near
    duplicates, as `cvt.data.check.duplicates` defines them, are copies that were resized,
    recompressed or brightened a little, but not cropped or mirrored.
    """
    images = dataset.all
    preprocess = preprocess or dataset.preprocess
    summaries = _Summaries(len(images))
    for i, summary in enumerate(in_threads(partial(_summarize, images, preprocess),
                                           range(len(images)))):
        summaries.add(i, summary)
        if progress:
            progress(i + 1, len(images))
    duplicates = Duplicates(summaries.pixels, summaries.files, summaries.bits,
                            summaries.thumbnails, len(dataset.train))

    def source(i: int) -> ImageSource:
        return ImageSource(split="train" if i < len(dataset.train) else "val",
                           name=images.names[i], label=images.classes[images.labels[i]])

    sizes = summaries.sizes[summaries.pixels >= 0]
    return DatasetReport(
        train=len(dataset.train), val=len(dataset.val), classes=_class_counts(dataset, summaries),
        left_out=dataset.left_out.to_dict(),
        unreadable=tuple(Unreadable(**asdict(source(i)), reason=reason)
                         for i, reason in summaries.reasons.items()),
        width=_range(sizes[:, 0]), height=_range(sizes[:, 1]), image_size=preprocess.size,
        smaller_than_input=int((sizes.min(1) < preprocess.size).sum()) if len(sizes) else 0,
        modes=_by_count(summaries.modes), formats=_by_count(summaries.formats),
        multi_frame=summaries.multi_frame, exif_rotated=summaries.exif_rotated,
        blank=duplicates.blank,
        exact_duplicates=tuple(
            DuplicateGroup(kind=duplicates.kind(group), images=tuple(map(source, group)))
            for group in duplicates.exact()),
        near_duplicates=tuple(DuplicateGroup(kind="near", images=tuple(map(source, group)))
                              for group in duplicates.near()),
        leaks=tuple(Leak(kind=kind, val=source(val), train=source(train))
                    for val, train, kind in duplicates.leaks()))


class _Summary(NamedTuple):
    """What is kept of an image."""

    file: bytes  # SHA-256 of its file; empty if it does not come from a file
    pixels: bytes  # SHA-256 of its size and pixels
    hash: PerceptualHash
    size: tuple[int, int]
    header: Header


def _summarize(images: LabeledImages, preprocess: Preprocess, index: int) -> _Summary | str:
    """What is kept of an image, or why it cannot be read."""
    name = images.names[index]
    try:
        data = images.fetch(index)
        image = decode(data, name)
        check_aspect_ratio(preprocess, *image.size)
        return _Summary(
            file=hashlib.sha256(data).digest() if isinstance(data, bytes) else b"",
            pixels=hashlib.sha256(b"%dx%d" % image.size + image.tobytes()).digest(),
            hash=perceptual_hash(image), size=image.size, header=read_header(data))
    except (InputError, OSError) as error:
        return unreadable_reason(error, name)


class _Summaries:
    """What is kept of n images, in arrays, because there may be millions."""

    def __init__(self, n: int) -> None:
        self.reasons: dict[int, str] = {}  # in the dataset's order
        self.pixels = np.full(n, -1, np.int64)  # equal for equal pixels, -1 if unreadable
        self.files = np.full(n, -1, np.int64)  # equal for equal files, -1 if not from a file
        self.bits = np.zeros(n, np.uint64)
        self.thumbnails = np.zeros((n, THUMBNAIL_SIDE, THUMBNAIL_SIDE), np.uint8)
        self.sizes = np.zeros((n, 2), np.int32)
        self.modes: Counter[str] = Counter()
        self.formats: Counter[str] = Counter()
        self.multi_frame = self.exif_rotated = 0
        self._pixel_hashes: dict[bytes, int] = {}
        self._file_hashes: dict[bytes, int] = {}

    def add(self, i: int, summary: _Summary | str) -> None:
        if isinstance(summary, str):
            self.reasons[i] = summary
            return
        self.pixels[i] = self._pixel_hashes.setdefault(summary.pixels, len(self._pixel_hashes))
        if summary.file:
            self.files[i] = self._file_hashes.setdefault(summary.file, len(self._file_hashes))
        self.bits[i], self.thumbnails[i] = summary.hash
        self.sizes[i] = summary.size
        self.modes[summary.header.mode] += 1
        self.formats.update(filter(None, [summary.header.format]))
        self.multi_frame += summary.header.multi_frame
        self.exif_rotated += summary.header.exif_rotated


def _class_counts(dataset: Dataset, summaries: _Summaries) -> tuple[ClassCount, ...]:
    classes = dataset.train.classes
    unreadable = np.array(dataset.all.labels)[list(summaries.reasons)]
    counts = [np.bincount(np.array(labels, np.int64), minlength=len(classes)).tolist()
              for labels in (dataset.train.labels, dataset.val.labels, unreadable)]
    return tuple(ClassCount(name=name, train=train, val=val, unreadable=bad)
                 for name, train, val, bad in zip(classes, *counts, strict=True))


def _range(values: NDArray[np.int32]) -> Range | None:
    return Range(min=int(values.min()), median=float(np.median(values)),
                 max=int(values.max())) if len(values) else None


def _by_count(counts: Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def check_output(output: Path, root: Path | None) -> None:
    """Raise InputError if the output of a check would lie among the images in `root`."""
    if output.exists() and not output.is_dir():
        raise InputError(f"--output {output} is a file; give a directory")
    if root is not None and root.is_dir() and (
            root.resolve() in (output.resolve(), *output.resolve().parents)):
        raise InputError(f"--output {output} is inside {root}, so the contact sheet would be taken "
                         "for one of its images; give a directory beside it")


def save_report(report: DatasetReport, dataset: Dataset, output: Path, title: str
                ) -> tuple[Path, ...]:
    """Write the report, a contact sheet called `title` and, if the images are files, a manifest.
    Returns the paths of the files written.

    The manifest lists the split and the unreadable images: as data.root it trains without them.
    """
    output.mkdir(parents=True, exist_ok=True)
    unreadable = {u.name: u.reason for u in report.unreadable}
    write_mapping(report.to_dict(), output / REPORT)
    sheet = contact_sheet(dataset, title, unreadable)
    replace_file(output / SHEET, lambda part: sheet.save(part, format="PNG", optimize=True))
    if not dataset.all.files:
        return output / REPORT, output / SHEET
    save_manifest(output / MANIFEST, dataset, unreadable)
    return output / REPORT, output / SHEET, output / MANIFEST
