"""Maps as images: heatmaps, overlays and token colors. NumPy and Pillow only."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Floats = NDArray[np.float32]

# From low to high: dark to light, so that it can be read without colors.
_COLORMAP = np.array([(10, 8, 30), (80, 20, 110), (180, 50, 90), (245, 125, 40), (252, 240, 160)],
                     np.float32)
_OPACITY = 0.6  # of an overlay at the map's maximum


def heatmap(values: Floats) -> Image.Image:
    """A map (H, W) as an RGB image of the same size, scaled from its minimum to its maximum.

    A constant map is all dark.
    """
    scaled = _normalize(values) * (len(_COLORMAP) - 1)
    low = np.minimum(scaled.astype(int), len(_COLORMAP) - 2)
    fraction = (scaled - low)[..., None]
    colors = _COLORMAP[low] * (1 - fraction) + _COLORMAP[low + 1] * fraction
    return Image.fromarray(np.rint(colors).astype(np.uint8))


def overlay(image: Image.Image, values: Floats) -> Image.Image:
    """A map (H, W) as a heatmap over `image`, at its size; transparent at the map's minimum."""
    resized = np.asarray(Image.fromarray(np.ascontiguousarray(values, np.float32)).resize(
        image.size, Image.Resampling.BILINEAR))
    alpha = Image.fromarray(np.rint(_normalize(resized) * _OPACITY * 255).astype(np.uint8))
    return Image.composite(heatmap(resized), image, alpha)


def _normalize(values: Floats) -> Floats:
    """`values` scaled to [0, 1]; all 0 for a constant."""
    low, high = values.min(), values.max()
    return np.zeros_like(values) if high <= low else (values - low) / (high - low)


def token_colors(tokens: Floats) -> Image.Image:
    """A map (C, H, W) as an RGB image (H, W): its first three principal components.

    Similar tokens have similar colors; the colors themselves have no meaning. Each component is
    scaled from its 1st to its 99th percentile.
    """
    channels, height, width = tokens.shape
    flat = tokens.reshape(channels, -1).T.astype(np.float64)
    flat -= flat.mean(0)
    # Of the covariance, which is small where the map is fine.
    _, vectors = np.linalg.eigh(flat.T @ flat)
    axes = vectors[:, ::-1][:, :3]
    # The sign of an eigenvector is arbitrary; make its largest entry positive.
    axes = axes * np.sign(axes[np.abs(axes).argmax(0), range(axes.shape[1])])
    components = flat @ axes
    low, high = np.percentile(components, (1, 99), axis=0)
    scaled = ((components - low) / np.maximum(high - low, 1e-12)).clip(0, 1)
    rgb = np.zeros((height * width, 3))
    rgb[:, :scaled.shape[1]] = scaled  # a map may have fewer than three channels
    return Image.fromarray(np.rint(255 * rgb).astype(np.uint8).reshape(height, width, 3))
