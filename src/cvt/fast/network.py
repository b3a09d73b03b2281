"""A trained CvT, folded into fewer steps that compute the same function. For inference only."""

from __future__ import annotations

from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from cvt.config import Grid
from cvt.fast.algebra import (
    batchnorm_into_conv,
    norm_into_linear,
    quick_gelu_into_linears,
    scaled_output,
)
from cvt.model import (
    MLP,
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
from cvt.system.errors import InputError


class FoldedProjection(nn.Module):
    """A query, key or value projection with its BatchNorm folded into the depthwise kernel."""

    def __init__(self, projection: nn.Module, scale: float = 1.0) -> None:
        super().__init__()
        self.mix: nn.Module
        if isinstance(projection, ConvProjection):
            self.mix = batchnorm_into_conv(projection.conv, projection.bn)
        else:
            self.mix = getattr(projection, "pool", nn.Identity())
        self.linear = scaled_output(cast("nn.Linear", projection.linear), scale)

    def forward(self, cls: Tensor | None, fmap: Tensor) -> Tensor:
        return self.linear(join(cls, self.mix(fmap)))


class FoldedAttention(nn.Module):
    """`ConvAttention` with the scale folded into the query: scale (q . k) = (scale q) . k."""

    def __init__(self, attention: ConvAttention) -> None:
        super().__init__()
        self.num_heads, self.cls_token = attention.num_heads, attention.cls_token
        self.q = FoldedProjection(attention.q, attention.scale)
        self.k, self.v = FoldedProjection(attention.k), FoldedProjection(attention.v)
        self.proj = attention.proj

    def forward(self, x: Tensor, grid: Grid) -> Tensor:  # (B, [1 +] T, C)
        cls, fmap = split(x, grid, self.cls_token)
        return self.attend(self.q(cls, fmap), cls, fmap)

    def attend(self, q: Tensor, cls: Tensor | None, fmap: Tensor) -> Tensor:
        q, k, v = (heads(t, self.num_heads) for t in (q, self.k(cls, fmap), self.v(cls, fmap)))
        x = F.scaled_dot_product_attention(q, k, v, scale=1.0)
        return self.proj(x.transpose(1, 2).flatten(2))


class ClassAttention(FoldedAttention):
    """The attention of the last block if only the class token is classified: one query.

    The class token skips the query's convolution, so it is not needed at all.
    """

    def __init__(self, attention: ConvAttention) -> None:
        super().__init__(attention)
        self.q.mix = nn.Identity()

    def forward(self, x: Tensor, grid: Grid) -> Tensor:  # (B, 1 + T, C) to (B, 1, C)
        cls, fmap = split(x, grid, True)
        assert cls is not None
        return self.attend(self.q.linear(cls), cls, fmap)


class FoldedMLP(nn.Module):
    """`MLP` with the norm before it folded in, and QuickGELU replaced by SiLU."""

    def __init__(self, norm: nn.LayerNorm, mlp: MLP) -> None:
        super().__init__()
        self.shape, self.eps = norm.normalized_shape, norm.eps
        self.fc1, self.fc2 = norm_into_linear(norm, mlp.fc1), mlp.fc2
        self.quick = isinstance(mlp.act, QuickGELU)
        if self.quick:
            self.fc1, self.fc2 = quick_gelu_into_linears(self.fc1, self.fc2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(F.layer_norm(x, self.shape, eps=self.eps))
        # In place: nothing else reads it, and allocating as much memory costs more than the act.
        return self.fc2(F.silu(x, inplace=True) if self.quick else F.gelu(x))


class FoldedBlock(nn.Module):
    """A block; with `only_cls` it maps (B, 1 + T, C) to the class token (B, 1, C)."""

    def __init__(self, block: Block, only_cls: bool = False) -> None:
        super().__init__()
        self.only_cls = only_cls
        self.norm1 = block.norm1
        self.attn = (ClassAttention if only_cls else FoldedAttention)(block.attn)
        self.mlp = FoldedMLP(block.norm2, block.mlp)

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        attended = self.attn(self.norm1(x), grid)
        x = (x[:, :1] if self.only_cls else x) + attended
        return x + self.mlp(x)


class FoldedStage(nn.Module):
    """A stage of folded blocks."""

    def __init__(self, stage: Stage, only_cls: bool) -> None:
        super().__init__()
        self.embed, self.pos_embed = stage.embed, stage.pos_embed
        self.cls_token = stage.cls_token
        last = len(stage.blocks) - 1
        self.blocks = nn.ModuleList(
            FoldedBlock(cast("Block", block), only_cls and i == last)
            for i, block in enumerate(stage.blocks))

    def forward(self, x: Tensor) -> tuple[Tensor, Grid]:
        x, grid = Stage.enter(cast("Stage", self), x)
        for block in self.blocks:
            x = block(x, grid)
        return x, grid

    def drop(self, x: Tensor) -> Tensor:
        return x


class Folded(nn.Module):
    """A folded `CvT`: maps images (B, in_chans, H, W) to logits (B, num_classes).

    If the last stage has a class token, the last block has no queries for the patch tokens, since
    nothing reads them. So this network has no features, only logits. `model` is not changed;
    parameters that no rewrite changes are shared.
    """

    def __init__(self, model: CvT) -> None:
        super().__init__()
        if model.training:
            raise InputError("only a network in evaluation mode can be folded; call model.eval() "
                             "first")
        self.config = model.config
        self.only_cls = model.config.stages[-1].cls_token
        *early, last = model.stages
        self.stages = nn.ModuleList([*(FoldedStage(stage, False) for stage in early),
                                     FoldedStage(last, self.only_cls)])
        self.eps, self.shape = model.norm.eps, model.norm.normalized_shape
        self.head = (norm_into_linear(model.norm, model.head)
                     if isinstance(model.head, nn.Linear) else model.norm)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        *early, last = self.stages
        for stage in early:
            x, grid = stage(x)
            _, x = split(x, grid, stage.cls_token is not None)
        x, _ = last(x)
        if isinstance(self.head, nn.Linear):
            x = F.layer_norm(x, self.shape, eps=self.eps)
            # The head is linear, so tokens can be averaged before it.
            return self.head(x[:, 0] if self.only_cls else x.mean(1))
        x = self.head(x)
        return x[:, 0] if self.only_cls else x.mean(1)
