"""From the file of an image to a normalized batch.

Samples stay 8-bit until the batch has arrived in the training process: worker processes then send a
quarter of the bytes of float32.
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
from cvt.data.images import decode
from cvt.data.preprocess import normalize_into, to_array


class Patch(NamedTuple):
    """Noise that random erasing puts on a normalized image."""

    top: int
    left: int
    shape: tuple[int, int, int]  # channels, height, width
    noise: Tensor  # float32, flat


class Sample(NamedTuple):
    """An image before normalization."""

    pixels: Tensor  # (H, W, channels) uint8
    patch: Patch | None


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """From what `LabeledImages.fetch` returns to a sample of `preprocess.size` pixels a side."""

    preprocess: Preprocess
    read: Callable[[bytes | Image.Image, str], Image.Image] = decode
    """Maps an image, or the bytes of its file, and its name to an RGB image."""
    steps: tuple[Callable[[Image.Image], Image.Image], ...]
    """Applied to the RGB image in order."""
    erase: Callable[[int, int, int], Patch | None] | None = None
    """Draws a patch for an image of (channels, height, width)."""

    def sample(self, image: bytes | Image.Image, name: str) -> Sample:
        """The sample of an image. Raises InputError, with `name`, if it cannot be read."""
        image = self.read(image, name)
        for step in self.steps:
            image = step(image)
        pixels = np.array(to_array(self.preprocess, image))
        height, width, channels = pixels.shape
        patch = None if self.erase is None else self.erase(channels, height, width)
        return Sample(torch.from_numpy(pixels), patch)


@dataclass(frozen=True, kw_only=True)
class PackedBatch:
    """A batch of samples in two tensors, because each tensor that is sent between processes costs
    a file descriptor."""

    pixels: Tensor  # (B, H, W, channels) uint8
    noise: Tensor  # of all patches, concatenated
    patches: list[tuple[int, int, int, tuple[int, int, int]]]  # sample, top, left, shape

    def normalize(self, preprocess: Preprocess, pin: bool = False) -> Tensor:
        """The network's input (B, channels, H, W) float32; pin: in pinned memory."""
        count, height, width, channels = self.pixels.shape
        shape = count, channels, height, width
        # NumPy allocates huge pages, which the system clears in a quarter of the time.
        out = torch.empty(shape, pin_memory=True) if pin else (
            torch.from_numpy(np.empty(shape, np.float32)))
        # With NumPy, in one thread: PyTorch's threads would take the cores from the worker
        # processes, and spin while they wait for each other.
        images, noise = out.numpy(), self.noise.numpy()
        for pixels, image in zip(self.pixels.numpy(), images, strict=True):
            normalize_into(preprocess, pixels, image)
        for i, top, left, size in self.patches:
            patch, noise = np.split(noise, [math.prod(size)])
            _, high, wide = size
            images[i, :, top:top + high, left:left + wide] = patch.reshape(size)
        return out


def pack(samples: Sequence[Sample]) -> PackedBatch:
    """A batch of one or more samples of equal shape; in shared memory in a worker process."""
    patches = [(i, sample.patch) for i, sample in enumerate(samples) if sample.patch is not None]
    return PackedBatch(pixels=default_collate([sample.pixels for sample in samples]),
                       noise=torch.cat([torch.empty(0), *(patch.noise for _, patch in patches)]),
                       patches=[(i, p.top, p.left, p.shape) for i, p in patches])
