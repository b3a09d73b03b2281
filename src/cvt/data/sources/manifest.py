"""Images listed in a table: CSV or Parquet with the columns path, label and optionally split."""

from __future__ import annotations

import csv
import difflib
import io
import math
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from cvt.data.classes import natural_order
from cvt.data.dataset import SPLITS, Dataset, LabeledImages, check_trained, split_indices
from cvt.system.errors import InputError
from cvt.system.extras import require
from cvt.system.files import find_file, read_text, replace_file
from cvt.system.text import printable

COLUMNS = ("path", "label", "split", "unreadable")
_REQUIRED = ("path", "label")
_DELIMITERS = (",", ";", "\t")
# What pandas writes for an empty cell.
_EMPTY = frozenset(("nan", "NaN", "NaT", "<NA>"))


def manifest(path: Path, val_fraction: float | None = 0.2, seed: int = 0, *,
             path_column: str | None = None, label_column: str | None = None) -> Dataset:
    """Images listed in the table `path`, one per row; paths are relative to its directory.

    CSV is separated by commas, semicolons or tabs. The columns are found without regard to case and
    blanks, and others are ignored; `path_column` and `label_column` name those of paths and labels.
    The column split has train, val or test; test images are left out. Without it a `val_fraction`
    of each class is held out. A training image with text in the column unreadable, which `cvt data
    check` writes, is left out. Classes are in natural order. NaN, as a number or as pandas writes
    it, is an empty cell. Paths are found as `find_file` finds them, and labels that differ only in
    Unicode normalization are one. Files that are listed twice are in the notes of the dataset.

    Raises InputError for a table without images, with empty cells, without a column that is needed,
    unknown splits, fewer than two classes, ambiguous class names, or a class without training
    images.
    """
    if not path.is_file():
        raise InputError(f"data.root={path} is not a file; give a CSV or Parquet file with the "
                         "columns path, label and maybe split")
    rows = list(_rows(path, {"path": path_column, "label": label_column}))
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
    images = LabeledImages.from_files(
        classes, [find_file(path.parent / row["path"]) for row in rows],
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
    dataset = Dataset(train=images.choose(train), val=images.choose(val),
                      notes=tuple(_repeated(images, train, val, str(path))))
    check_trained(dataset, str(path))
    return dataset


def _repeated(images: LabeledImages, train: Sequence[int], val: Sequence[int], where: str
              ) -> Iterator[str]:
    """A line about files that are listed more than once, and one about those in both splits."""
    rows: dict[str, list[int]] = {}
    for i in (*train, *val):
        rows.setdefault(os.path.abspath(images.names[i]), []).append(i)
    repeated = [same for same in rows.values() if len(same) > 1]
    if not repeated:
        return
    example = printable(images.names[repeated[0][0]])
    differ = sum(len({images.labels[i] for i in same}) > 1 for same in repeated)
    yield (f"{where} lists {len(repeated):,} files more than once, such as {example}"
           + (f"; {differ:,} of them have different labels" if differ else ""))
    held_out = set(val)
    if both := [same for same in repeated if 0 < len(held_out & set(same)) < len(same)]:
        yield (f"{where} has {len(both):,} files both in train and in val, such as "
               f"{printable(images.names[both[0][0]])}; accuracy on them is not that on new images")


def _rows(path: Path, chosen: Mapping[str, str | None]) -> Iterable[Mapping[str, str]]:
    """The rows, by names of COLUMNS; `chosen` maps them to the names in the table."""
    suffix = path.suffix.lower()
    if suffix not in (".csv", ".tsv", ".parquet"):
        raise InputError(f"{path} has the suffix {path.suffix!r}; a manifest is .csv, .tsv or "
                         ".parquet")
    for row in _parquet(path, chosen) if suffix == ".parquet" else _csv(path, chosen):
        yield row | {"label": unicodedata.normalize("NFC", row["label"])}


def _csv(path: Path, chosen: Mapping[str, str | None]) -> Iterable[dict[str, str]]:
    try:
        text = read_text(path)
        delimiter = _delimiter(text, chosen)
        # With blanks behind the delimiters of the heading, those of the rows mean nothing either.
        spaced = re.match(rf"[^\r\n]*{delimiter} ", text) is not None
        table = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True,
                           skipinitialspace=spaced)
        heading = next(table, [])
        columns = _find_columns(path, heading, chosen)
        for number, row in enumerate(table, 1):
            if not any(row):
                continue
            if len(row) < len(heading) or any(row[len(heading):]):
                raise InputError(f"{path}, row {number} after the heading: {len(row)} cells "
                                 f"for {len(heading)} columns")
            yield {name: "" if row[i] in _EMPTY else row[i] for name, i in columns.items()}
    except csv.Error as error:
        raise InputError(f"{path} is not a CSV file: {error}") from None


def _delimiter(text: str, chosen: Mapping[str, str | None]) -> str:
    """The one of comma, semicolon and tab at which the heading has the columns that are needed,
    else the one that it has most of."""
    wanted = {_folded(chosen[name] or name) for name in _REQUIRED}
    for delimiter in _DELIMITERS:
        heading = next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter), [])
        if wanted <= set(map(_folded, heading)):
            return delimiter
    return max(_DELIMITERS, key=text.partition("\n")[0].count)


def _parquet(path: Path, chosen: Mapping[str, str | None]) -> Iterable[dict[str, str]]:
    parquet = require("pyarrow.parquet", "data")
    try:
        schema = parquet.read_schema(path)
    except (ValueError, OSError) as error:
        raise InputError(f"{path} is not a Parquet file: {error}") from None
    columns = {name: schema.names[i] for name, i in
               _find_columns(path, schema.names, chosen).items()}
    for name in columns.values():
        if (kind := schema.field(name).type).num_fields:
            raise InputError(f"{path}: the column {name!r} holds {kind}; a cell is a text or a "
                             "number")
    try:
        table = parquet.read_table(path, columns=list(columns.values()))
    except (ValueError, OSError) as error:
        raise InputError(f"{path} is corrupt: {error}") from None
    for row in table.to_pylist():
        yield {name: _text(row[column]) for name, column in columns.items()}


def _text(value: Any) -> str:
    """A cell as text; empty for every kind of NaN, which are the values unequal to themselves."""
    if value is None or value != value:
        return ""
    # Integers become floats in a column with missing values.
    if isinstance(value, (float, Decimal)) and math.isfinite(value) and value == int(value):
        value = int(value)
    text = value.decode(errors="surrogateescape") if isinstance(value, bytes) else str(value)
    return "" if text in _EMPTY else text


def _find_columns(path: Path, heading: Sequence[str], chosen: Mapping[str, str | None]
                  ) -> dict[str, int]:
    """The index of each of COLUMNS that the table has."""
    columns = {}
    for name in COLUMNS:
        wanted = chosen.get(name) or name
        found = [i for i, column in enumerate(heading) if column == wanted] or [
            i for i, column in enumerate(heading) if _folded(column) == _folded(wanted)]
        if len(found) == 1:
            columns[name] = found[0]
            continue
        near = difflib.get_close_matches(wanted, heading, n=1, cutoff=0.8)
        if near and not found:  # also of an optional one, which would be ignored
            raise InputError(f"{path} has the column {near[0]!r}; did you mean {wanted}?")
        if found or name in _REQUIRED:
            raise InputError(
                f"{path} has the columns {', '.join(heading) or 'of an empty file'}; one must be "
                f"{wanted}" + (f", or choose it with data.{name}_column" if name in _REQUIRED
                               else ""))
    return columns


def _folded(column: str) -> str:
    return unicodedata.normalize("NFC", column).strip().lower()


def _split(path: Path, row: int, text: str) -> str:
    if text.strip().lower() not in SPLITS:
        raise InputError(f"{path}, row {row} after the heading: split is {text!r}; write train, "
                         "val or test")
    return SPLITS[text.strip().lower()]


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
