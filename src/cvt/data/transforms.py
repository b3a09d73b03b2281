"""From a picture to the network's input, as evaluation and prediction do it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from cvt.config import Preprocess

Transform = Callable[[Image.Image], Tensor]


def evaluation_transform(preprocess: Preprocess) -> Transform:
    """An RGB picture of any size to a normalised float tensor (channels, size, size)."""
    to_tensor = to_tensor_of(preprocess)

    def transform(image: Image.Image) -> Tensor:
        return to_tensor(frame(image, preprocess))

    return transform


def frame(image: Image.Image, preprocess: Preprocess) -> Image.Image:
    """The square of `size` pixels that evaluation sees."""
    side, size = preprocess.resize, preprocess.size
    target = [side, side] if preprocess.mode == "squash" else [side]
    if (image.size if preprocess.mode == "squash" else (min(image.size),)) != tuple(target):
        image = F.resize(image, target, interpolation=interpolation_of(preprocess))
    return image if image.size == (size, size) else F.center_crop(image, [size, size])


def to_tensor_of(preprocess: Preprocess) -> Transform:
    """An 8-bit picture as a normalised float tensor (channels, H, W)."""
    mean = torch.tensor(preprocess.mean).view(-1, 1, 1)
    std = torch.tensor(preprocess.std).view(-1, 1, 1)

    def to_tensor(image: Image.Image) -> Tensor:
        x = F.pil_to_tensor(image.convert("L") if preprocess.channels == 1 else image)
        return (x.float() / 255 - mean) / std

    return to_tensor


def interpolation_of(preprocess: Preprocess) -> InterpolationMode:
    """The resize filter as torchvision names it."""
    return InterpolationMode(preprocess.interpolation)
