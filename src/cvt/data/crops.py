"""A random part of an image, at the size the network sees, decoded no larger than that needs."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from PIL import Image

from cvt.config import Preprocess
from cvt.data.images import as_rgb, opened
from cvt.data.prepare import FILTERS

Size = tuple[int, int]  # width, height
Box = tuple[int, int, int, int]  # left, top, right, bottom

# Width over height, narrowest and widest (Szegedy et al., 2015, as in torchvision and timm).
_NARROW, _WIDE = 3 / 4, 4 / 3


@dataclass(frozen=True, kw_only=True)
class ResizedCrop:
    """Cuts a random part of random shape and makes it the square that `preprocess` asks for.

    scale: least and largest part of the area, in (0, 1]. Draws from random's global state.
    """

    preprocess: Preprocess
    scale: tuple[float, float]

    def __call__(self, found: bytes | Image.Image, name: str) -> Image.Image:
        """From an RGB image, or the file of any, called `name` in errors; see `read_image`."""
        part = found.crop(self.draw(found.size)) if isinstance(found, Image.Image) else (
            read_part(found, name, self.draw, self.preprocess.size))
        return resized(part, self.preprocess.size, self.preprocess.interpolation)

    def draw(self, size: Size) -> Box:
        """Which part of an image; the most of its middle where ten draws do not fit into it."""
        width, height = size
        for _ in range(10):
            area = random.uniform(*self.scale) * width * height
            aspect = math.exp(random.uniform(math.log(_NARROW), math.log(_WIDE)))
            wide, high = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < wide <= width and 0 < high <= height:
                left, top = random.randint(0, width - wide), random.randint(0, height - high)
                return left, top, left + wide, top + high
        wide, high = min(width, round(height * _WIDE)), min(height, round(width / _NARROW))
        left, top = (width - wide) // 2, (height - high) // 2
        return left, top, left + wide, top + high


def read_part(data: bytes, name: str, draw: Callable[[Size], Box], side: int) -> Image.Image:
    """The part that `draw` chooses of the image in a file's bytes, as `read_image` shows it.

    A JPEG is decoded at a half, a quarter or an eighth of its size, as small as leaves the part
    `side` pixels a side; the part then moves by less than a decoded pixel. `draw` sees a JPEG's
    size before it is turned upright, any other image's after.
    """
    with opened(data, name) as file:
        if file.format not in ("JPEG", "MPO"):
            image = as_rgb(file, name)  # first, for how deep it is depends on all its pixels
            return image.crop(draw(image.size))
        box = draw(file.size)
        shrink = _shrink(box, side)
        wanted = file.width // shrink, file.height // shrink
        if shrink > 1 and file.draft(None, wanted) is not None:
            box = _shrunk(box, shrink, file.size)
        return as_rgb(file.crop(box), name)


def resized(image: Image.Image, size: int, interpolation: str) -> Image.Image:
    """An RGB image as a square of `size` pixels."""
    if interpolation not in ("bicubic", "bilinear"):
        return image.resize((size, size), FILTERS[interpolation])
    # PyTorch's filter for bytes takes a fifth of the time of Pillow's, from which it differs by
    # rounding. A fourth channel, as Pillow has in memory, spares both sides the repacking.
    data = torch.frombuffer(bytearray(image.tobytes("raw", "RGBX")), dtype=torch.uint8)
    x = data.view(1, image.height, image.width, 4).permute(0, 3, 1, 2)
    x = F.interpolate(x, (size, size), mode=interpolation, antialias=True)
    pixels = x[0].permute(1, 2, 0).numpy().tobytes()
    return Image.frombytes("RGB", (size, size), pixels, "raw", "RGBX")


def _shrink(box: Box, side: int) -> int:
    """By how much a decoder may shrink the image for the box to keep `side` pixels a side."""
    left, top, right, bottom = box
    short = min(right - left, bottom - top)
    return next((times for times in (8, 4, 2) if short >= times * side), 1)


def _shrunk(box: Box, shrink: int, size: Size) -> Box:
    """The box in an image that was shrunk to `size`, none of its sides less than it should be."""
    left, top, right, bottom = box
    wide, high = round((right - left) / shrink), round((bottom - top) / shrink)
    left = min(round(left / shrink), size[0] - wide)
    top = min(round(top / shrink), size[1] - high)
    return left, top, left + wide, top + high
