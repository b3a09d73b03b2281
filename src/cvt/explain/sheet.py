"""All that an explanation shows, on one page and as files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from PIL import Image, ImageDraw

from cvt.data.parallel import in_threads
from cvt.explain.run import Explanation
from cvt.system.files import replace_file
from cvt.system.fonts import write_line

SHEET, ARRAYS = "sheet.png", "explanation.json"

# All in pixels.
_CELL, _GAP, _MARGIN, _LABEL = 128, 10, 24, 18
_TITLE, _TEXT = 20, 13  # heights of letters
_INK, _FAINT = "#1a1a1a", "#5c5c5c"
_ACROSS = 8
_LISTED = 5  # classes


def sheet(explanation: Explanation, images: Mapping[str, Image.Image], title: str
          ) -> Image.Image:
    """The image, its classes, every map, and a row a block with the attention of each head.

    images: those of `explanation`.
    """
    top = [(_caption(name, explanation), images[name]) for name in images
           if not name.startswith("attention")]
    rows = [top[i:i + _ACROSS] for i in range(0, len(top), _ACROSS)]
    for block in range(1, len(explanation.attention) + 1):
        names = [name for name in images if name.startswith(f"attention_block{block}_")]
        rows += [[(_caption(name, explanation), images[name]) for name in names[i:i + _ACROSS]]
                 for i in range(0, len(names), _ACROSS)]
    across = max(map(len, rows))
    head = _MARGIN + _TITLE + _GAP + _LABEL * min(_LISTED, len(explanation.classes)) + _GAP
    width = max(2 * _MARGIN + across * (_CELL + _GAP) - _GAP, 560)
    page = Image.new("RGB", (width, head + len(rows) * (_CELL + _LABEL + _GAP) + _MARGIN), "white")
    draw = ImageDraw.Draw(page)
    write_line(draw, (_MARGIN, _MARGIN), title, _TITLE, _INK, width - 2 * _MARGIN)
    for i, (name, probability) in enumerate(explanation.classes[:_LISTED]):
        write_line(draw, (_MARGIN, _MARGIN + _TITLE + _GAP + i * _LABEL),
                   f"{probability:6.1%}  {name}", _TEXT, _INK, width - 2 * _MARGIN)
    for y, row in enumerate(rows):
        for x, (caption, image) in enumerate(row):
            left, up = _MARGIN + x * (_CELL + _GAP), head + y * (_CELL + _LABEL + _GAP)
            write_line(draw, (left, up), caption, _TEXT, _FAINT, _CELL)
            small = image.width > _CELL
            page.paste(image.resize((_CELL, _CELL), Image.Resampling.LANCZOS if small
                                      else Image.Resampling.NEAREST), (left, up + _LABEL))
    return page


def _caption(name: str, explanation: Explanation) -> str:
    kind, _, rest = name.partition("_")
    if name.startswith("grad_cam"):
        return f"Grad-CAM, stage {name.removeprefix('grad_cam_stage')}"
    if kind == "tokens":
        grid = explanation.tokens[int(rest.removeprefix("stage")) - 1].shape[1:]
        return f"tokens, {grid[0]}x{grid[1]}"
    if kind == "attention":
        block, _, head = rest.partition("_")
        return f"block {block.removeprefix('block')}, {head.replace('head', 'head ')}"
    return {"input": "as it is seen", "rollout": "attention rollout"}[name]


def write(explanation: Explanation, directory: Path, *, title: str, arrays: bool = False) -> Path:
    """Write the sheet, every map as a PNG and, with `arrays`, explanation.json; the sheet's path.

    The directory is made if need be; files of the same names are replaced.
    """
    directory.mkdir(parents=True, exist_ok=True)
    images = explanation.images()
    files = {f"{name}.png": image for name, image in images.items()}
    files[SHEET] = sheet(explanation, images, title)
    named = list(files.items())

    def save(index: int) -> None:
        name, image = named[index]
        # Quickly, not as small as could be: there are many.
        replace_file(directory / name, partial(image.save, format="PNG", compress_level=1))

    for _ in in_threads(save, range(len(named))):
        pass
    if arrays:
        text = json.dumps(explanation.to_dict())
        replace_file(directory / ARRAYS, lambda part: part.write_text(text, encoding="utf-8"))
    return directory / SHEET
