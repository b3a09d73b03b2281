"""Classify millions of images into a directory of part files; an interrupted job can be resumed.

The images, in order, are split into parts of equal length. Process N mod world writes part N
atomically, as part-0000N. Processes do not communicate.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal, get_args

from cvt.data.sources.archives import Member
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
# A spreadsheet runs a cell that begins with one of these as a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Progress of this process after one of its parts."""

    part: int
    """Index of the part, from 0."""
    parts: int
    """Number of parts in the job."""
    images: int
    """Images in this part."""
    unreadable: int
    """Unreadable images in this part."""
    done: int
    """Images that this process has classified since its start."""
    remaining: int
    """Images in this process's remaining parts."""
    seconds: float
    """Time since the start."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Result of `classify_into` in this process."""

    images: int
    """Images classified by this process, including unreadable ones."""
    skipped: int
    """Images in parts that already existed."""
    unreadable: int | None
    """Unreadable images in the whole job, listed in unreadable.csv; None while parts of other
    processes are missing."""


def classify_into(output: str | Path, predictor: Predictor, images: Sequence[str | Member], *,
                  table: TableFormat = "csv", top_k: int = 5, part_size: int = 10_000,
                  rank: int = 0, world: int = 1,
                  progress: Callable[[Progress], object] | None = None) -> Outcome:
    """Classify `images` into the directory `output`; existing parts are skipped.

    table: the file format of the parts. CSV has the columns image, class_1, probability_1, ... and
    error, with names made safe for terminals and spreadsheets: unprintable characters are escaped,
    and text that would be a formula gets an apostrophe in front. JSONL keeps names as they are, and
    so does Parquet (columns image, class, probability, the lists classes and probabilities, and
    error), except for bytes that are not UTF-8. rank, world: the index of this process and the
    number of processes that share the job; both may differ when it is resumed. Once all parts
    exist, unreadable.csv lists the unreadable images and the reasons.

    Raises InputError if `output` holds another job (other images, model or columns) or other files,
    and for invalid arguments; OSError if it cannot be written, and finished parts stay.
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
        raise InputError("a job cannot read the standard input (-), because it could not be "
                         "resumed; give files")
    if table == "parquet":
        require("pyarrow.parquet", "data")
    output = Path(output)
    top_k = min(top_k, len(predictor.card.classes))
    _open_job(output, {
        "schema": _SCHEMA, "num_images": len(images), "images_sha256": _digest(images),
        "model_sha256": predictor.identity, "table": table, "top_k": top_k, "part_size": part_size})
    parts = [output / f"part-{i:05}.{table}" for i in range(-(-len(images) // part_size))]
    chunks = [images[i * part_size:(i + 1) * part_size] for i in range(len(parts))]
    own = range(rank, len(parts), world)
    missing = [i for i in own if not parts[i].exists()]

    start, done, remaining = time.perf_counter(), 0, sum(len(chunks[i]) for i in missing)
    # One stream over all parts, so that the network does not wait between them.
    stream = predictor(chain.from_iterable(chunks[i] for i in missing), top_k)
    for i in missing:
        rows = list(islice(stream, len(chunks[i])))
        replace_file(parts[i], partial(_WRITERS[table], rows, top_k))
        done, remaining = done + len(rows), remaining - len(rows)
        if progress:
            progress(Progress(
                part=i, parts=len(parts), images=len(rows), done=done, remaining=remaining,
                unreadable=sum(row.error is not None for row in rows),
                seconds=time.perf_counter() - start))
    skipped = sum(len(chunks[i]) for i in own) - done
    unreadable = _list_unreadable(output, parts) if all(p.exists() for p in parts) else None
    return Outcome(images=done, skipped=skipped, unreadable=unreadable)


def _open_job(output: Path, job: dict[str, Any]) -> None:
    """Create the job in `output`, or check that `output` holds this job."""
    output.mkdir(parents=True, exist_ok=True)
    file = output / JOB
    if not file.exists():
        if any(not path.name.startswith(".") for path in output.iterdir()) and not file.exists():
            raise InputError(f"{output} contains other files than a job's; give a new directory")
        # Processes that start together all write the same.
        text = json.dumps(job, indent=2) + "\n"
        replace_file(file, lambda path: path.write_text(text, encoding="utf-8"))
    try:
        existing = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        existing = None
    if not isinstance(existing, dict):
        raise InputError(f"{file} is corrupt; give a new directory")
    for key, message in (
            ("schema", "was written by another version of cvt"),
            ("model_sha256", "has predictions of another model or precision"),
            ("num_images", f"has {existing.get('num_images')} images, not {job['num_images']}"),
            ("images_sha256", "has other images, or in another order, or an image has changed its "
                              "size"),
            *((key, f"has {key}={existing.get(key)}, not {job[key]}")
              for key in ("table", "top_k", "part_size"))):
        if existing.get(key) != job[key]:
            raise InputError(f"{output} {message}; give a new directory, or the arguments that the "
                             "job was started with")


def _digest(images: Sequence[str | Member]) -> str:
    digest = hashlib.sha256()
    for image in images:
        digest.update(os.fsencode(str(image)) + f"\0{_size(image)}\0".encode())
    return digest.hexdigest()


def _size(image: str | Member) -> int:
    """Size in bytes; -1 for a missing file."""
    if isinstance(image, Member):
        return image.size
    try:
        return os.stat(image).st_size
    except OSError:
        return -1


def _list_unreadable(output: Path, parts: Sequence[Path]) -> int:
    """Write unreadable.csv and return the number of its rows. The process that finishes last does
    it, or several do."""
    count = 0

    def write(path: Path) -> None:
        nonlocal count
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["image", "reason"])
            for part in parts:
                for cells in _unreadable_in(part):
                    writer.writerow(cells)
                    count += 1

    replace_file(output / UNREADABLE, write)
    return count


def _cell(text: str) -> str:
    """`text` made safe for spreadsheets and terminals."""
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


def _write_jsonl(rows: Sequence[Prediction], _: int, path: Path) -> None:
    with path.open("w", encoding="ascii") as file:
        file.writelines(json.dumps(row.to_dict()) + "\n" for row in rows)


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


def _unreadable_in(part: Path) -> Iterator[tuple[str, str]]:
    """Name and error of the unreadable images in a part, safe for CSV."""
    if part.suffix == ".parquet":
        parquet = require("pyarrow.parquet", "data")
        rows = parquet.read_table(part, columns=["image", "error"]).to_pylist()
    else:
        with part.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file) if part.suffix == ".csv" else map(json.loads, file))
    for row in rows:
        if row.get("error"):
            image, error = row["image"], row["error"]
            yield (image, error) if part.suffix == ".csv" else (_cell(image), _cell(error))


def _utf8(text: str) -> str:
    r"""`text` with bytes of a file name that are not UTF-8 as \xNN."""
    return os.fsencode(text).decode("utf-8", "backslashreplace")


_WRITERS: dict[TableFormat, Callable[[Sequence[Prediction], int, Path], None]] = {
    "csv": _write_csv, "jsonl": _write_jsonl, "parquet": _write_parquet}
