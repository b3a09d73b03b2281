"""Maps as images: heat, overlays and the colours of tokens. NumPy and Pillow alone."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Floats = NDArray[np.float32]

# From nothing to much: dark to light, so that it can be read without colours.
_HEAT = np.array([(10, 8, 30), (80, 20, 110), (180, 50, 90), (245, 125, 40), (252, 240, 160)],
                 np.float32)
_STRENGTH = 0.6  # of the heat over the image, where it is greatest


def heat(values: Floats) -> Image.Image:
    """A map (H, W) as RGB of its own size, from its least to its greatest value.

    A map of one value is all dark: it says nothing.
    """
    scaled = unit(values) * (len(_HEAT) - 1)
    low = np.minimum(scaled.astype(int), len(_HEAT) - 2)
    part = (scaled - low)[..., None]
    colours = _HEAT[low] * (1 - part) + _HEAT[low + 1] * part
    return Image.fromarray(np.rint(colours).astype(np.uint8))


def overlay(image: Image.Image, values: Floats) -> Image.Image:
    """The map (H, W) as heat over `image`, at its size; where it is least, the image alone."""
    fine = resized(values, image.size)
    alpha = Image.fromarray(np.rint(unit(fine) * _STRENGTH * 255).astype(np.uint8))
    return Image.composite(heat(fine), image, alpha)


def resized(values: Floats, size: tuple[int, int]) -> Floats:
    """The map (H, W) at `size` (width, height), bilinear."""
    return np.asarray(Image.fromarray(np.ascontiguousarray(values, np.float32)).resize(
        size, Image.Resampling.BILINEAR))


def unit(values: Floats) -> Floats:
    """`values` moved and scaled to [0, 1]; all 0 where they are equal."""
    low, high = values.min(), values.max()
    return np.zeros_like(values) if high <= low else (values - low) / (high - low)


def token_colours(tokens: Floats) -> Image.Image:
    """A map (C, H, W) as RGB (H, W): its first three principal components as red, green, blue.

    Alike tokens have alike colours; the colours themselves mean nothing. Each component is scaled
    between its 1st and 99th percentile.
    """
    channels, height, width = tokens.shape
    flat = tokens.reshape(channels, -1).T.astype(np.float64)
    flat -= flat.mean(0)
    # Of the covariance, which is small where the map is fine.
    _, vectors = np.linalg.eigh(flat.T @ flat)
    axes = vectors[:, ::-1][:, :3]
    # An axis has no direction of its own: its largest entry shall be positive.
    axes = axes * np.sign(axes[np.abs(axes).argmax(0), range(axes.shape[1])])
    parts = flat @ axes
    low, high = np.percentile(parts, (1, 99), axis=0)
    scaled = ((parts - low) / np.maximum(high - low, 1e-12)).clip(0, 1)
    rgb = np.zeros((height * width, 3))
    rgb[:, :scaled.shape[1]] = scaled  # a map may have fewer than three channels
    return Image.fromarray(np.rint(255 * rgb).astype(np.uint8).reshape(height, width, 3))
