"""Tables on the standard output that contain names of users."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions
from rich.measure import Measurement
from rich.segment import Segment
from rich.text import Text

from cvt.system.text import printable

_MARK = "..."
_MIN_PATH = 24  # columns, if the terminal has so many
_UNLIMITED = 1_000_000  # columns


def console() -> Console:
    """The console of the standard output. Only a terminal limits the width of tables: in a pipe or
    a file nothing is cut or wrapped."""
    result = Console()
    if not result.is_terminal:
        result.width = _UNLIMITED
    return result


@dataclass(frozen=True)
class PathCell:
    """A path in a table. If it is too long its front is cut, so that rows stay different."""

    path: str

    def __rich_measure__(self, _: Console, options: ConsoleOptions) -> Measurement:
        length = Text(printable(self.path)).cell_len
        return Measurement(min(length, _MIN_PATH), length).with_maximum(options.max_width)

    def __rich_console__(self, _: Console, options: ConsoleOptions) -> Iterator[Segment]:
        text, width = printable(self.path), options.max_width
        if Text(text).cell_len > width:
            while text and Text(_MARK + text).cell_len > width:
                text = text[1:]
            text = (_MARK + text)[:width]
        yield Segment(text)
        yield Segment.line()
