"""Where the class token looks: attention of every head and block, and its rollout.

The network itself computes attention as one fused operator, which keeps no weights. Here they are
computed again, in the blocks of the last stage alone. Letters as in `cvt.model`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from cvt.config import Grid, StageConfig
from cvt.model import Block, ConvAttention, CvT, heads, split, to_map


@dataclass(frozen=True, kw_only=True)
class Looked:
    """Attention of the last stage, of a batch."""

    weights: tuple[Tensor, ...]
    """A block each: (B, N, 1 + T, 1 + S); a row sums to 1, the first is the class token's."""
    grid: Grid
    """(H, W) of the T tokens."""
    keys: tuple[Grid, ...]
    """(H, W) of the S keys, a block each."""

    def of_class_token(self) -> list[Tensor]:
        """How much the class token looks at each key: (B, N, H, W) a block, on its grid of keys.

        What it gives itself is left out, so a map sums to less than 1.
        """
        return [to_map(w[:, :, 0, 1:].mT, grid) for w, grid in zip(self.weights, self.keys,
                                                                  strict=True)]


@torch.no_grad()
def look(model: CvT, images: Tensor) -> tuple[Tensor, list[Tensor], Looked | None]:
    """Logits (B, K), every stage's map (B, C, H, W) and the attention of the last stage.

    images (B, C, H, W). Without a class token in the last stage there is no such attention, for
    nothing there looks at the image as a whole: None.
    """
    stage, config = model.stages[-1], model.config.stages[-1]
    seen: list[tuple[ConvAttention, Tensor, Grid]] = []
    with _inputs_of([cast("Block", block).attn for block in stage.blocks], seen):
        features, maps = model.forward_intermediates(images)
    logits = model.forward_head(features)
    if stage.cls_token is None:
        return logits, maps, None
    grid = seen[0][2]
    return logits, maps, Looked(
        weights=tuple(attention_weights(attn, x, g) for attn, x, g in seen), grid=grid,
        keys=tuple(config.block(i).grids_kv(grid)[0] for i in range(len(seen))))


def attention_weights(attn: ConvAttention, x: Tensor, grid: Grid) -> Tensor:
    """softmax(q k^T / sqrt(C)), (B, N, [1 +] T, [1 +] S), of a normed sequence (B, [1 +] T, C)."""
    cls, fmap = split(x, grid, attn.cls_token)
    q, k = (heads(p(cls, fmap), attn.num_heads) for p in (attn.q, attn.k))
    return (q @ k.mT * attn.scale).softmax(-1)


def rollout(looked: Looked, config: StageConfig) -> Tensor:
    """From which tokens the class token's content comes, (B, H, W), at most 1 in sum.

    Attention rollout (Abnar and Zuidema, 2020): the product over the blocks of (A + I) / 2, where A
    is the mean over the heads. Keys here are fewer than tokens; what a key gets is shared equally
    by the tokens under its kernel. `config` is the last stage's.
    """
    first = looked.weights[0]
    total = torch.eye(first.shape[2], dtype=first.dtype, device=first.device)
    for i, weights in enumerate(looked.weights):
        spread = _spread(config.block(i), looked.grid).to(first)  # (1 + S, 1 + T)
        mean = weights.mean(1) @ spread  # (B, 1 + T, 1 + T)
        total = (mean + torch.eye(mean.shape[-1], dtype=mean.dtype, device=mean.device)) / 2 @ total
    return to_map(total[:, :1, 1:].mT, looked.grid)[:, 0]


def _spread(config: StageConfig, grid: Grid) -> Tensor:
    """Which tokens a key is made of, (1 + S, 1 + T), rows that sum to 1; the class token of itself.
    """
    count = grid[0] * grid[1]
    tokens = torch.eye(count).view(count, 1, *grid)
    keys = tokens if config.projection == "linear" else F.avg_pool2d(
        tokens, config.kernel, cast("int", config.stride_kv), config.padding_kv,
        ceil_mode=config.projection == "avg")
    spread = keys.flatten(1).T  # (S, T)
    return torch.block_diag(torch.ones(1, 1), spread / spread.sum(1, keepdim=True))


@contextmanager
def _inputs_of(modules: Sequence[ConvAttention],
               seen: list[tuple[ConvAttention, Tensor, Grid]]) -> Iterator[None]:
    """Within the block, what each of `modules` is called with goes to `seen`."""
    def keep(module: Any, args: tuple[Tensor, Grid]) -> None:
        seen.append((module, *args))

    handles = [module.register_forward_pre_hook(keep) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
