"""A contact sheet: what each class looks like, on one page."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Sequence
from functools import partial

import numpy as np
from PIL import Image, ImageDraw

from cvt.data.dataset import Dataset, LabeledImages
from cvt.data.parallel import in_threads
from cvt.system.errors import InputError
from cvt.system.text import font, write_line

MOST_CLASSES = 20
ACROSS = 10  # images of a class

# All in pixels.
_CELL, _GAP, _MARGIN, _TEXT = 96, 8, 24, 240
_TITLE, _NAME, _NOTE = 22, 17, 13  # heights of letters
_INK, _FAINT, _LINE, _ALARM = "#1a1a1a", "#666666", "#d0d0d0", "#b3261e"


def contact_sheet(dataset: Dataset, title: str, unreadable: Collection[str] = ()) -> Image.Image:
    """A row for each class, the most frequent first, at most 20 of them; RGB, on white.

    Each has its name, its counts and at most ten images, evenly spread over both halves. One that
    cannot be read, or whose name is in `unreadable`, is a box that says so.
    """
    images, train = dataset.all, len(dataset.train)
    labels = np.array(images.labels)
    counts = np.bincount(labels, minlength=len(images.classes))
    order = (-counts).argsort(kind="stable")
    order = order[counts[order] > 0]
    rows = [(int(label), np.flatnonzero(labels == label)) for label in order[:MOST_CLASSES]]
    chosen = [_spread(places) for _, places in rows]
    cells = in_threads(partial(_cell, images, frozenset(unreadable)),
                       [i for row in chosen for i in row])

    left = _MARGIN + _TEXT
    top = _MARGIN + _TITLE + _GAP + _NAME + _MARGIN
    rest = len(order) - len(rows)
    sheet = Image.new("RGB", (left + ACROSS * (_CELL + _GAP) - _GAP + _MARGIN,
                              top + len(rows) * (_CELL + _GAP) - _GAP + _MARGIN
                              + (2 * _NAME if rest else 0)), "white")
    draw = ImageDraw.Draw(sheet)
    room = sheet.width - 2 * _MARGIN
    write_line(draw, (_MARGIN, _MARGIN), title, _TITLE, _INK, room)
    write_line(draw, (_MARGIN, _MARGIN + _TITLE + _GAP),
           f"{len(images):,} images, {len(order):,} classes", _NAME, _FAINT, room)
    for row, ((label, places), shown) in enumerate(zip(rows, chosen, strict=True)):
        y = top + row * (_CELL + _GAP)
        held_out = int((places >= train).sum())
        write_line(draw, (_MARGIN, y + _CELL // 2 - _NAME - 3), images.classes[label], _NAME,
                   _INK, _TEXT - _MARGIN)
        write_line(draw, (_MARGIN, y + _CELL // 2 + 5),
               f"{len(places) - held_out:,} train, {held_out:,} val", _NOTE, _FAINT,
               _TEXT - _MARGIN)
        for column in range(len(shown)):
            sheet.paste(next(cells), (left + column * (_CELL + _GAP), y))
    if rest:
        write_line(draw, (_MARGIN, sheet.height - _MARGIN - _NAME), f"and {rest:,} smaller classes",
               _NAME, _FAINT, room)
    return sheet


def _spread(places: Sequence[int] | np.ndarray) -> list[int]:
    """At most ACROSS of the places, evenly spread, the first and the last among them."""
    take = np.linspace(0, len(places) - 1, min(ACROSS, len(places))).round().astype(int)
    return [int(places[i]) for i in take]


def _cell(images: LabeledImages, unreadable: Collection[str], index: int) -> Image.Image:
    """An image, whole, in a square with a thin line around it."""
    cell = Image.new("RGB", (_CELL, _CELL), "white")
    draw = ImageDraw.Draw(cell)
    image = None
    if images.names[index] not in unreadable:
        with contextlib.suppress(InputError, OSError):
            image = images.read(index)
    if image is None:
        draw.line((0, 0, _CELL, _CELL), _ALARM)
        draw.line((0, _CELL, _CELL, 0), _ALARM)
        draw.rectangle((8, _CELL // 2 - 11, _CELL - 9, _CELL // 2 + 11), "white")
        draw.text((_CELL // 2, _CELL // 2), "unreadable", _ALARM, font(_NOTE), anchor="mm")
        draw.rectangle((0, 0, _CELL - 1, _CELL - 1), outline=_ALARM)
        return cell
    room = _CELL - 4  # the line and a pixel beside it
    scale = room / max(image.size)
    size = tuple(max(1, round(side * scale)) for side in image.size)
    # The pixels of tiny images are shown as they are, not blurred.
    filter_ = Image.Resampling.NEAREST if scale >= 4 else Image.Resampling.LANCZOS
    small = image.resize((size[0], size[1]), filter_, reducing_gap=3.0)
    cell.paste(small, ((_CELL - size[0]) // 2, (_CELL - size[1]) // 2))
    draw.rectangle((0, 0, _CELL - 1, _CELL - 1), outline=_LINE)
    return cell
