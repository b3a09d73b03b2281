"""Images listed in a table: CSV or Parquet with the columns path, label and optionally split."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from cvt.data.classes import natural_order
from cvt.data.dataset import SPLITS, Dataset, LabeledImages, check_trained, split_indices
from cvt.system.errors import InputError, did_you_mean
from cvt.system.extras import require
from cvt.system.files import replace_file

COLUMNS = ("path", "label", "split", "unreadable")
# What pandas writes for an empty cell.
_EMPTY = frozenset(("nan", "NaN", "NaT", "<NA>"))


def manifest(path: Path, val_fraction: float | None = 0.2, seed: int = 0) -> Dataset:
    """Images listed in the table `path`, one per row; paths are relative to its directory.

    The column split has train, val or test; test images are left out. Without it a `val_fraction`
    of each class is held out. A training image with text in the column unreadable, which `cvt data
    check` writes, is left out. Classes are in natural order. NaN, as a number or as pandas writes
    it, is an empty cell. Raises InputError for a table without images, with empty cells, unknown
    columns or splits, fewer than two classes, ambiguous class names, or a class without training
    images.
    """
    if not path.is_file():
        raise InputError(f"data.root={path} is not a file; give a CSV or Parquet file with the "
                         "columns path, label and maybe split")
    rows = list(_rows(path))
    for name in ("path", "label"):
        if empty := [i for i, row in enumerate(rows, 1) if not row[name].strip()]:
            raise InputError(f"{path}, row {empty[0]} after the heading: {name} is empty or NaN; "
                             "fill it in, or take the row out")
    has_split = bool(rows) and "split" in rows[0]
    splits = [_split(path, i, row["split"]) if has_split else "" for i, row in enumerate(rows, 1)]
    rows = [row for row, half in zip(rows, splits, strict=True) if half != "test"]
    splits = [half for half in splits if half != "test"]
    classes = natural_order((row["label"] for row in rows), str(path))
    if len(classes) < (1 if val_fraction is None else 2):
        raise InputError(f"{path} has {len(rows)} images of {len(classes)} classes; classification "
                         "needs at least two classes")
    labels = {name: i for i, name in enumerate(classes)}
    images = LabeledImages.from_files(classes, [path.parent / row["path"] for row in rows],
                                      [labels[row["label"]] for row in rows])
    if has_split:
        train, val = ([i for i, half in enumerate(splits) if half == name]
                      for name in ("train", "val"))
    else:
        train, val = split_indices(images, val_fraction, seed, str(path))
    train = [i for i in train if not rows[i].get("unreadable")]
    for name, chosen in (("train", train), ("val", val)):
        if has_split and not chosen:
            raise InputError(f"{path} has no image whose split is {name}; add some, or leave the "
                             "column out, and data.val_fraction of each class is held out")
    dataset = Dataset(train=images.choose(train), val=images.choose(val))
    check_trained(dataset, str(path))
    return dataset


def _rows(path: Path) -> Iterable[Mapping[str, str]]:
    if path.suffix == ".parquet":
        return _parquet(path)
    if path.suffix not in (".csv", ".tsv"):
        raise InputError(f"{path} has the suffix {path.suffix!r}; a manifest is .csv, .tsv or "
                         ".parquet")
    return _csv(path, "\t" if path.suffix == ".tsv" else ",")


def _csv(path: Path, delimiter: str) -> Iterable[Mapping[str, str]]:
    try:
        # Spreadsheets write a byte order mark, and file names may not be UTF-8.
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            table = csv.reader(file, delimiter=delimiter, strict=True)
            heading = next(table, [])
            _check_columns(path, heading)
            for number, row in enumerate(table, 1):
                if not row:
                    continue
                if len(row) != len(heading):
                    raise InputError(f"{path}, row {number} after the heading: {len(row)} cells "
                                     f"for {len(heading)} columns")
                yield {name: "" if cell in _EMPTY else cell
                       for name, cell in zip(heading, row, strict=True)}
    except csv.Error as error:
        raise InputError(f"{path} is not a CSV file: {error}") from None


def _parquet(path: Path) -> Iterable[Mapping[str, str]]:
    parquet = require("pyarrow.parquet", "data")
    try:
        table = parquet.read_table(path)
    except (ValueError, OSError) as error:
        raise InputError(f"{path} is not a Parquet file: {error}") from None
    _check_columns(path, table.column_names)
    for column in table.schema:
        if column.type.num_fields:
            raise InputError(f"{path}: the column {column.name!r} holds {column.type}; a cell is a "
                             "text or a number")
    for row in table.to_pylist():
        yield {name: _text(value) for name, value in row.items()}


def _text(value: Any) -> str:
    """A cell as text; empty for every kind of NaN, which are the values unequal to themselves."""
    if value is None or value != value:
        return ""
    # Integers become floats in a column with missing values.
    if isinstance(value, (float, Decimal)) and math.isfinite(value) and value == int(value):
        value = int(value)
    text = value.decode(errors="surrogateescape") if isinstance(value, bytes) else str(value)
    return "" if text in _EMPTY else text


def _check_columns(path: Path, columns: Sequence[str]) -> None:
    for name in columns:
        if name not in COLUMNS:
            raise InputError(f"{path} has the column {name!r}; {did_you_mean(name, COLUMNS)}")
    for name in COLUMNS:
        n = list(columns).count(name)
        if n > 1 or (n == 0 and name in ("path", "label")):
            raise InputError(f"{path} has the columns {', '.join(columns) or 'of an empty file'}; "
                             f"one must be {name}")


def _split(path: Path, row: int, text: str) -> str:
    if text.lower() not in SPLITS:
        raise InputError(f"{path}, row {row} after the heading: split is {text!r}; write train, "
                         "val or test")
    return SPLITS[text.lower()]


def save_manifest(path: Path, dataset: Dataset, unreadable: Mapping[str, str]) -> None:
    """Write `dataset`, whose images are files, as a table that `manifest` reads.

    `unreadable` maps names of unreadable images to the reason. Paths are relative to the directory
    of the table if they share more than the root with it, else absolute.
    """
    home = path.parent.resolve()

    def relative(name: str) -> str:
        whole = os.path.abspath(name)
        try:
            shared = Path(os.path.commonpath((home, whole)))
        except ValueError:  # another drive
            return whole
        return whole if shared == shared.parent else os.path.relpath(whole, home)

    rows = [(relative(name), half.classes[label], split, unreadable.get(name, ""))
            for split, half in (("train", dataset.train), ("val", dataset.val))
            for name, label in zip(half.names, half.labels, strict=True)]

    def write(part: Path) -> None:
        with part.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows((COLUMNS, *rows))

    replace_file(path, write)
