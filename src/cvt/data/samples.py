"""An image between its file and the network: bytes while it travels, floats where it arrives.

Processes that load images send them as bytes, a quarter of the floats' size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import default_collate

from cvt.config import Preprocess
from cvt.data.erasing import Erasing, Patch
from cvt.data.images import rgb_of
from cvt.data.prepare import normalise, pixels_of


class Sample(NamedTuple):
    """What the network sees of one image, before it is normalised."""

    pixels: Tensor  # (H, W, channels) uint8
    patch: Patch | None  # lies on the normalised image


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """From what `LabeledImages.fetch` gives to a sample of `preprocess.size` pixels a side."""

    preprocess: Preprocess
    read: Callable[[bytes | Image.Image, str], Image.Image] = rgb_of
    """From an image, or the file of one, and its name to RGB."""
    steps: tuple[Callable[[Image.Image], Image.Image], ...]
    """What is done with it in turn."""
    erase: Erasing | None = None
    """Draws the patch, if any."""

    def sample(self, found: bytes | Image.Image, name: str) -> Sample:
        """Raises InputError, with `name`, where the file holds no image."""
        image = self.read(found, name)
        for step in self.steps:
            image = step(image)
        pixels = np.array(pixels_of(self.preprocess, image))
        height, width, channels = pixels.shape
        patch = None if self.erase is None else self.erase(channels, height, width)
        return Sample(torch.from_numpy(pixels), patch)


@dataclass(frozen=True, kw_only=True)
class Stack:
    """Samples of a batch, in as few tensors as there are kinds: each is a file to open between
    processes."""

    pixels: Tensor  # (B, H, W, channels) uint8
    noise: Tensor  # all patches' after each other
    patches: list[tuple[int, int, int, tuple[int, int, int]]]  # which sample, top, left, shape

    def normalised(self, preprocess: Preprocess, pin: bool = False) -> Tensor:
        """The network's input (B, channels, H, W) float32; pin: in memory that a GPU can read."""
        count, height, width, channels = self.pixels.shape
        shape = count, channels, height, width
        # NumPy asks the system for large pages, which are cleared in a fourth of the time.
        out = torch.empty(shape, pin_memory=True) if pin else (
            torch.from_numpy(np.empty(shape, np.float32)))
        # With NumPy, in one thread: PyTorch's would take the cores from the loading processes, and
        # spin while they wait for each other.
        images, noise = out.numpy(), self.noise.numpy()
        for pixels, image in zip(self.pixels.numpy(), images, strict=True):
            normalise(preprocess, pixels, image)
        for i, top, left, size in self.patches:
            patch, noise = np.split(noise, [math.prod(size)])
            _, high, wide = size
            images[i, :, top:top + high, left:left + wide] = patch.reshape(size)
        return out


def stacked(samples: Sequence[Sample]) -> Stack:
    """One or more samples of equal shape as a batch, in shared memory within a loading process."""
    found = [(i, sample.patch) for i, sample in enumerate(samples) if sample.patch is not None]
    return Stack(pixels=default_collate([sample.pixels for sample in samples]),
                 noise=torch.cat([torch.empty(0), *(patch.noise for _, patch in found)]),
                 patches=[(i, p.top, p.left, p.shape) for i, p in found])
