"""Text for terminals and in images."""

from __future__ import annotations

import functools
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import ImageDraw, ImageFont


def printable(text: str) -> str:
    r"""`text` with unprintable characters, such as control codes of a terminal, escaped.

    >>> print(printable("a\x1b[31mb"))
    a\x1b[31mb
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode()
                   for c in text)


def write_line(draw: ImageDraw.ImageDraw, xy: tuple[int, int], text: str, height: int, color: str,
               max_width: int) -> None:
    """Draw one line, shortened to `max_width` pixels, with a mark for unprintable characters."""
    letters = font(height)
    line = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text[:200])
    if letters.getlength(line) > max_width:
        while line and letters.getlength(line + "...") > max_width:
            line = line[:-1]
        line += "..."
    draw.text(xy, line, color, letters)


@functools.cache
def font(height: int) -> ImageFont.FreeTypeFont:
    """A font of `height` pixels, the same on every machine."""
    from PIL import ImageFont

    # It comes with matplotlib, has more characters than Pillow's, and is found without the slow
    # import of matplotlib.
    spec = find_spec("matplotlib")
    assert spec is not None
    assert spec.origin is not None  # a dependency of this package
    return ImageFont.truetype(Path(spec.origin).parent / "mpl-data/fonts/ttf/DejaVuSans.ttf",
                              height)
