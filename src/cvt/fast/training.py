"""Faster training of a CvT, without its dead work: the same loss, the same gradients."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cvt.config import Grid
from cvt.model import (
    MLP,
    QUICK,
    Block,
    ConvAttention,
    ConvProjection,
    CvT,
    QuickGELU,
    Stage,
    heads,
    join,
    split,
)


class TrainingForm(nn.Module):
    """Wraps `model` and its parameters; maps images (B, in_chans, H, W) to logits.

    Results differ from those of `model` only by rounding. The differences in computation are:

    - If the last stage has a class token, the last block computes query, residual and MLP only for
      that token, as nothing reads the others. The query's convolution, whose gradient is zero, runs
      without one, to update its BatchNorm.
    - QuickGELU saves one tensor and takes one pass in backward.
    - Depthwise convolutions on a CPU stay in float32 under autocast: their backward pass takes five
      times as long in bfloat16.

    Loss and gradients are those of `model`; with dropout they are equal in distribution.
    """

    def __init__(self, model: CvT) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, num_classes)."""
        *early, last = self.model.stages
        for stage in early:
            x, grid = _stage(stage, x, len(stage.blocks))
            _, x = stage.split(x, grid)
        if not self.model.config.stages[-1].cls_token:
            x, _ = _stage(last, x, len(last.blocks))
            return self.model.forward_head(self.model.norm(x))
        x, grid = _stage(last, x, len(last.blocks) - 1)
        cls = _class_token(cast("Block", last.blocks[-1]), x, grid)
        return self.model.head(self.model.norm(cls)[:, 0])


def _stage(stage: Stage, x: Tensor, depth: int) -> tuple[Tensor, Grid]:
    """The stage's first `depth` blocks."""
    x, grid = stage.enter(x)
    for i in range(depth):
        if stage.grad_checkpointing:
            x = stage.block(i, x, grid)
        else:
            x = _block(cast("Block", stage.blocks[i]), x, grid)
    return x, grid


def _block(block: Block, x: Tensor, grid: Grid) -> Tensor:
    attn = block.attn
    cls, fmap = split(block.norm1(x), grid, attn.cls_token)
    x = x + block.drop_path(_attend(attn, _project(attn.q, cls, fmap), cls, fmap))
    return x + block.drop_path(_mlp(block.mlp, block.norm2(x)))


def _class_token(block: Block, x: Tensor, grid: Grid) -> Tensor:
    """The class token of the last block, (B, 1, C)."""
    attn = block.attn
    cls, fmap = split(block.norm1(x), grid, True)
    assert cls is not None
    q = cast("nn.Linear", attn.q.linear)(cls)
    if isinstance(attn.q, ConvProjection):
        with torch.no_grad():
            _mix(attn.q, fmap)
        # A gradient of zero, not None: weight decay and data parallelism treat them differently.
        q = q + 0.0 * sum(p.sum() for p in (attn.q.conv.weight, attn.q.bn.weight, attn.q.bn.bias))
    x = x[:, :1] + block.drop_path(_attend(attn, q, cls, fmap))
    return x + block.drop_path(_mlp(block.mlp, block.norm2(x)))


def _attend(attn: ConvAttention, q: Tensor, cls: Tensor | None, fmap: Tensor) -> Tensor:
    q, k, v = (heads(t, attn.num_heads) for t in (
        q, _project(attn.k, cls, fmap), _project(attn.v, cls, fmap)))
    x = F.scaled_dot_product_attention(q, k, v, scale=attn.scale,
                                       dropout_p=attn.attn_drop if attn.training else 0.0)
    return attn.drop(attn.proj(x.transpose(1, 2).flatten(2)))


def _project(projection: nn.Module, cls: Tensor | None, fmap: Tensor) -> Tensor:
    if isinstance(projection, ConvProjection):
        return projection.linear(join(cls, _mix(projection, fmap)))
    return projection(cls, fmap)


def _mix(projection: ConvProjection, fmap: Tensor) -> Tensor:
    if not fmap.is_cpu:
        return projection.bn(projection.conv(fmap))
    with torch.autocast("cpu", enabled=False):
        return projection.bn(projection.conv(fmap.to(projection.conv.weight.dtype)))


def _mlp(mlp: MLP, x: Tensor) -> Tensor:
    x = mlp.fc1(x)
    x = _quick_gelu(x) if isinstance(mlp.act, QuickGELU) else mlp.act(x)
    return mlp.drop(mlp.fc2(mlp.drop(x)))


class _QuickGELU(torch.autograd.Function):
    """silu(a x) / a with a = QUICK, whose derivative is silu'(a x)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        # In place: x is the output of fc1, which no backward pass needs.
        scaled = x.detach().mul_(QUICK)
        ctx.save_for_backward(scaled)
        return F.silu(scaled).mul_(1 / QUICK)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        scaled, = ctx.saved_tensors
        return torch.ops.aten.silu_backward(gradient, scaled)


_quick_gelu = cast("Any", _QuickGELU.apply)
