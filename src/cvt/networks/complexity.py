"""What a configuration costs: parameters, multiply-adds, and the shape of every stage."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from cvt.config import CvTConfig, Grid
from cvt.model import CvT


@dataclass(frozen=True, kw_only=True)
class StageShape:
    """One stage at one image size."""

    grid: Grid
    """Tokens (H, W)."""
    keys: tuple[Grid, ...]
    """Keys and values (H, W), one for each stride that the blocks have."""
    stride: int
    """Pixels between neighbouring tokens."""
    dim: int
    """Channels of a token."""
    num_heads: int
    """Heads of its attention."""
    depth: int
    """Its blocks."""
    cls_token: bool
    """Whether a class token stands in front of the tokens and the keys."""
    parameters: int
    """Parameters of the stage, token embedding included."""

    @property
    def tokens(self) -> int:
        """Length of the sequence, class token included."""
        return self.grid[0] * self.grid[1] + self.cls_token


def parameters(config: CvTConfig) -> int:
    """Number of learned values; BatchNorm's running statistics are not learned."""
    return _count(_meta(config))


def multiply_adds(config: CvTConfig, size: Grid) -> int:
    """Multiply-adds of classifying one image of `size` (H, W) pixels.

    Counted while the model runs on the meta device: convolutions, Linears and both products of
    attention; not norms, activations, biases or softmax. This is what the paper calls FLOPs.
    Raises InputError for too small a size.
    """
    config.grids(size)
    return network_multiply_adds(_meta(config), torch.empty(1, config.in_chans, *size,
                                                            device="meta"))


def network_multiply_adds(network: torch.nn.Module, image: torch.Tensor) -> int:
    """The same of any network for `image` (1, C, H, W), on whatever device both are."""
    network.eval()
    # The counter sees attention's two products only where attention is not one fused operator.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        network(image)
    return counter.get_total_flops() // 2


def stage_shapes(config: CvTConfig, size: Grid) -> tuple[StageShape, ...]:
    """Every stage for an image of `size` (H, W) pixels. Raises InputError for too small a size."""
    model = _meta(config)
    return tuple(
        StageShape(grid=grid, keys=stage.grids_kv(grid), stride=stride, dim=stage.dim,
                   num_heads=stage.num_heads, depth=stage.depth, cls_token=stage.cls_token,
                   parameters=_count(module))
        for stage, grid, stride, module
        in zip(config.stages, config.grids(size), config.strides, model.stages, strict=True))


def _meta(config: CvTConfig) -> CvT:
    with torch.device("meta"):
        return CvT(config)


def _count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
