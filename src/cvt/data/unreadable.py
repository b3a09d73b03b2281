"""Images that cannot be read: the reason, the limit on their number, and the table that lists them.
"""

from __future__ import annotations

import csv
from collections import UserDict
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from cvt.system.errors import InputError
from cvt.system.files import replace_file

if TYPE_CHECKING:  # slow to import, and prediction needs only the table
    from cvt.data.dataset import LabeledImages

UNREADABLE = "unreadable.csv"
"""Name of the table in the directory of a run or of a copy."""

Row = tuple[str, str, str]  # split, image, reason


def unreadable_reason(error: InputError | OSError, name: str) -> str:
    """Why the image `name` cannot be read, in one line that contains the name."""
    reason = str(getattr(error, "strerror", None) or error)
    return reason if name in reason else f"{name}: {reason}"


class UnreadableImages(UserDict[int, str]):
    """Maps the index of each unreadable image of `images` to the reason.

    max_fraction: how many of the images may be unreadable, in [0, 1]. Adding one more raises
    InputError.
    """

    def __init__(self, images: LabeledImages, max_fraction: float) -> None:
        super().__init__()
        self._images, self._max_fraction = images, max_fraction

    def __setitem__(self, index: int, reason: str) -> None:
        super().__setitem__(index, reason)
        n = len(self._images)
        if len(self) > self._max_fraction * n:
            raise InputError(reason if self._max_fraction == 0 else
                             f"{len(self)} of {n:,} images cannot be read, more than "
                             f"data.max_unreadable={self._max_fraction:g} allows; the last: "
                             f"{reason}")

    def rows(self) -> list[tuple[str, str]]:
        """Name and reason of each, in the dataset's order."""
        return [(self._images.names[i], self[i]) for i in sorted(self)]


def write_unreadable(path: Path, rows: Iterable[Row]) -> None:
    """Replace the table with `rows`; without rows, remove it."""
    rows = list(rows)
    if not rows:
        path.unlink(missing_ok=True)
        return

    def write(part: Path) -> None:
        # A file name may contain any bytes; surrogateescape keeps them.
        with part.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([("split", "image", "reason"), *rows])

    replace_file(path, write)


def read_unreadable(path: Path) -> tuple[Row, ...]:
    """The rows that `write_unreadable` wrote; empty if there is no table."""
    if not path.is_file():
        return ()
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        return tuple((row[0], row[1], row[2]) for row in list(csv.reader(file))[1:])
