"""Is a rewritten network still the same function? Asked of samples, before it is used."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from cvt.config import CvTConfig
from cvt.system.errors import InputError

TOLERANCE: Mapping[str, float] = {"fp32": 2e-5, "bf16": 0.1, "int8": 0.5}
"""The largest difference of a logit that passes, in units of the largest logit."""


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How near two networks' logits are on some images."""

    difference: float
    """The largest difference of any logit, over the largest logit."""
    top1: float
    """The fraction of images on which both name the same class."""
    n: int
    """The number of images."""


def compare(before: Callable[[Tensor], Tensor], after: Callable[[Tensor], Tensor],
            images: Tensor) -> Agreement:
    """Both on `images` (B, C, H, W), normalised floats."""
    with torch.inference_mode():
        expected, logits = before(images).float().cpu(), after(images).float().cpu()
    if not torch.isfinite(logits).all():
        return Agreement(difference=float("inf"), top1=0.0, n=len(images))
    difference = (logits - expected).abs().max() / expected.abs().max().clamp_min(1e-30)
    same = (logits.argmax(1) == expected.argmax(1)).double().mean()
    return Agreement(difference=difference.item(), top1=same.item(), n=len(images))


def verify(before: Callable[[Tensor], Tensor], after: Callable[[Tensor], Tensor], images: Tensor,
           precision: str = "fp32", tolerance: float | None = None) -> Agreement:
    """Their agreement; InputError where it is worse than `tolerance`, by default the precision's.

    images (B, C, H, W): normalised floats, such as `samples` gives, better the user's own.
    """
    limit = TOLERANCE[precision] if tolerance is None else tolerance
    found = compare(before, after, images)
    if not found.difference <= limit:
        raise InputError(f"the optimised network in {precision} differs by {found.difference:.2g} "
                         f"of the largest logit, more than {limit:.2g}; use another backend or "
                         "precision, or give a larger tolerance")
    return found


def samples(config: CvTConfig, n: int = 2, size: int | None = None) -> Tensor:
    """Images (n, in_chans, size, size) for `verify`: smooth noise, the same every time.

    White noise would have every token see the same; this has shapes of many sizes.
    """
    side = size or max(config.image_size, config.min_size())
    generator = torch.Generator().manual_seed(0)
    total = torch.zeros(n, config.in_chans, side, side)
    for grid in (2, 5, 16, side):
        noise = torch.randn(n, config.in_chans, grid, grid, generator=generator)
        total += torch.nn.functional.interpolate(noise, (side, side), mode="bilinear")
    return total / 2
