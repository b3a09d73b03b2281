"""From a picture to the network's input, as evaluation and prediction do it."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from cvt.config import Preprocess
from cvt.errors import InputError

Transform = Callable[[Image.Image], Tensor]


def evaluation_transform(preprocess: Preprocess) -> Transform:
    """An RGB picture of any size to a normalised float tensor (channels, size, size).

    Raises InputError for a picture so thin that resizing its short side would fill the memory.
    """
    return partial(_evaluate, preprocess, to_tensor_of(preprocess))


def frame(preprocess: Preprocess, image: Image.Image) -> Image.Image:
    """The square of `size` pixels that evaluation sees."""
    side, size = preprocess.resize, preprocess.size
    if preprocess.mode == "squash":
        target = [side, side]
    else:
        target = [side]
        if max(image.size) * side * side > min(image.size) * (Image.MAX_IMAGE_PIXELS or math.inf):
            raise InputError(f"a picture of {image.width}x{image.height} pixels is too thin to "
                             f"resize its short side to {side}; cut it first")
    if (list(image.size) if preprocess.mode == "squash" else [min(image.size)]) != target:
        image = F.resize(image, target, interpolation=interpolation_of(preprocess))
    return image if image.size == (size, size) else F.center_crop(image, [size, size])


def to_tensor_of(preprocess: Preprocess) -> Transform:
    """An 8-bit picture to a normalised float tensor (channels, H, W)."""
    mean = torch.tensor(preprocess.mean).view(-1, 1, 1)
    std = torch.tensor(preprocess.std).view(-1, 1, 1)
    return partial(_to_tensor, mean, std)


def interpolation_of(preprocess: Preprocess) -> InterpolationMode:
    """The resize filter as torchvision names it."""
    return InterpolationMode(preprocess.interpolation)


# Module functions, not closures: transforms travel to worker processes, which pickle them.
def _evaluate(preprocess: Preprocess, to_tensor: Transform, image: Image.Image) -> Tensor:
    return to_tensor(frame(preprocess, image))


def _to_tensor(mean: Tensor, std: Tensor, image: Image.Image) -> Tensor:
    x = F.pil_to_tensor(image.convert("L") if len(mean) == 1 else image)
    return (x.float() / 255 - mean) / std
