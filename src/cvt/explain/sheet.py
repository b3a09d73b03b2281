"""Explanations as files: one sheet with every map, and a PNG each."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from PIL import Image, ImageDraw

from cvt.data.parallel import in_threads
from cvt.explain.run import Explanation
from cvt.system.files import replace_file
from cvt.system.text import write_line

SHEET, ARRAYS = "sheet.png", "explanation.json"

# All in pixels.
_CELL, _GAP, _MARGIN, _LABEL = 128, 10, 24, 18
_TITLE, _TEXT = 20, 13  # font sizes
_INK, _FAINT = "#1a1a1a", "#5c5c5c"
_MAX_COLUMNS = 8
_TOP_K = 5  # classes


def draw_sheet(explanation: Explanation, images: Mapping[str, Image.Image], title: str
               ) -> Image.Image:
    """The image, its classes, every map, and for each block a row with the attention by head.

    images: the result of `explanation.images()`.
    """
    groups = [[name for name in images if not name.startswith("attention")]]
    for block in range(1, len(explanation.attention) + 1):
        groups.append([name for name in images if name.startswith(f"attention_block{block}_")])
    rows = [names[i:i + _MAX_COLUMNS] for names in groups
            for i in range(0, len(names), _MAX_COLUMNS)]
    columns = max(map(len, rows))
    head = _MARGIN + _TITLE + _GAP + _LABEL * min(_TOP_K, len(explanation.classes)) + _GAP
    width = max(2 * _MARGIN + columns * (_CELL + _GAP) - _GAP, 560)
    page = Image.new("RGB", (width, head + len(rows) * (_CELL + _LABEL + _GAP) + _MARGIN), "white")
    draw = ImageDraw.Draw(page)
    write_line(draw, (_MARGIN, _MARGIN), title, _TITLE, _INK, width - 2 * _MARGIN)
    for i, (name, probability) in enumerate(explanation.classes[:_TOP_K]):
        write_line(draw, (_MARGIN, _MARGIN + _TITLE + _GAP + i * _LABEL),
                   f"{probability:6.1%}  {name}", _TEXT, _INK, width - 2 * _MARGIN)
    for y, row in enumerate(rows):
        for x, image_name in enumerate(row):
            image = images[image_name]
            left, top = _MARGIN + x * (_CELL + _GAP), head + y * (_CELL + _LABEL + _GAP)
            write_line(draw, (left, top), _caption(image_name, explanation), _TEXT, _FAINT, _CELL)
            small = image.width > _CELL
            page.paste(image.resize((_CELL, _CELL), Image.Resampling.LANCZOS if small
                                      else Image.Resampling.NEAREST), (left, top + _LABEL))
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
    return {"input": "input image", "rollout": "attention rollout"}[name]


def write_explanation(explanation: Explanation, directory: Path, *, title: str,
                      arrays: bool = False) -> Path:
    """Write the sheet, every map as a PNG and, with `arrays`, explanation.json.

    Creates the directory, replaces files of the same names, and returns the sheet's path.
    """
    directory.mkdir(parents=True, exist_ok=True)
    images = explanation.images()
    files = {f"{name}.png": image for name, image in images.items()}
    files[SHEET] = draw_sheet(explanation, images, title)
    named = list(files.items())

    def save(index: int) -> None:
        name, image = named[index]
        # Many files: speed matters more than size.
        replace_file(directory / name, partial(image.save, format="PNG", compress_level=1))

    for _ in in_threads(save, range(len(named))):
        pass
    if arrays:
        text = json.dumps(explanation.to_dict())
        replace_file(directory / ARRAYS, lambda part: part.write_text(text, encoding="utf-8"))
    return directory / SHEET
