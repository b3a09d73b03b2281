"""Text for terminals and in images."""

from __future__ import annotations

import functools
import re
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import ImageDraw, ImageFont


_SURROGATE = re.compile("[\ud800-\udfff]")


def utf8(text: str) -> str:
    r"""`text` that can be encoded: bytes of a file name that are not UTF-8 become \xNN.

    Python keeps such bytes as surrogates, which no encoding has.

    >>> print(utf8("caf\udce9"))
    caf\xe9
    """
    return _SURROGATE.sub(lambda match: _escaped(match[0]), text)


def printable(text: str) -> str:
    r"""`text` with unprintable characters, such as control codes of a terminal, escaped, and bytes
    that are not UTF-8 as `utf8` writes them.

    >>> print(printable("a\x1b[31mb"))
    a\x1b[31mb
    """
    return "".join(c if c.isprintable() else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    if "\udc80" <= character <= "\udcff":
        return f"\\x{ord(character) & 0xff:02x}"
    return character.encode("unicode_escape").decode()


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
