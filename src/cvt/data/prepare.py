"""From an image to the network's input as evaluation and prediction do it. No torch.

Everyone who feeds a network, with PyTorch or without it, comes through here, so that what is
trained, evaluated and deployed sees the same numbers bit for bit.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cvt.config import Preprocess
from cvt.system.errors import InputError

FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR,
            "nearest": Image.Resampling.NEAREST, "lanczos": Image.Resampling.LANCZOS}

# Pixels of an image whose short side is resized, before it is cut: a panorama has a tenth.
_MOST_RESIZED = 16_000_000


def prepare(preprocess: Preprocess, image: Image.Image) -> NDArray[np.float32]:
    """An RGB image of any size to the network's input (channels, size, size), normalised.

    Raises InputError for an image so thin that resizing its short side would fill the memory.
    """
    return normalised(preprocess, frame(preprocess, image))


def frame(preprocess: Preprocess, image: Image.Image) -> Image.Image:
    """The square of `size` pixels that the network sees."""
    side, size = preprocess.resize, preprocess.size
    if preprocess.mode == "squash":
        target = (side, side)
    else:
        check_shape(preprocess, image.width, image.height)
        other = int(side * max(image.size) / min(image.size))
        target = (side, other) if image.width <= image.height else (other, side)
    if image.size != target:
        image = image.resize(target, FILTERS[preprocess.interpolation])
    left, top = (round((whole - size) / 2) for whole in image.size)
    return image if image.size == (size, size) else image.crop((left, top, left + size, top + size))


def check_shape(preprocess: Preprocess, width: int, height: int) -> None:
    """Raise InputError for an image so thin that resizing its short side would fill the memory."""
    short, long, side = min(width, height), max(width, height), preprocess.resize
    if (preprocess.mode == "crop"
            and long * side * side > short * _MOST_RESIZED):
        raise InputError(f"an image of {width}x{height} pixels is too thin to resize its short "
                         f"side to {side}; cut it first")


def normalised(preprocess: Preprocess, image: Image.Image) -> NDArray[np.float32]:
    """An 8-bit RGB image as float32 (channels, H, W) with `mean` and `std` taken out."""
    pixels = pixels_of(preprocess, image)
    out = np.empty((preprocess.channels, *pixels.shape[:2]), np.float32)
    normalise(preprocess, pixels, out)
    return out


def pixels_of(preprocess: Preprocess, image: Image.Image) -> NDArray[np.uint8]:
    """An 8-bit RGB image as (H, W, channels)."""
    pixels = np.asarray(image.convert("L") if preprocess.channels == 1 else image)
    return pixels.reshape(*pixels.shape[:2], -1)


def normalise(preprocess: Preprocess, pixels: NDArray[np.uint8], out: NDArray[np.float32]
              ) -> None:
    """Write `pixels` (H, W, channels) into `out` (channels, H, W), `mean` and `std` taken out."""
    # Channel by channel, for one fits the processor's cache.
    for channel, (mean, std) in enumerate(zip(preprocess.mean, preprocess.std, strict=True)):
        plane = out[channel]
        np.divide(pixels[..., channel], 255, out=plane, dtype=np.float32)
        plane -= np.float32(mean)
        plane /= np.float32(std)


def check_channels(preprocess: Preprocess) -> None:
    """Raise InputError where no image has the channels that `preprocess` asks for."""
    if preprocess.channels not in (1, 3):
        raise InputError(f"the model takes {preprocess.channels} channels, an image has 1 (gray) "
                         "or 3 (RGB); give the model tensors of your own")
