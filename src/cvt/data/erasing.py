"""Random erasing (Zhong et al., 2020): noise in place of a random rectangle."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

# Of the image's area, and height over width, as in timm.
_AREA = (0.02, 1 / 3)
_LOG_ASPECT = (math.log(0.3), math.log(1 / 0.3))


class Patch(NamedTuple):
    """What stands in an image from a place on."""

    top: int
    left: int
    shape: tuple[int, int, int]  # channels, height, width
    noise: Tensor  # of the shape, but flat; float32, in the range of a normalised image


@dataclass(frozen=True)
class Erasing:
    """Draws a patch with `probability`, of normal noise for every pixel: timm's "pixel" mode.

    Takes from the global states of random and torch what timm's RandomErasing takes, so patches are
    the same, but needs no image for it.
    """

    probability: float

    def __call__(self, channels: int, height: int, width: int) -> Patch | None:
        """A patch for an image of that shape, or None."""
        if random.random() > self.probability:
            return None
        for _ in range(10):
            area = random.uniform(*_AREA) * height * width
            aspect = math.exp(random.uniform(*_LOG_ASPECT))
            high, wide = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if wide < width and high < height:
                top, left = random.randint(0, height - high), random.randint(0, width - wide)
                noise = torch.empty(channels * high * wide).normal_()
                return Patch(top, left, (channels, high, wide), noise)
        return None
