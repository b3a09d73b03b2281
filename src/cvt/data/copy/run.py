"""Copy a dataset to a directory, with its classes, labels and split."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from cvt.data.config import DataConfig
from cvt.data.copy.folder import check_directory_names, write_folder
from cvt.data.copy.resize import resize_image
from cvt.data.copy.shards import check_class_lines, write_shards
from cvt.data.dataset import Dataset
from cvt.data.load import load_dataset
from cvt.data.sources.shards import CLASSES, INDEX
from cvt.data.unreadable import UNREADABLE, Row, read_unreadable, write_unreadable
from cvt.system.errors import InputError
from cvt.system.schema import read_mapping, write_mapping

OPTIONS = "copy.json"
"""File that records the options of a copy."""
_COMPLETE = "complete"


@dataclass(frozen=True, kw_only=True)
class CopyReport:
    """The content of a copy."""

    train: int
    """Training images."""
    val: int
    """Validation images, unreadable ones included."""
    existing: int
    """Images among them that existed before."""
    unreadable: tuple[Row, ...]
    """Split, name and reason of each unreadable image; those of train are left out."""


def copy(data: DataConfig, out: Path, *, to: Literal["folder", "shards"] = "folder",
         short_side: int = 320, quality: int = 92, shard_size: int = 10_000,
         overwrite: bool = False, progress: Callable[[int, int], object] | None = None
         ) -> CopyReport:
    """Write the dataset `data`, with its split, to `out`.

    short_side: maximum short side of an image in pixels; larger images are resized and become JPEG
    files of `quality`, see `cvt.data.copy.resize.resize_image`. to: folder writes
    `out`/train/CLASS/ and `out`/val/CLASS/, for the source folder; shards writes train-000000.tar
    and so on, of `shard_size` images each, and classes.txt. Unreadable images are left out of train
    and copied unchanged to val, where validation counts them; unreadable.csv lists both. Called
    again with the same images and options, it completes a folder, and starts again with archives
    that are incomplete. progress: called with the number of images done and to do.

    Raises InputError if `out` holds anything else, unless `overwrite`; if it is inside the dataset
    or around it; and for class names that the layout cannot hold.
    """
    dataset = load_dataset(data)
    _check_apart(out, data.path, dataset)
    (check_directory_names if to == "folder" else check_class_lines)(dataset.train.classes)
    options = {"to": to, "short_side": short_side, "quality": quality, "images": _digest(dataset),
               **({"shard_size": shard_size} if to == "shards" else {})}
    complete = _prepare_directory(out, options, overwrite)
    resize = partial(resize_image, dataset.all, short_side, quality)
    earlier = read_unreadable(out / UNREADABLE)
    if to == "folder":
        def record(indices: list[int], reasons: dict[int, str]) -> None:
            write_unreadable(out / UNREADABLE, _rows(dataset, indices, reasons, earlier))

        indices, reasons = write_folder(out, dataset, resize, record, progress)
        unreadable = _rows(dataset, indices, reasons, earlier)
        existing = len(dataset.all) - len(indices)
    elif complete:
        unreadable = earlier
        existing = len(dataset.all) - _count_train(earlier)
    else:
        reasons = write_shards(out, dataset, resize, shard_size, progress)
        unreadable, existing = _rows(dataset, range(len(dataset.all)), reasons, ()), 0
        write_unreadable(out / UNREADABLE, unreadable)
    write_mapping({**options, _COMPLETE: True}, out / OPTIONS)
    return CopyReport(train=len(dataset.train) - _count_train(unreadable), val=len(dataset.val),
                      existing=existing, unreadable=unreadable)


def _check_apart(out: Path, root: Path | None, dataset: Dataset) -> None:
    """Raise InputError if `out` is among the images of the dataset, or around them."""
    home = out.resolve()
    apart = root is None or not root.exists() or not (
        home in (root.resolve(), *root.resolve().parents) or root.resolve() in home.parents)
    inside = f"{home}{os.sep}"
    if not apart or (dataset.all.files and any(
            os.path.abspath(name).startswith(inside) for name in dataset.all.names)):
        raise InputError(f"{out} is not apart from the images that are copied; give a directory "
                         "beside them")


def _prepare_directory(out: Path, options: Mapping[str, Any], overwrite: bool) -> bool:
    """Make the directory of a copy. Returns whether it holds the same copy, complete."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; give a directory")
    saved = read_mapping(out / OPTIONS) if (out / OPTIONS).is_file() else {}
    if saved and not overwrite:
        if {key: value for key, value in saved.items() if key != _COMPLETE} == options:
            return bool(saved.get(_COMPLETE))
        raise InputError(f"{out} holds a copy of other images, or with other options; replace it "
                         "with --overwrite, or give another directory")
    existing = sorted(out.iterdir()) if out.is_dir() else []
    if existing and not overwrite:
        raise InputError(f"{out} holds {existing[0].name}, which is no copy; give another "
                         "directory, or --overwrite to write beside it")
    if saved:  # if this is killed half way, the rest still counts as a copy, but matches no options
        write_mapping({"overwritten": True}, out / OPTIONS)
    for path in existing:
        ours = path.name in ("train", "val", CLASSES, INDEX, UNREADABLE) or (
            path.suffix == ".tar" and path.name.startswith(("train-", "val-")))
        if ours and not saved:
            # Somebody's own dataset, perhaps the only one.
            raise InputError(f"{out} holds {path.name}, which no copy has written, so --overwrite "
                             "does not remove it; move it away, or give another directory")
        if ours:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    out.mkdir(parents=True, exist_ok=True)
    write_mapping(options, out / OPTIONS)
    return False


def _digest(dataset: Dataset) -> str:
    """Hash of names, classes and split, so that a copy is not completed with other images."""
    sha = hashlib.sha256()
    for half in (dataset.train, dataset.val):
        names = map(os.path.abspath, half.names) if half.files else half.names
        for row in ([len(half), *half.classes], *zip(names, half.labels, strict=True)):
            sha.update(json.dumps(row).encode() + b"\n")
    return sha.hexdigest()


def _count_train(rows: Iterable[Row]) -> int:
    return sum(split == "train" for split, _, _ in rows)


def _rows(dataset: Dataset, indices: Iterable[int], reasons: Mapping[int, str],
          earlier: Iterable[Row]) -> tuple[Row, ...]:
    """The unreadable images among those at `indices`, and earlier ones among the others."""
    n, names = len(dataset.train), dataset.all.names
    now = {("train" if i < n else "val", names[i]): reasons.get(i) for i in indices}
    kept = {(split, name): reason for split, name, reason in earlier if (split, name) not in now}
    return tuple(sorted((split, name, reason) for (split, name), reason in (now | kept).items()
                        if reason is not None))
