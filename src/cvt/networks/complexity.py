"""Parameters, multiply-adds and the shape of every stage."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from cvt.config import CvTConfig, Grid
from cvt.model import CvT


@dataclass(frozen=True, kw_only=True)
class StageShape:
    """Shape of a stage for one image size."""

    grid: Grid
    """Tokens (H, W)."""
    keys: tuple[Grid, ...]
    """Grids (H, W) of keys and values, one for each stride of the blocks."""
    stride: int
    """Stride in pixels of the image."""
    dim: int
    """Channels of a token."""
    num_heads: int
    """Attention heads."""
    depth: int
    """Blocks."""
    cls_token: bool
    """Whether the stage has a class token."""
    parameters: int
    """Parameters of the stage, including its token embedding."""

    @property
    def tokens(self) -> int:
        """Length of the sequence, including the class token."""
        return self.grid[0] * self.grid[1] + self.cls_token


def parameters(network: torch.nn.Module | CvTConfig) -> int:
    """Number of parameters of a network, or of the CvT of a configuration."""
    module = _meta(network) if isinstance(network, CvTConfig) else network
    return sum(p.numel() for p in module.parameters())


def multiply_adds(config: CvTConfig, size: Grid) -> int:
    """Multiply-adds for one image of `size` (H, W) pixels; the paper calls them FLOPs.

    Convolutions, Linears and both matrix products of attention are counted; norms, activations,
    biases and softmax are not. Raises InputError for too small a size.
    """
    config.grids(size)
    return network_multiply_adds(_meta(config), torch.empty(1, config.in_chans, *size,
                                                            device="meta"))


def network_multiply_adds(network: torch.nn.Module, image: torch.Tensor) -> int:
    """The same for any network and an `image` (1, C, H, W) on the same device."""
    network.eval()
    # The counter misses the products of attention in a fused operator.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        network(image)
    return counter.get_total_flops() // 2


def stage_shapes(config: CvTConfig, size: Grid) -> tuple[StageShape, ...]:
    """Shapes of all stages for an image of `size` (H, W) pixels. Raises InputError if it is too
    small."""
    model = _meta(config)
    return tuple(
        StageShape(grid=grid, keys=stage.grids_kv(grid), stride=stride, dim=stage.dim,
                   num_heads=stage.num_heads, depth=stage.depth, cls_token=stage.cls_token,
                   parameters=parameters(module))
        for stage, grid, stride, module
        in zip(config.stages, config.grids(size), config.strides, model.stages, strict=True))


def _meta(config: CvTConfig) -> CvT:
    with torch.device("meta"):
        return CvT(config)
