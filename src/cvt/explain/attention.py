"""Attention of the class token by block and head, and attention rollout.

The network computes attention as one fused operator, which keeps no weights. Here the weights of
the last stage's blocks are computed again. Shape letters as in `cvt.model`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from cvt.config import Grid, StageConfig
from cvt.model import Block, ConvAttention, CvT, heads, split, to_map


@dataclass(frozen=True, kw_only=True)
class Attention:
    """Attention weights of the last stage for a batch."""

    weights: tuple[Tensor, ...]
    """For each block (B, N, 1 + T, 1 + S); rows sum to 1, the first row is the class token's."""
    grid: Grid
    """(H, W) of the T tokens."""
    key_grids: tuple[Grid, ...]
    """(H, W) of the S keys, for each block."""

    def cls_token_maps(self) -> list[Tensor]:
        """Attention of the class token to each key, (B, N, H, W) for each block.

        Its attention to itself is left out, so a map sums to less than 1.
        """
        return [to_map(w[:, :, 0, 1:].mT, grid)
                for w, grid in zip(self.weights, self.key_grids, strict=True)]


@torch.no_grad()
def forward_attention(model: CvT, images: Tensor
                      ) -> tuple[Tensor, list[Tensor], Attention | None]:
    """Logits (B, K), every stage's map (B, C, H, W) and the attention of the last stage.

    images (B, C, H, W). The attention is None if the last stage has no class token.
    """
    stage, config = model.stages[-1], model.config.stages[-1]
    inputs: list[tuple[ConvAttention, Tensor, Grid]] = []
    hooks = [cast("Block", block).attn.register_forward_pre_hook(
        lambda attn, args: inputs.append((attn, *args))) for block in stage.blocks]
    try:
        features, maps = model.forward_intermediates(images)
    finally:
        for hook in hooks:
            hook.remove()
    logits = model.forward_head(features)
    if stage.cls_token is None:
        return logits, maps, None
    grid = inputs[0][2]
    return logits, maps, Attention(
        weights=tuple(attention_weights(attn, x, g) for attn, x, g in inputs), grid=grid,
        key_grids=tuple(config.block(i).grids_kv(grid)[0] for i in range(len(inputs))))


def attention_weights(attn: ConvAttention, x: Tensor, grid: Grid) -> Tensor:
    """softmax(q k^T / sqrt(C)), (B, N, [1 +] T, [1 +] S), of a normed sequence (B, [1 +] T, C)."""
    cls, fmap = split(x, grid, attn.cls_token)
    q, k = (heads(p(cls, fmap), attn.num_heads) for p in (attn.q, attn.k))
    return (q @ k.mT * attn.scale).softmax(-1)


def rollout(attention: Attention, config: StageConfig) -> Tensor:
    """Attention rollout of the class token over the tokens, (B, H, W), with a sum of at most 1.

    The product over the blocks of (A + I) / 2, where A is the mean over the heads (Abnar and
    Zuidema, 2020). There are fewer keys than tokens here; the attention to a key is shared equally
    by the tokens under its kernel. `config` is the last stage's.
    """
    first = attention.weights[0]
    total = torch.eye(first.shape[2], dtype=first.dtype, device=first.device)
    for i, weights in enumerate(attention.weights):
        spread = _key_to_tokens(config.block(i), attention.grid).to(first)  # (1 + S, 1 + T)
        mean = weights.mean(1) @ spread  # (B, 1 + T, 1 + T)
        total = (mean + torch.eye(mean.shape[-1], dtype=mean.dtype, device=mean.device)) / 2 @ total
    return to_map(total[:, :1, 1:].mT, attention.grid)[:, 0]


def _key_to_tokens(config: StageConfig, grid: Grid) -> Tensor:
    """Share of each token in each key, (1 + S, 1 + T), rows sum to 1; the class token's is itself.
    """
    count = grid[0] * grid[1]
    tokens = torch.eye(count).view(count, 1, *grid)
    keys = tokens if config.projection == "linear" else F.avg_pool2d(
        tokens, config.kernel, cast("int", config.stride_kv), config.padding_kv,
        ceil_mode=config.projection == "avg")
    spread = keys.flatten(1).T  # (S, T)
    return torch.block_diag(torch.ones(1, 1), spread / spread.sum(1, keepdim=True))
