"""From a picture to the network's input, varied at random for training.

Without augmentation it is what evaluation does, piece by piece the same functions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from PIL import Image
from timm.data.auto_augment import rand_augment_transform
from timm.data.random_erasing import RandomErasing
from torch import Tensor
from torchvision.transforms import v2

from cvt.config import Preprocess
from cvt.data.config import AugmentConfig
from cvt.data.prepare import FILTERS, frame
from cvt.data.transforms import Transform, interpolation_of, to_tensor_of
from cvt.errors import InputError


def training_transform(preprocess: Preprocess, augment: AugmentConfig) -> Transform:
    """As `evaluation_transform`, varied at random by `augment`: all but the mixing
    of batches.

    Draws from the global random states of torch, numpy and random. Raises InputError for a
    RandAugment that timm does not know.
    """
    size, interpolation = preprocess.size, interpolation_of(preprocess)
    steps: list[Callable[[Image.Image], Image.Image]] = []
    if augment.crop == "resized":
        steps.append(v2.RandomResizedCrop(size, scale=augment.scale, interpolation=interpolation))
    else:
        steps.append(partial(frame, preprocess))
    if augment.crop == "shift":
        steps.append(v2.RandomCrop(size, padding=max(1, size // 8), padding_mode="edge"))
    if augment.hflip:
        steps.append(v2.RandomHorizontalFlip(augment.hflip))
    if augment.color_jitter:
        steps.append(v2.ColorJitter(*(augment.color_jitter,) * 3))
    if augment.rand_augment:
        steps.append(_rand_augment(augment.rand_augment, preprocess))
    to_tensor = to_tensor_of(preprocess)
    # "pixel" noise is what the paper's recipe uses; the tensor is normalised by then.
    erase = RandomErasing(augment.erasing, mode="pixel", device="cpu") if augment.erasing else None
    return partial(_vary, tuple(steps), to_tensor, erase)


# Module functions, not closures: transforms travel to worker processes, which pickle them.
def _vary(steps: Sequence[Callable[[Image.Image], Image.Image]], to_tensor: Transform,
          erase: Callable[[Tensor], Tensor] | None, image: Image.Image) -> Tensor:
    for step in steps:
        image = step(image)
    x = to_tensor(image)
    return x if erase is None else erase(x)


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
    for op in transform.ops:
        if op.name.startswith("Posterize"):
            op.level_fn = partial(_at_least_one_bit, op.level_fn)
    return transform


def _at_least_one_bit(level_fn: Callable[..., tuple[int]], level: float, hparams: Any
                      ) -> tuple[int]:
    # At its strongest timm asks for 0 bits, which Pillow refuses since version 12.
    return (max(1, level_fn(level, hparams)[0]),)
