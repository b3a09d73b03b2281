"""The list of images that could not be read, a table in the directory of a run or of a copy."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path

from cvt.system.files import replace_file

UNREADABLE = "unreadable.csv"

Row = tuple[str, str, str]  # split, image, reason


def write_unreadable(path: Path, rows: Iterable[Row]) -> None:
    """Write the table anew; without rows there is none."""
    rows = list(rows)
    if not rows:
        path.unlink(missing_ok=True)
        return

    def write(part: Path) -> None:
        # An image's name may be any bytes, which this keeps.
        with part.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([("split", "image", "reason"), *rows])

    replace_file(path, write)


def read_unreadable(path: Path) -> tuple[Row, ...]:
    """What `write_unreadable` wrote; nothing where there is no table."""
    if not path.is_file():
        return ()
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        return tuple((row[0], row[1], row[2]) for row in list(csv.reader(file))[1:])
