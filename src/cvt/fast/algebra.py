"""Exact rewrites of a trained CvT, each with its derivation.

Every function takes modules in evaluation mode, does not change them and returns new ones. Shape
letters as in `cvt.model`. "Exact" means over the reals: floating-point results differ by rounding,
which `cvt.fast.verify` bounds.
"""

from __future__ import annotations

import torch
from torch import nn

from cvt.model import QUICK


@torch.no_grad()
def batchnorm_into_conv(conv: nn.Conv2d, bn: nn.BatchNorm2d) -> nn.Conv2d:
    """Fold a BatchNorm into the convolution before it.

    In evaluation mode BatchNorm is affine per channel, y = g (x - m) / sqrt(v + eps) + b. With
    s = g / sqrt(v + eps), s (w * x + c - m) + b = (s w) * x + (b + s (c - m)). Zero padding stays
    zero padding, as it comes before the convolution.
    """
    assert bn.running_mean is not None
    assert bn.running_var is not None
    s = bn.weight / torch.sqrt(bn.running_var + bn.eps)
    folded = nn.Conv2d(conv.in_channels, conv.out_channels, conv.kernel_size,  # type: ignore[arg-type]
                       conv.stride, conv.padding, groups=conv.groups,  # type: ignore[arg-type]
                       device=conv.weight.device, dtype=conv.weight.dtype)
    folded.weight.copy_(conv.weight * s.view(-1, 1, 1, 1))
    # PyTorch reorders weights of any other format in every call, as slow as a small convolution.
    folded.to(memory_format=torch.channels_last)
    own = conv.bias if conv.bias is not None else torch.zeros_like(s)
    folded.bias.copy_(bn.bias + s * (own - bn.running_mean))  # type: ignore[union-attr]
    return folded.eval()


@torch.no_grad()
def norm_into_linear(norm: nn.LayerNorm, linear: nn.Linear) -> nn.Linear:
    """Fold the gain and bias of a LayerNorm into the Linear after it.

    With n the normalised token, W (g n + b) + c = (W diag(g)) n + (W b + c), which leaves a
    normalisation without parameters. It requires that only this Linear reads the norm's output,
    as for the second norm of a block and the final norm. The first norm of a block is read by
    convolutions with zero padding, to which the bias would have to be added.
    """
    folded = _like(linear)
    folded.weight.copy_(linear.weight * norm.weight)
    own = linear.bias if linear.bias is not None else linear.weight.new_zeros(linear.out_features)
    folded.bias.copy_(linear.weight @ norm.bias + own)
    return folded


def quick_gelu_into_linears(fc1: nn.Linear, fc2: nn.Linear) -> tuple[nn.Linear, nn.Linear]:
    """Replace QuickGELU between two Linears by SiLU between two rescaled ones.

    x sigmoid(a x) = silu(a x) / a with a = QUICK, so fc1 is scaled by a, and the weight but not
    the bias of fc2 by 1 / a.
    """
    second = _like(fc2)
    with torch.no_grad():
        second.weight.copy_(fc2.weight / QUICK)
        second.bias.copy_(fc2.bias)
    return scaled_output(fc1, QUICK), second


@torch.no_grad()
def scaled_output(linear: nn.Linear, scale: float) -> nn.Linear:
    """Return the Linear whose output is `scale` times that of `linear`."""
    folded = _like(linear)
    folded.weight.copy_(linear.weight * scale)
    folded.bias.copy_(linear.bias * scale if linear.bias is not None
                      else torch.zeros_like(folded.bias))
    return folded


def _like(linear: nn.Linear) -> nn.Linear:
    return nn.Linear(linear.in_features, linear.out_features, device=linear.weight.device,
                     dtype=linear.weight.dtype).eval()
