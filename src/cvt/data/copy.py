"""A dataset made small: what later epochs, and later runs, read faster."""

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
from cvt.data.dataset import Dataset
from cvt.data.datasets import load_dataset
from cvt.data.shards import CLASSES, INDEX
from cvt.data.small import small
from cvt.data.unreadable import UNREADABLE, Row, read_unreadable, write_unreadable
from cvt.data.write_folder import check_directories, write_folder
from cvt.data.write_shards import check_lines, write_shards
from cvt.system.errors import InputError
from cvt.system.schema import read_mapping, write_mapping

PLAN = "copy.json"
_DONE = "done"


@dataclass(frozen=True, kw_only=True)
class Copied:
    """What a copy holds."""

    train: int
    """Training images."""
    val: int
    """Validation images, unreadable ones included."""
    before: int
    """Images of them that were there before."""
    unreadable: tuple[Row, ...]
    """Split, name and reason of each; those of train are left out."""


def copy(data: DataConfig, out: Path, *, to: Literal["folder", "shards"] = "folder",
         short: int = 320, quality: int = 92, shard_size: int = 10_000, overwrite: bool = False,
         progress: Callable[[int, int], object] | None = None) -> Copied:
    """Write the dataset `data`, with its split, to `out`, each image as `small` has it: with a
    short side of at most `short` pixels, as JPEG of `quality` where that took a resize.

    to: folder makes `out`/train/CLASS/ and `out`/val/CLASS/, which the source folder reads; shards
    makes train-000000.tar and so on, of `shard_size` images each, and classes.txt. An unreadable
    image is left out of train; in val it stays as it is, for validation to count it; and
    unreadable.csv lists both. Called again with the same images and options, a folder is
    completed, archives that were not completed are written anew. `progress` is called with how many
    images are done and how many there are to do.

    Raises InputError where `out` holds anything else, unless `overwrite`; where it lies inside the
    dataset or around it; and for class names that the layout cannot hold.
    """
    dataset = load_dataset(data)
    _check_apart(out, data.path, dataset)
    classes = dataset.train.classes
    (check_directories if to == "folder" else check_lines)(classes)
    plan = {"to": to, "short": short, "quality": quality, "images": _digest(dataset),
            **({"shard_size": shard_size} if to == "shards" else {})}
    done = _open(out, plan, overwrite)
    look = partial(small, dataset.all, short, quality)
    earlier = read_unreadable(out / UNREADABLE)
    if to == "folder":
        # A validation image that is there is on record, if it cannot be read; others are new.
        found = write_folder(out, dataset, look, lambda todo, reasons: write_unreadable(
            out / UNREADABLE, _rows(dataset, todo, reasons, earlier)), progress)
        unreadable = _rows(dataset, *found, earlier)
        before = len(dataset.all) - len(found[0])
    elif done:
        unreadable = earlier
        before = len(dataset.all) - _left_out(earlier)
    else:
        reasons = write_shards(out, dataset, look, shard_size, progress)
        unreadable, before = _rows(dataset, range(len(dataset.all)), reasons, ()), 0
        write_unreadable(out / UNREADABLE, unreadable)
    write_mapping({**plan, _DONE: True}, out / PLAN)
    return Copied(train=len(dataset.train) - _left_out(unreadable), val=len(dataset.val),
                  before=before, unreadable=unreadable)


def _check_apart(out: Path, root: Path | None, dataset: Dataset) -> None:
    """Refuse to write among the images that are read, or around them."""
    home = out.resolve()
    apart = root is None or not root.exists() or not (
        home in (root.resolve(), *root.resolve().parents) or root.resolve() in home.parents)
    inside = f"{home}{os.sep}"
    if not apart or (dataset.all.files and any(
            os.path.abspath(name).startswith(inside) for name in dataset.all.names)):
        raise InputError(f"{out} is not apart from the images that are copied; give a directory "
                         "beside them")


def _open(out: Path, plan: Mapping[str, Any], overwrite: bool) -> bool:
    """Make the directory of a copy; whether this very copy is there already, and complete."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; give a directory")
    saved = read_mapping(out / PLAN) if (out / PLAN).is_file() else {}
    if saved and not overwrite:
        if {key: value for key, value in saved.items() if key != _DONE} == plan:
            return bool(saved.get(_DONE))
        raise InputError(f"{out} holds a copy of other images, or with other options; replace it "
                         "with --overwrite, or give another directory")
    there = sorted(out.iterdir()) if out.is_dir() else []
    if there and not overwrite:
        raise InputError(f"{out} holds {there[0].name}, which is no copy; give another directory, "
                         "or --overwrite to write beside it")
    if saved:  # if this is killed half way, what is left still is a copy's, and of none that fits
        write_mapping({"overwritten": True}, out / PLAN)
    for path in there:
        ours = path.name in ("train", "val", CLASSES, INDEX, UNREADABLE) or (
            path.suffix == ".tar" and path.name.startswith(("train-", "val-")))
        if ours and not saved:
            # Somebody's own dataset, perhaps the only one.
            raise InputError(f"{out} holds {path.name}, which no copy has written, so --overwrite "
                             "does not remove it; move it away, or give another directory")
        if ours:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    out.mkdir(parents=True, exist_ok=True)
    write_mapping(plan, out / PLAN)
    return False


def _digest(dataset: Dataset) -> str:
    """Of the names, classes and split, for a copy must not be completed with other images."""
    sha = hashlib.sha256()
    for half in (dataset.train, dataset.val):
        names = map(os.path.abspath, half.names) if half.files else half.names
        for row in ([len(half), *half.classes], *zip(names, half.labels, strict=True)):
            sha.update(json.dumps(row).encode() + b"\n")
    return sha.hexdigest()


def _left_out(rows: Iterable[Row]) -> int:
    return sum(split == "train" for split, _, _ in rows)


def _rows(dataset: Dataset, looked_at: Iterable[int], reasons: Mapping[int, str],
          earlier: Iterable[Row]) -> tuple[Row, ...]:
    """The unreadable images among those looked at now, and the others on record."""
    n, names = len(dataset.train), dataset.all.names
    now = {("train" if i < n else "val", names[i]): reasons.get(i) for i in looked_at}
    kept = {(split, name): reason for split, name, reason in earlier if (split, name) not in now}
    return tuple(sorted((split, name, reason) for (split, name), reason in (now | kept).items()
                        if reason is not None))
