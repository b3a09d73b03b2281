"""Classify millions of images into a directory of parts, which a killed job goes on with.

The images, in their order, are cut into parts of equal length; part N is done by process N mod
world and appears whole, as part-00000N, or not at all. Processes need not talk to each other.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal, get_args

from cvt.data.archives import Member
from cvt.data.unreadable import UNREADABLE
from cvt.predict.predictor import STDIN, Prediction, Predictor
from cvt.system.errors import InputError, did_you_mean
from cvt.system.extras import require
from cvt.system.files import replace_file
from cvt.system.text import printable

TableFormat = Literal["csv", "jsonl", "parquet"]
FORMATS: tuple[TableFormat, ...] = get_args(TableFormat)
JOB = "job.json"
_SCHEMA = 1
# A spreadsheet takes a cell that begins so for a formula, and runs it.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far this process is, after one of its parts."""

    part: int
    """Its number, from 0."""
    parts: int
    """How many the whole job has."""
    images: int
    """In this part."""
    unreadable: int
    """Of them."""
    done: int
    """Images that this process has classified since it began."""
    left: int
    """Images of parts that it has still to do."""
    seconds: float
    """Since it began."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What this process did of a job, and whether that was the last of it."""

    images: int
    """Classified by this process, unreadable ones included."""
    found: int
    """In parts that were there already."""
    unreadable: int | None
    """In the whole job, listed in unreadable.csv; None while another process has parts to do."""


def classify_into(output: str | Path, predictor: Predictor, images: Sequence[str | Member], *,
                  table: TableFormat = "csv", top_k: int = 5, part_size: int = 10_000,
                  rank: int = 0, world: int = 1,
                  progress: Callable[[Progress], object] | None = None) -> Outcome:
    """Classify `images` into the directory `output`; parts that it has already are not done again.

    table: what the parts are. CSV has the columns image, class_1, probability_1, ... and error,
    with names made safe for terminals and spreadsheets: what is not printable is escaped, and what
    would be a formula begins with an apostrophe. JSONL has the names as they are, and so has
    Parquet (columns image, class, probability, the lists classes and probabilities, and error),
    but for bytes that are not UTF-8. rank, world: the number of this process, and how many share
    the job; another number may go on with it. Once all parts are there, unreadable.csv lists the
    images that could not be read, and why.

    Raises InputError where `output` holds another job (other images, model or columns) or other
    files, and for arguments that are not possible; OSError where it cannot be written, with every
    part so far in place.
    """
    if table not in FORMATS:
        raise InputError(f"table={table!r}; {did_you_mean(table, FORMATS)}")
    for name, number in (("top_k", top_k), ("part_size", part_size), ("world", world)):
        if number < 1:
            raise InputError(f"{name}={number} must be at least 1")
    if not 0 <= rank < world:
        raise InputError(f"rank={rank} must be from 0 to {world - 1}")
    if not images:
        raise InputError("there are no images to classify")
    if STDIN in images:
        raise InputError("- is the standard input, which a job cannot go on with; give files")
    if table == "parquet":
        require("pyarrow.parquet", "data")
    output = Path(output)
    top_k = min(top_k, len(predictor.card.classes))
    _begin(output, {
        "schema": _SCHEMA, "images": len(images), "names": _digest(images),
        "model": predictor.identity, "table": table, "top_k": top_k, "part_size": part_size})
    parts = [output / f"part-{i:05}.{table}" for i in range(-(-len(images) // part_size))]
    of = [images[i * part_size:(i + 1) * part_size] for i in range(len(parts))]
    mine = range(rank, len(parts), world)
    missing = [i for i in mine if not parts[i].exists()]

    start, done, left = time.perf_counter(), 0, sum(len(of[i]) for i in missing)
    # One stream over all parts, so that the network does not wait where one ends.
    stream = predictor(chain.from_iterable(of[i] for i in missing), top_k)
    for i in missing:
        rows = list(islice(stream, len(of[i])))
        replace_file(parts[i], partial(_WRITE[table], rows, top_k))
        done, left = done + len(rows), left - len(rows)
        if progress:
            progress(Progress(
                part=i, parts=len(parts), images=len(rows), done=done, left=left,
                unreadable=sum(row.error is not None for row in rows),
                seconds=time.perf_counter() - start))
    found = sum(len(of[i]) for i in mine) - done
    unreadable = _list_unreadable(output, parts, table) if all(
        part.exists() for part in parts) else None
    return Outcome(images=done, found=found, unreadable=unreadable)


def _begin(output: Path, job: dict[str, Any]) -> None:
    """Make `output` this job's, or see that it is."""
    output.mkdir(parents=True, exist_ok=True)
    file = output / JOB
    if not file.exists():
        if any(not path.name.startswith(".") for path in output.iterdir()) and not file.exists():
            raise InputError(f"{output} has files in it that are not of a job; give a new "
                             "directory")
        # Processes that begin together all write the same.
        text = json.dumps(job, indent=2) + "\n"
        replace_file(file, lambda path: path.write_text(text, encoding="utf-8"))
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        kept = None
    if not isinstance(kept, dict):
        raise InputError(f"{file} is damaged; give a new directory")
    for name, what in (
            ("schema", "was written by another version of cvt"),
            ("model", "has the answers of another model or precision"),
            ("images", f"is of {kept.get('images')} images, and these are {job['images']}"),
            ("names", "is of other images, or in another order, or an image has changed its "
                      "size"),
            *((name, f"has {name}={kept.get(name)}, not {job[name]}")
              for name in ("table", "top_k", "part_size"))):
        if kept.get(name) != job[name]:
            raise InputError(f"{output} {what}; give a new directory, or what it was begun with")


def _digest(images: Sequence[str | Member]) -> str:
    digest = hashlib.sha256()
    for image in images:
        digest.update(os.fsencode(str(image)) + f"\0{_size(image)}\0".encode())
    return digest.hexdigest()


def _size(image: str | Member) -> int:
    """Bytes; -1 for a file that is not there."""
    if isinstance(image, Member):
        return image.size
    try:
        return os.stat(image).st_size
    except OSError:
        return -1


def _list_unreadable(output: Path, parts: Sequence[Path], table: TableFormat) -> int:
    """Write unreadable.csv; how many it lists. Whichever process comes last does, or several."""
    number = 0

    def write(path: Path) -> None:
        nonlocal number
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["image", "reason"])
            for part in parts:
                for cells in _READ[table](part):
                    writer.writerow(cells)
                    number += 1

    replace_file(output / UNREADABLE, write)
    return number


def _cell(text: str) -> str:
    """`text` for a table that a spreadsheet or a terminal may show."""
    text = printable(text)
    return f"'{text}" if text.startswith(_FORMULA) else text


def _write_csv(rows: Sequence[Prediction], top_k: int, path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["image", *(f"{column}_{i}" for i in range(1, top_k + 1)
                                      for column in ("class", "probability")), "error"])
        for row in rows:
            cells = [cell for name, probability in row.classes
                     for cell in (_cell(name), f"{probability:.6g}")]
            writer.writerow([_cell(row.image), *(cells or [""] * (2 * top_k)),
                             _cell(row.error or "")])


def _unread_csv(path: Path) -> Iterator[tuple[str, str]]:
    """The cells of unreadable.csv, as the other two."""
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["error"]:
                yield row["image"], row["error"]


def _write_jsonl(rows: Sequence[Prediction], _: int, path: Path) -> None:
    with path.open("w", encoding="ascii") as file:
        file.writelines(json.dumps({k: v for k, v in asdict(row).items() if v is not None}) + "\n"
                        for row in rows)


def _unread_jsonl(path: Path) -> Iterator[tuple[str, str]]:
    with path.open(encoding="ascii") as file:
        for line in file:
            row = json.loads(line)
            if "error" in row:
                yield _cell(row["image"]), _cell(row["error"])


def _write_parquet(rows: Sequence[Prediction], _: int, path: Path) -> None:
    pyarrow, parquet = require("pyarrow", "data"), require("pyarrow.parquet", "data")
    text, number = pyarrow.string(), pyarrow.float32()
    best = [row.classes[0] if row.classes else (None, None) for row in rows]
    names = [_utf8(row.image) for row in rows]
    parquet.write_table(pyarrow.table({
        "image": pyarrow.array(names, text),
        "class": pyarrow.array([name for name, _ in best], text),
        "probability": pyarrow.array([p for _, p in best], number),
        "classes": pyarrow.array([[name for name, _ in row.classes] for row in rows],
                                 pyarrow.list_(text)),
        "probabilities": pyarrow.array([[p for _, p in row.classes] for row in rows],
                                       pyarrow.list_(number)),
        "error": pyarrow.array([None if row.error is None else _utf8(row.error) for row in rows],
                               text)}), path)


def _unread_parquet(path: Path) -> Iterator[tuple[str, str]]:
    parquet = require("pyarrow.parquet", "data")
    for row in parquet.read_table(path, columns=["image", "error"]).to_pylist():
        if row["error"] is not None:
            yield _cell(row["image"]), _cell(row["error"])


def _utf8(text: str) -> str:
    r"""`text` with bytes of a file's name that are no UTF-8 as \xNN."""
    return os.fsencode(text).decode("utf-8", "backslashreplace")


_WRITE: dict[TableFormat, Callable[[Sequence[Prediction], int, Path], None]] = {
    "csv": _write_csv, "jsonl": _write_jsonl, "parquet": _write_parquet}
_READ: dict[TableFormat, Callable[[Path], Iterator[tuple[str, str]]]] = {
    "csv": _unread_csv, "jsonl": _unread_jsonl, "parquet": _unread_parquet}
