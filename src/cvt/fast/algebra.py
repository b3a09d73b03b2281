"""The exact rewrites of a trained CvT, each with its derivation.

Every function takes modules in evaluation mode, leaves them as they are and returns new ones.
Letters as in `cvt.model`. "Exact" is over the reals: in floating point the results differ by
rounding, which `cvt.fast.verify` bounds.
"""

from __future__ import annotations

import torch
from torch import nn

from cvt.model import QUICK


@torch.no_grad()
def batchnorm_into_conv(conv: nn.Conv2d, bn: nn.BatchNorm2d) -> nn.Conv2d:
    """A convolution and the BatchNorm after it, as one convolution with a bias.

    In evaluation BatchNorm is affine in each channel, y = g (x - m) / sqrt(v + eps) + b. With
    s = g / sqrt(v + eps), s (w * x + c - m) + b = (s w) * x + (b + s (c - m)). Zero padding stays
    zero padding, for it comes before the convolution.
    """
    assert bn.running_mean is not None
    assert bn.running_var is not None
    s = bn.weight / torch.sqrt(bn.running_var + bn.eps)
    folded = nn.Conv2d(conv.in_channels, conv.out_channels, conv.kernel_size,  # type: ignore[arg-type]
                       conv.stride, conv.padding, groups=conv.groups,  # type: ignore[arg-type]
                       device=conv.weight.device, dtype=conv.weight.dtype)
    folded.weight.copy_(conv.weight * s.view(-1, 1, 1, 1))
    # PyTorch reorders other weights in every call, which takes as long as a small convolution.
    folded.to(memory_format=torch.channels_last)
    own = conv.bias if conv.bias is not None else torch.zeros_like(s)
    folded.bias.copy_(bn.bias + s * (own - bn.running_mean))  # type: ignore[union-attr]
    return folded.eval()


@torch.no_grad()
def norm_into_linear(norm: nn.LayerNorm, linear: nn.Linear) -> nn.Linear:
    """A LayerNorm's gain and bias in the Linear after it.

    With n the normalised token, W (g n + b) + c = (W diag(g)) n + (W b + c). What is left before
    the Linear is normalisation without parameters. It holds where nothing but that Linear reads
    the norm's result: for the second norm of a block and the last one. The first norm of a block is
    read by convolutions with zero padding, to which a bias b would look like padding with b.
    """
    folded = _like(linear)
    folded.weight.copy_(linear.weight * norm.weight)
    own = linear.bias if linear.bias is not None else linear.weight.new_zeros(linear.out_features)
    folded.bias.copy_(linear.weight @ norm.bias + own)
    return folded


def quick_gelu_into_linears(fc1: nn.Linear, fc2: nn.Linear) -> tuple[nn.Linear, nn.Linear]:
    """QuickGELU between two Linears as SiLU between two others.

    x sigmoid(a x) = silu(a x) / a with a = QUICK, so fc1 is scaled by a and fc2's weight, but not
    its bias, by 1 / a.
    """
    second = _like(fc2)
    with torch.no_grad():
        second.weight.copy_(fc2.weight / QUICK)
        second.bias.copy_(fc2.bias)
    return scaled_output(fc1, QUICK), second


@torch.no_grad()
def scaled_output(linear: nn.Linear, scale: float) -> nn.Linear:
    """The Linear whose result is `scale` times that of `linear`."""
    folded = _like(linear)
    folded.weight.copy_(linear.weight * scale)
    folded.bias.copy_(linear.bias * scale if linear.bias is not None
                      else torch.zeros_like(folded.bias))
    return folded


def _like(linear: nn.Linear) -> nn.Linear:
    return nn.Linear(linear.in_features, linear.out_features, device=linear.weight.device,
                     dtype=linear.weight.dtype).eval()
