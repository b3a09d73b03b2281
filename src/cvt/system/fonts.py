"""Text in images."""

from __future__ import annotations

import functools
from importlib.util import find_spec
from pathlib import Path

from PIL import ImageDraw, ImageFont


def write_line(draw: ImageDraw.ImageDraw, place: tuple[int, int], text: str, height: int,
               colour: str, room: int) -> None:
    """One line, cut to `room` pixels; what cannot be drawn, such as a line break, is a mark."""
    letters = font(height)
    line = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text[:200])
    if letters.getlength(line) > room:
        while line and letters.getlength(line + "...") > room:
            line = line[:-1]
        line += "..."
    draw.text(place, line, colour, letters)


@functools.cache
def font(height: int) -> ImageFont.FreeTypeFont:
    """Letters `height` pixels high."""
    # matplotlib's own: it has more letters than Pillow's, and is the same on every machine. It is
    # not imported for that, which takes its time.
    found = find_spec("matplotlib")
    assert found is not None
    assert found.origin is not None  # a dependency of this package
    return ImageFont.truetype(Path(found.origin).parent / "mpl-data/fonts/ttf/DejaVuSans.ttf",
                              height)
