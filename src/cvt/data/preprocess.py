"""Preprocessing for evaluation and prediction: from an image to the network's input. No torch.

Training, evaluation and every deployment use these functions, so that all of them see the same
numbers bit for bit.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cvt.config import Preprocess
from cvt.system.errors import InputError

FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR,
            "nearest": Image.Resampling.NEAREST, "lanczos": Image.Resampling.LANCZOS}

# Of an image whose short side is resized, before the crop; a panorama has a tenth of it.
_MAX_RESIZED_PIXELS = 16_000_000


def prepare(preprocess: Preprocess, image: Image.Image) -> NDArray[np.float32]:
    """An RGB image of any size to the network's input (channels, size, size), normalized.

    Raises InputError for an image so thin that resizing its short side would take too much memory.
    """
    return normalize(preprocess, resize_and_crop(preprocess, image))


def resize_and_crop(preprocess: Preprocess, image: Image.Image) -> Image.Image:
    """The square of `size` pixels that the network sees."""
    side, size = preprocess.resize, preprocess.size
    if preprocess.mode == "squash":
        target = (side, side)
    else:
        check_aspect_ratio(preprocess, image.width, image.height)
        other = int(side * max(image.size) / min(image.size))
        target = (side, other) if image.width <= image.height else (other, side)
    if image.size != target:
        image = image.resize(target, FILTERS[preprocess.interpolation])
    left, top = (round((whole - size) / 2) for whole in image.size)
    return image if image.size == (size, size) else image.crop((left, top, left + size, top + size))


def check_aspect_ratio(preprocess: Preprocess, width: int, height: int) -> None:
    """Raise InputError for an image so thin that resizing its short side would take too much
    memory."""
    short, long, side = min(width, height), max(width, height), preprocess.resize
    if preprocess.mode == "crop" and long * side * side > short * _MAX_RESIZED_PIXELS:
        raise InputError(f"an image of {width}x{height} pixels is too thin to resize its short "
                         f"side to {side}; cut it first")


def normalize(preprocess: Preprocess, image: Image.Image) -> NDArray[np.float32]:
    """An 8-bit RGB image as float32 (channels, H, W), normalized by `mean` and `std`."""
    pixels = to_array(preprocess, image)
    out = np.empty((preprocess.channels, *pixels.shape[:2]), np.float32)
    normalize_into(preprocess, pixels, out)
    return out


def to_array(preprocess: Preprocess, image: Image.Image) -> NDArray[np.uint8]:
    """An 8-bit RGB image as (H, W, channels)."""
    pixels = np.asarray(image.convert("L") if preprocess.channels == 1 else image)
    return pixels.reshape(*pixels.shape[:2], -1)


def normalize_into(preprocess: Preprocess, pixels: NDArray[np.uint8], out: NDArray[np.float32]
                   ) -> None:
    """Write `pixels` (H, W, channels) into `out` (channels, H, W), normalized by `mean` and
    `std`."""
    # Channel by channel, because one channel fits the processor's cache.
    for channel, (mean, std) in enumerate(zip(preprocess.mean, preprocess.std, strict=True)):
        plane = out[channel]
        np.divide(pixels[..., channel], 255, out=plane, dtype=np.float32)
        plane -= np.float32(mean)
        plane /= np.float32(std)


def check_channels(preprocess: Preprocess) -> None:
    """Raise InputError unless images can have the channels of `preprocess`."""
    if preprocess.channels not in (1, 3):
        raise InputError(f"the model takes {preprocess.channels} channels, an image has 1 (gray) "
                         "or 3 (RGB); give the model tensors of your own")
