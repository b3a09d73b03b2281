"""From an image to the network's input, varied at random for training.

Without augmentation it is what evaluation does, piece by piece the same functions.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data.auto_augment import RandAugment, rand_augment_transform
from torchvision.transforms import v2

from cvt.config import Preprocess
from cvt.data.config import AugmentConfig
from cvt.data.crops import ResizedCrop
from cvt.data.erasing import Erasing
from cvt.data.images import rgb_of
from cvt.data.prepare import FILTERS, check_channels, frame
from cvt.data.samples import Pipeline
from cvt.system.errors import InputError


def training_transform(preprocess: Preprocess, augment: AugmentConfig) -> Pipeline:
    """As `cvt.data.prepare.prepare`, varied at random by `augment`: all but the mixing of batches.

    Draws from the global random states of torch, numpy and random. Raises InputError for a
    RandAugment that timm does not know.
    """
    check_channels(preprocess)
    size = preprocess.size
    resized = augment.crop == "resized"
    steps: list[Callable[[Image.Image], Image.Image]] = []
    if not resized:
        steps.append(partial(frame, preprocess))
    if augment.crop == "shift":
        steps.append(partial(_shifted, max(1, size // 8)))
    if augment.hflip:
        steps.append(partial(_mirrored, augment.hflip))
    if augment.color_jitter:
        steps.append(v2.ColorJitter(*(augment.color_jitter,) * 3))
    if augment.rand_augment:
        steps.append(_rand_augment(augment.rand_augment, preprocess))
    return Pipeline(
        preprocess=preprocess, steps=tuple(steps),
        read=ResizedCrop(preprocess=preprocess, scale=augment.scale) if resized else rgb_of,
        erase=Erasing(augment.erasing) if augment.erasing else None)


# Module functions, not closures: transforms travel to worker processes, which pickle them.
def _shifted(most: int, image: Image.Image) -> Image.Image:
    """Moved by at most `most` pixels each way; what comes in repeats the edge.

    What torchvision's RandomCrop draws and gives with padding_mode="edge", without a padded copy.
    """
    width, height = image.size
    down, right = (int(torch.randint(0, 2 * most + 1, (1,))) - most for _ in range(2))
    rows = (np.arange(height) + down).clip(0, height - 1)
    columns = (np.arange(width) + right).clip(0, width - 1)
    return Image.fromarray(np.asarray(image)[rows[:, None], columns])


def _mirrored(probability: float, image: Image.Image) -> Image.Image:
    if torch.rand(1).item() >= probability:
        return image
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def _rand_augment(config: str, preprocess: Preprocess) -> Callable[[Image.Image], Image.Image]:
    # Empty corners take the mean colour, and moves are bounded by 0.45 of the side, as in timm.
    fill = tuple(round(255 * m) for m in preprocess.mean) * (1 if preprocess.channels == 3 else 3)
    hparams: dict[str, Any] = {"translate_const": int(preprocess.size * 0.45), "img_mean": fill}
    # As in timm, and so in the paper's recipe; Pillow turns and shears with all filters but one.
    if preprocess.interpolation != "lanczos":
        hparams["interpolation"] = FILTERS[preprocess.interpolation]
    try:
        transform = rand_augment_transform(config, hparams)
    except (AssertionError, ValueError, KeyError) as error:
        raise InputError(f"augment.rand_augment={config!r} is not RandAugment in timm's notation "
                         f"({error or type(error).__name__}); try rand-m9-mstd0.5-inc1") from None
    keep_a_bit(transform)
    return transform


def keep_a_bit(rand_augment: RandAugment) -> None:
    """Let its posterising leave at least one bit.

    At its strongest timm asks for 0 bits, which Pillow refuses since version 12.
    """
    for op in rand_augment.ops:
        if op.name.startswith("Posterize"):
            op.level_fn = partial(_at_least_one_bit, op.level_fn)


def _at_least_one_bit(level_fn: Callable[..., tuple[int]], level: float, hparams: Any
                      ) -> tuple[int]:
    return (max(1, level_fn(level, hparams)[0]),)
