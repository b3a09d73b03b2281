"""Pictures that a table lists: CSV or Parquet with the columns path, label and maybe split."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from cvt.atomic import replace_file
from cvt.data.folder import files
from cvt.data.pictures import AS_IMAGENET, Dataset, Pictures, split
from cvt.errors import InputError, did_you_mean
from cvt.extras import require

COLUMNS = ("path", "label", "split", "unreadable")
_SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val",
           "test": "test"}


def manifest(path: Path, val_fraction: float = 0.2, seed: int = 0) -> Dataset:
    """Pictures that the table `path` lists, a row each; its paths are relative to its directory.

    split is train, val or test, whose pictures are left out; without the column a `val_fraction` of
    each class is held out. A training picture with anything in the column unreadable, which `cvt
    data check` writes, is left out. Classes are sorted, numbers by value. Raises InputError for a
    table without pictures, with empty cells, other columns, other splits, fewer than two classes,
    or a class that has validation pictures alone.
    """
    if not path.is_file():
        raise InputError(f"data.root={path} is not a file; give a CSV or Parquet file with the "
                         "columns path, label and maybe split")
    rows = list(_rows(path))
    whole = {name: [row[name] for row in rows] for name in rows[0]} if rows else {}
    for name in ("path", "label"):
        if rows and "" in whole[name]:
            raise InputError(f"{path}, row {whole[name].index('') + 1} after the heading: {name} "
                             "is empty")
    if len(names := sorted(set(whole.get("label", ())), key=_by_value)) < 2:
        raise InputError(f"{path} has {len(rows)} pictures of {len(names)} classes; classifying "
                         "takes at least two")
    places = [path.parent / p for p in whole["path"]]
    number = {name: i for i, name in enumerate(names)}
    pictures = files(tuple(names), places, [number[name] for name in whole["label"]])
    bad = [bool(text) for text in whole.get("unreadable", ("",) * len(rows))]
    if "split" not in whole:
        halves = split(pictures, val_fraction, seed, str(path))
        gone = {p for p, why in zip(pictures.names, bad, strict=True) if why}
        readable = [i for i, name in enumerate(halves.train.names) if name not in gone]
        return Dataset(train=halves.train.choose(readable), val=halves.val, preprocess=AS_IMAGENET)
    splits = [_split(path, i, text) for i, text in enumerate(whole["split"], 1)]
    train = [i for i, half in enumerate(splits) if half == "train" and not bad[i]]
    val = [i for i, half in enumerate(splits) if half == "val"]
    _check_halves(path, pictures, train, val)
    return Dataset(train=pictures.choose(train), val=pictures.choose(val), preprocess=AS_IMAGENET)


def _check_halves(path: Path, pictures: Pictures, train: Sequence[int], val: Sequence[int]) -> None:
    for half, chosen in (("train", train), ("val", val)):
        if not chosen:
            raise InputError(f"{path} has no picture whose split is {half}; add some, or leave the "
                             "column out, and data.val_fraction of each class is held out")
    known = {pictures.labels[i] for i in train}
    if extra := [pictures.classes[pictures.labels[i]] for i in val
                 if pictures.labels[i] not in known]:
        raise InputError(f"{path} has the class {extra[0]!r} in val but not in train; add training "
                         "pictures of it or take it out")


def _rows(path: Path) -> Iterable[Mapping[str, str]]:
    if path.suffix == ".parquet":
        return _parquet(path)
    if path.suffix not in (".csv", ".tsv"):
        raise InputError(f"{path} has the suffix {path.suffix!r}; a manifest is .csv, .tsv or "
                         ".parquet")
    return _csv(path, "\t" if path.suffix == ".tsv" else ",")


def _csv(path: Path, delimiter: str) -> Iterable[Mapping[str, str]]:
    try:
        # Spreadsheets put a byte order mark in front, and an odd file name is not UTF-8.
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
                yield dict(zip(heading, row, strict=True))
    except csv.Error as error:
        raise InputError(f"{path} is not a CSV file: {error}") from None


def _parquet(path: Path) -> Iterable[Mapping[str, str]]:
    parquet = require("pyarrow.parquet", "data")
    try:
        table = parquet.read_table(path)
    except (ValueError, OSError) as error:
        raise InputError(f"{path} is not a Parquet file: {error}") from None
    _check_columns(path, table.column_names)
    for row in table.to_pylist():
        yield {name: "" if value is None else str(value) for name, value in row.items()}


def _check_columns(path: Path, columns: Sequence[str]) -> None:
    for name in columns:
        if name not in COLUMNS:
            raise InputError(f"{path} has the column {name!r}; {did_you_mean(name, COLUMNS)}")
    for name in ("path", "label"):
        if list(columns).count(name) != 1:
            raise InputError(f"{path} has the columns {', '.join(columns) or 'of an empty file'}; "
                             f"one must be {name}")


def _split(path: Path, row: int, text: str) -> str:
    if text.lower() not in _SPLITS:
        raise InputError(f"{path}, row {row} after the heading: split is {text!r}; write train, "
                         "val or test")
    return _SPLITS[text.lower()]


def _by_value(label: str) -> tuple[bool, int, str]:
    return (False, int(label), "") if label.isdecimal() else (True, 0, label)


def save_manifest(path: Path, dataset: Dataset, unreadable: Mapping[str, str]) -> None:
    """Write `dataset`, whose pictures are files, as a table that `manifest` reads.

    `unreadable` has, by name, why a picture cannot be read. Paths are relative to the table's
    directory where they share more than the root with it, else absolute.
    """
    home = path.parent.resolve()

    def place(name: str) -> str:
        whole = os.path.abspath(name)
        try:
            shared = Path(os.path.commonpath((home, whole)))
        except ValueError:  # another drive
            return whole
        return whole if shared == shared.parent else os.path.relpath(whole, home)

    rows = [(place(name), half.classes[label], split, unreadable.get(name, ""))
            for split, half in (("train", dataset.train), ("val", dataset.val))
            for name, label in zip(half.names, half.labels, strict=True)]

    def write(part: Path) -> None:
        with part.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows((COLUMNS, *rows))

    replace_file(path, write)
