"""Images inside a page: PNG files as data URIs."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

LARGEST = 160  # pixels, the longer side of a thumbnail


def thumbnail(image: Image.Image) -> tuple[str, int, int]:
    """`image`, shrunk to at most 160 pixels a side, as a data URI; and its width and height."""
    small = image.convert("RGB")
    small.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
    return _uri(small), small.width, small.height


def heat_image(shares: Sequence[Sequence[float]], right: tuple[int, int, int],
               wrong: tuple[int, int, int]) -> str:
    """A confusion matrix (K, K) of shares in [0, 1] as an image of KxK pixels, a data URI.

    The colour is `right` on the diagonal and `wrong` elsewhere; a share of 0 is transparent, so the
    page's own background, light or dark, shows.
    """
    alpha = np.asarray(shares)
    pixels = np.empty((*alpha.shape, 4), np.uint8)
    pixels[..., :3] = wrong
    pixels[np.eye(len(alpha), dtype=bool), :3] = right
    pixels[..., 3] = (alpha * 255).round()
    return _uri(Image.fromarray(pixels))


def _uri(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")
