"""Verification on sample images that a rewritten network computes the same function."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from cvt.config import CvTConfig
from cvt.system.errors import InputError

TOLERANCE: Mapping[str, float] = {"fp32": 2e-5, "bf16": 0.1, "int8": 0.5}
"""Maximum difference of any logit, relative to the largest logit, by precision."""


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Agreement of the logits of two networks."""

    difference: float
    """The largest difference of any logit, relative to the largest logit."""
    top1: float
    """Fraction of images on which both predict the same class."""
    n: int
    """Number of images."""


def compare(before: Callable[[Tensor], Tensor], after: Callable[[Tensor], Tensor],
            images: Tensor) -> Agreement:
    """Compare two networks on normalised `images` (B, C, H, W)."""
    with torch.inference_mode():
        expected, logits = before(images).float().cpu(), after(images).float().cpu()
    if not torch.isfinite(logits).all():
        return Agreement(difference=float("inf"), top1=0.0, n=len(images))
    difference = (logits - expected).abs().max() / expected.abs().max().clamp_min(1e-30)
    same = (logits.argmax(1) == expected.argmax(1)).double().mean()
    return Agreement(difference=difference.item(), top1=same.item(), n=len(images))


def verify(before: Callable[[Tensor], Tensor], after: Callable[[Tensor], Tensor], images: Tensor,
           precision: str = "fp32", tolerance: float | None = None) -> Agreement:
    """Return the agreement. Raises InputError for a difference above `tolerance`.

    images (B, C, H, W): normalised; those of `samples`, or better the user's own. tolerance:
    `TOLERANCE` of the precision by default.
    """
    limit = TOLERANCE[precision] if tolerance is None else tolerance
    agreement = compare(before, after, images)
    if not agreement.difference <= limit:
        raise InputError(f"the optimized network in {precision} differs by "
                         f"{agreement.difference:.2g} of the largest logit, more than {limit:.2g}; "
                         "use another backend or precision, or a larger tolerance")
    return agreement


def samples(config: CvTConfig, n: int = 2, size: int | None = None) -> Tensor:
    """Return images (n, in_chans, size, size) for `verify`: noise of a fixed seed.

    White noise would look the same to every token; this has structure at several scales.
    """
    side = size or max(config.image_size, config.min_size())
    generator = torch.Generator().manual_seed(0)
    total = torch.zeros(n, config.in_chans, side, side)
    for grid in (2, 5, 16, side):
        noise = torch.randn(n, config.in_chans, grid, grid, generator=generator)
        total += F.interpolate(noise, (side, side), mode="bilinear")
    return total / 2
