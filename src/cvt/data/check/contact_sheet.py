"""A contact sheet: sample images of each class on one page."""

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

MAX_CLASSES = 20
IMAGES_PER_CLASS = 10

# In pixels; the last three are font sizes.
_CELL, _GAP, _MARGIN, _TEXT = 96, 8, 24, 240
_TITLE, _NAME, _NOTE = 22, 17, 13
_INK, _FAINT, _LINE, _ALARM = "#1a1a1a", "#666666", "#d0d0d0", "#b3261e"


def contact_sheet(dataset: Dataset, title: str, unreadable: Collection[str] = ()) -> Image.Image:
    """One row per class, the largest first, at most MAX_CLASSES; RGB, on white.

    A row has the name of the class, its number of images, and at most IMAGES_PER_CLASS images,
    evenly spread over both splits. An image that cannot be read, or whose name is in `unreadable`,
    is marked as unreadable.
    """
    images, train = dataset.all, len(dataset.train)
    labels = np.array(images.labels)
    counts = np.bincount(labels, minlength=len(images.classes))
    order = (-counts).argsort(kind="stable")
    order = order[counts[order] > 0]
    rows = [(int(label), np.flatnonzero(labels == label)) for label in order[:MAX_CLASSES]]
    chosen = [_spread(indices) for _, indices in rows]
    cells = in_threads(partial(_cell, images, frozenset(unreadable)),
                       [i for row in chosen for i in row])

    left = _MARGIN + _TEXT
    top = _MARGIN + _TITLE + _GAP + _NAME + _MARGIN
    hidden = len(order) - len(rows)
    sheet = Image.new("RGB", (left + IMAGES_PER_CLASS * (_CELL + _GAP) - _GAP + _MARGIN,
                              top + len(rows) * (_CELL + _GAP) - _GAP + _MARGIN
                              + (2 * _NAME if hidden else 0)), "white")
    draw = ImageDraw.Draw(sheet)
    width = sheet.width - 2 * _MARGIN
    write_line(draw, (_MARGIN, _MARGIN), title, _TITLE, _INK, width)
    write_line(draw, (_MARGIN, _MARGIN + _TITLE + _GAP),
               f"{len(images):,} images, {len(order):,} classes", _NAME, _FAINT, width)
    for row, ((label, indices), shown) in enumerate(zip(rows, chosen, strict=True)):
        y = top + row * (_CELL + _GAP)
        val = int((indices >= train).sum())
        write_line(draw, (_MARGIN, y + _CELL // 2 - _NAME - 3), images.classes[label], _NAME,
                   _INK, _TEXT - _MARGIN)
        write_line(draw, (_MARGIN, y + _CELL // 2 + 5),
                   f"{len(indices) - val:,} train, {val:,} val", _NOTE, _FAINT, _TEXT - _MARGIN)
        for column in range(len(shown)):
            sheet.paste(next(cells), (left + column * (_CELL + _GAP), y))
    if hidden:
        write_line(draw, (_MARGIN, sheet.height - _MARGIN - _NAME),
                   f"and {hidden:,} smaller classes", _NAME, _FAINT, width)
    return sheet


def _spread(indices: Sequence[int] | np.ndarray) -> list[int]:
    """At most IMAGES_PER_CLASS of the indices, evenly spread, including the first and the last."""
    take = np.linspace(0, len(indices) - 1, min(IMAGES_PER_CLASS, len(indices)))
    return [int(indices[i]) for i in take.round().astype(int)]


def _cell(images: LabeledImages, unreadable: Collection[str], index: int) -> Image.Image:
    """A whole image in a square with a thin frame."""
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
    side = _CELL - 4  # without the frame and a pixel beside it
    scale = side / max(image.size)
    width, height = (max(1, round(length * scale)) for length in image.size)
    # Pixels of tiny images are enlarged without blur.
    filter_ = Image.Resampling.NEAREST if scale >= 4 else Image.Resampling.LANCZOS
    cell.paste(image.resize((width, height), filter_, reducing_gap=3.0),
               ((_CELL - width) // 2, (_CELL - height) // 2))
    draw.rectangle((0, 0, _CELL - 1, _CELL - 1), outline=_LINE)
    return cell
