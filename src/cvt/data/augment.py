"""Augmentation of training images: random crop, flip, color jitter, RandAugment, random erasing.

Without augmentation an image goes through the same functions as in evaluation.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from timm.data.auto_augment import RandAugment, rand_augment_transform
from torchvision.transforms import v2

from cvt.config import Preprocess
from cvt.data.config import AugmentConfig
from cvt.data.images import decode, open_image, to_rgb
from cvt.data.pipeline import Patch, Pipeline
from cvt.data.preprocess import FILTERS, check_channels, resize_and_crop
from cvt.system.errors import InputError

Size = tuple[int, int]  # width, height
Box = tuple[int, int, int, int]  # left, top, right, bottom

# Width over height of a random crop (Szegedy et al., 2015, as in torchvision and timm).
_MIN_ASPECT, _MAX_ASPECT = 3 / 4, 4 / 3
# Fraction of the image's area, and log of height over width, of an erased patch, as in timm.
_ERASED_AREA = (0.02, 1 / 3)
_ERASED_LOG_ASPECT = (math.log(0.3), math.log(1 / 0.3))


def training_transform(preprocess: Preprocess, augment: AugmentConfig) -> Pipeline:
    """`cvt.data.preprocess.prepare` with the augmentation of `augment`, but for mixing of batches.

    Draws from the global random states of torch, numpy and random. Raises InputError for a
    RandAugment that timm does not know.
    """
    check_channels(preprocess)
    size = preprocess.size
    resized = augment.crop == "resized"
    steps: list[Callable[[Image.Image], Image.Image]] = []
    if not resized:
        steps.append(partial(resize_and_crop, preprocess))
    if augment.crop == "shift":
        steps.append(partial(_shift, max(1, size // 8)))
    if augment.hflip:
        steps.append(v2.RandomHorizontalFlip(augment.hflip))
    if augment.color_jitter:
        steps.append(v2.ColorJitter(*(augment.color_jitter,) * 3))
    if augment.rand_augment:
        steps.append(_rand_augment(augment.rand_augment, preprocess))
    return Pipeline(
        preprocess=preprocess, steps=tuple(steps),
        read=RandomResizedCrop(preprocess=preprocess, scale=augment.scale) if resized else decode,
        erase=RandomErasing(augment.erasing) if augment.erasing else None)


# Module functions, not closures: transforms are pickled to send them to worker processes.
def _shift(max_pixels: int, image: Image.Image) -> Image.Image:
    """The image shifted by up to `max_pixels` in each direction, with the edge repeated.

    Draws and returns what torchvision's RandomCrop with padding_mode="edge" does, without a padded
    copy.
    """
    width, height = image.size
    down, right = (int(torch.randint(0, 2 * max_pixels + 1, (1,))) - max_pixels for _ in range(2))
    rows = (np.arange(height) + down).clip(0, height - 1)
    columns = (np.arange(width) + right).clip(0, width - 1)
    return Image.fromarray(np.asarray(image)[rows[:, None], columns])


def _rand_augment(config: str, preprocess: Preprocess) -> Callable[[Image.Image], Image.Image]:
    # As in timm, empty corners have the mean colour, and translation is at most 0.45 of the side.
    fill = tuple(round(255 * m) for m in preprocess.mean) * (1 if preprocess.channels == 3 else 3)
    hparams: dict[str, Any] = {"translate_const": int(preprocess.size * 0.45), "img_mean": fill}
    # As in timm, and so in the paper's recipe; Pillow has no rotation and shear with lanczos.
    if preprocess.interpolation != "lanczos":
        hparams["interpolation"] = FILTERS[preprocess.interpolation]
    try:
        transform = rand_augment_transform(config, hparams)
    except (AssertionError, ValueError, KeyError) as error:
        raise InputError(f"augment.rand_augment={config!r} is not RandAugment in timm's notation "
                         f"({error or type(error).__name__}); try rand-m9-mstd0.5-inc1") from None
    fix_posterize(transform)
    return transform


def fix_posterize(rand_augment: RandAugment) -> None:
    """Make posterization keep at least one bit.

    At the highest magnitude timm asks for 0 bits, which Pillow rejects since version 12.
    """
    for op in rand_augment.ops:
        if op.name.startswith("Posterize"):
            op.level_fn = partial(_at_least_one_bit, op.level_fn)


def _at_least_one_bit(level_fn: Callable[..., tuple[int]], level: float, hparams: Any
                      ) -> tuple[int]:
    return (max(1, level_fn(level, hparams)[0]),)


@dataclass(frozen=True, kw_only=True)
class RandomResizedCrop:
    """Crop of random area and aspect ratio, resized to the square of `preprocess.size`, from an
    image decoded no larger than the crop needs.

    scale: minimum and maximum fraction of the area, in (0, 1]. Draws from random's global state.
    """

    preprocess: Preprocess
    scale: tuple[float, float]

    def __call__(self, image: bytes | Image.Image, name: str) -> Image.Image:
        """The crop of an RGB image, or of an image file called `name` in errors; see
        `read_image`."""
        crop = image.crop(self.draw(image.size)) if isinstance(image, Image.Image) else (
            decode_crop(image, name, self.draw, self.preprocess.size))
        return resize(crop, self.preprocess.size, self.preprocess.interpolation)

    def draw(self, size: Size) -> Box:
        """A random box in an image; the largest central one if ten draws do not fit into it."""
        width, height = size
        for _ in range(10):
            area = random.uniform(*self.scale) * width * height
            aspect = math.exp(random.uniform(math.log(_MIN_ASPECT), math.log(_MAX_ASPECT)))
            wide, high = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < wide <= width and 0 < high <= height:
                left, top = random.randint(0, width - wide), random.randint(0, height - high)
                return left, top, left + wide, top + high
        wide = min(width, round(height * _MAX_ASPECT))
        high = min(height, round(width / _MIN_ASPECT))
        left, top = (width - wide) // 2, (height - high) // 2
        return left, top, left + wide, top + high


def decode_crop(data: bytes, name: str, draw: Callable[[Size], Box], side: int) -> Image.Image:
    """The box that `draw` chooses in an image file, as `read_image` reads it.

    A JPEG is decoded at a half, a quarter or an eighth of its size, as small as leaves the box
    `side` pixels a side; the box then moves by less than a decoded pixel. `draw` gets the size of a
    JPEG before its EXIF rotation, of any other image after it.
    """
    with open_image(data, name) as file:
        if file.format not in ("JPEG", "MPO"):
            image = to_rgb(file, name)  # before the crop, because its bit depth needs all pixels
            return image.crop(draw(image.size))
        box = draw(file.size)
        left, top, right, bottom = box
        short = min(right - left, bottom - top)
        shrink = next((times for times in (8, 4, 2) if short >= times * side), 1)
        target = file.width // shrink, file.height // shrink
        if shrink > 1 and file.draft(None, target) is not None:
            wide, high = round((right - left) / shrink), round((bottom - top) / shrink)
            left = min(round(left / shrink), file.width - wide)
            top = min(round(top / shrink), file.height - high)
            box = left, top, left + wide, top + high
        return to_rgb(file.crop(box), name)


def resize(image: Image.Image, size: int, interpolation: str) -> Image.Image:
    """An RGB image resized to a square of `size` pixels."""
    if interpolation not in ("bicubic", "bilinear"):
        return image.resize((size, size), FILTERS[interpolation])
    # PyTorch's 8-bit filter takes a fifth of the time of Pillow's and differs by rounding. The
    # fourth channel, which Pillow has in memory, spares both sides the repacking.
    data = torch.frombuffer(bytearray(image.tobytes("raw", "RGBX")), dtype=torch.uint8)
    x = data.view(1, image.height, image.width, 4).permute(0, 3, 1, 2)
    x = F.interpolate(x, (size, size), mode=interpolation, antialias=True)
    pixels = x[0].permute(1, 2, 0).numpy().tobytes()
    return Image.frombytes("RGB", (size, size), pixels, "raw", "RGBX")


@dataclass(frozen=True)
class RandomErasing:
    """Random erasing (Zhong et al., 2020) with normal noise for every pixel: timm's "pixel" mode.

    Draws from the global states of random and torch what timm's RandomErasing draws, so patches are
    equal, but needs no image to do so.
    """

    probability: float

    def __call__(self, channels: int, height: int, width: int) -> Patch | None:
        """A patch for an image of that shape, or None."""
        if random.random() > self.probability:
            return None
        for _ in range(10):
            area = random.uniform(*_ERASED_AREA) * height * width
            aspect = math.exp(random.uniform(*_ERASED_LOG_ASPECT))
            high, wide = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if wide < width and high < height:
                top, left = random.randint(0, height - high), random.randint(0, width - wide)
                noise = torch.empty(channels * high * wide).normal_()
                return Patch(top, left, (channels, high, wide), noise)
        return None
