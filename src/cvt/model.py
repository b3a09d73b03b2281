"""The Convolutional vision Transformer (Wu et al., ICCV 2021, arXiv:2103.15808).

    Fig. 2a   the pyramid of stages                    CvT, Stage
    Sec. 3.1  Convolutional Token Embedding, Eq. 1     ConvEmbed
    Sec. 3.2  Convolutional Projection, Eq. 2          ConvProjection
    Fig. 2b   the Convolutional Transformer Block      Block, ConvAttention, MLP
    Table 8   projections without a convolution        AvgProjection, LinearProjection

Where the paper and the authors' code disagree, this follows the code, since the released weights
were trained with it; a comment marks each such place.

Shape letters: B batch, C channels (`dim`), (H, W) token grid, T = H W tokens, S key tokens, N
heads, D = C / N. A sequence (B, [1 +] T, C) is the class token, if the stage has one, then the T
tokens of the grid, row by row.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cvt.config import CvTConfig, Grid, StageConfig
from cvt.system.errors import InputError


class ConvEmbed(nn.Module):
    """Convolutional Token Embedding (Sec. 3.1): strided convolution, then LayerNorm over channels.

    The kernels overlap; with `embed="patch"` they do not, as in ViT (Table 6).
    """

    def __init__(self, config: StageConfig, in_chans: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_chans, config.dim, config.embed_kernel, config.embed_stride,
                              config.embed_padding)
        self.norm = nn.LayerNorm(config.dim)

    def forward(self, x: Tensor) -> tuple[Tensor, Grid]:  # (B, C_in, H_in, W_in)
        x = self.conv(x)  # (B, C, H, W)
        return self.norm(to_tokens(x)), (x.shape[2], x.shape[3])


class ConvProjection(nn.Module):
    """Convolutional Projection (Sec. 3.2, Eq. 2) to queries, keys or values.

    Depthwise convolution and BatchNorm on the token map, then a Linear. A stride above 1 makes
    fewer keys and values than tokens. The class token is not on the map: it skips both and joins
    the sequence again before the Linear.
    """

    def __init__(self, config: StageConfig, stride: int, padding: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(config.dim, config.dim, config.kernel, stride, padding,
                              groups=config.dim, bias=False)
        self.bn = nn.BatchNorm2d(config.dim)
        self.linear = nn.Linear(config.dim, config.dim, bias=config.qkv_bias)

    def forward(self, cls: Tensor | None, fmap: Tensor) -> Tensor:  # (B, 1, C), (B, C, H, W)
        return self.linear(join(cls, self.bn(self.conv(fmap))))  # (B, [1 +] S, C)


class AvgProjection(nn.Module):
    """Average pooling instead of convolution and BatchNorm ("avg" in the official code)."""

    def __init__(self, config: StageConfig, stride: int, padding: int) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(config.kernel, stride, padding, ceil_mode=True)
        self.linear = nn.Linear(config.dim, config.dim, bias=config.qkv_bias)

    def forward(self, cls: Tensor | None, fmap: Tensor) -> Tensor:
        return self.linear(join(cls, self.pool(fmap)))


class LinearProjection(nn.Module):
    """The position-wise projection of ViT: only a Linear (Table 8)."""

    def __init__(self, config: StageConfig) -> None:
        super().__init__()
        self.linear = nn.Linear(config.dim, config.dim, bias=config.qkv_bias)

    def forward(self, cls: Tensor | None, fmap: Tensor) -> Tensor:
        return self.linear(join(cls, fmap))


class ConvAttention(nn.Module):
    """Multi-head attention; queries, keys and values are projections of the token map."""

    def __init__(self, config: StageConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.cls_token = config.cls_token
        # The official code divides by sqrt(C), not sqrt(D), and the released weights need it.
        self.scale = config.dim**-0.5
        self.attn_drop = config.attn_drop_rate
        self.q, self.k, self.v = projections(config)
        self.proj = nn.Linear(config.dim, config.dim)
        self.drop = nn.Dropout(config.drop_rate)

    def forward(self, x: Tensor, grid: Grid) -> Tensor:  # (B, [1 +] T, C)
        cls, fmap = split(x, grid, self.cls_token)
        q, k, v = (heads(p(cls, fmap), self.num_heads) for p in (self.q, self.k, self.v))
        x = F.scaled_dot_product_attention(q, k, v, scale=self.scale,
                                           dropout_p=self.attn_drop if self.training else 0.0)
        return self.drop(self.proj(x.transpose(1, 2).flatten(2)))  # (B, [1 +] T, C)


class MLP(nn.Module):
    """Linear, activation, dropout, Linear, dropout."""

    def __init__(self, config: StageConfig, act: nn.Module) -> None:
        super().__init__()
        assert not isinstance(config.mlp_ratio, tuple)  # one block's config
        hidden = int(config.dim * config.mlp_ratio)
        self.fc1 = nn.Linear(config.dim, hidden)
        self.act = act
        self.fc2 = nn.Linear(hidden, config.dim)
        self.drop = nn.Dropout(config.drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        # In place where possible: allocating a tensor of this size costs more than the arithmetic.
        x = self.act(x, inplace=True) if self._can_overwrite(x) else self.act(x)
        return self.drop(self.fc2(self.drop(x)))

    def _can_overwrite(self, x: Tensor) -> bool:
        """Whether only the activation reads the output of fc1: no backward, hook or tracer does."""
        return (type(self.act) is QuickGELU and not torch.is_grad_enabled()
                and not self.fc1._forward_hooks
                and not isinstance(cast("object", x), torch.fx.Proxy))


QUICK = 1.702  # makes x sigmoid(a x) closest to GELU (Hendrycks and Gimpel, 2016)


class QuickGELU(nn.Module):
    """x sigmoid(a x), a = 1.702: the activation of the official code; the paper says GELU.

    Computed as silu(a x) / a, which saves one tensor for the backward pass instead of three.
    """

    def forward(self, x: Tensor, inplace: bool = False) -> Tensor:
        x = x.mul_(QUICK) if inplace else x * QUICK
        return F.silu(x, inplace).mul_(1 / QUICK)


class DropPath(nn.Module):
    """Stochastic depth (Huang et al., 2016): in training, drops the residual branch of samples."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        keep = 1 - self.rate
        return x * (x.new_empty(x.shape[0], 1, 1).bernoulli_(keep) / keep)

    def extra_repr(self) -> str:
        return f"rate={self.rate:g}"


class Block(nn.Module):
    """Convolutional Transformer Block (Fig. 2b): pre-norm attention and MLP, each residual."""

    def __init__(self, config: StageConfig, act: nn.Module, drop_path_rate: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.dim)
        self.attn = ConvAttention(config)
        self.norm2 = nn.LayerNorm(config.dim)
        self.mlp = MLP(config, act)
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x: Tensor, grid: Grid) -> Tensor:  # (B, [1 +] T, C)
        x = x + self.drop_path(self.attn(self.norm1(x), grid))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class Stage(nn.Module):
    """A token embedding, then blocks. A class token is added after the embedding and is not passed
    on to the next stage."""

    def __init__(self, config: StageConfig, in_chans: int, act: nn.Module, base: Grid) -> None:
        super().__init__()
        self.grad_checkpointing = False
        self.embed = ConvEmbed(config, in_chans)
        self.pos_embed = self.cls_token = None
        if config.pos_embed:
            self.pos_embed = nn.Parameter(torch.zeros(1, config.dim, *base))
        if config.cls_token:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, config.dim))
        self.drop = nn.Dropout(config.drop_rate)
        # Stochastic depth restarts at 0 in each stage, as in the official code.
        last = max(1, config.depth - 1)
        self.blocks = nn.ModuleList(Block(config.block(i), act, config.drop_path_rate * i / last)
                                    for i in range(config.depth))

    def forward(self, x: Tensor) -> tuple[Tensor, Grid]:  # (B, C_in, H_in, W_in)
        x, grid = self.enter(x)
        for i in range(len(self.blocks)):
            x = self.block(i, x, grid)
        return x, grid  # (B, [1 +] T, C)

    def enter(self, x: Tensor) -> tuple[Tensor, Grid]:
        """Map (B, C_in, H_in, W_in) to the first block's input (B, [1 +] T, C) and its grid."""
        x, grid = self.embed(x)  # (B, T, C)
        if self.pos_embed is not None:
            x = x + to_tokens(F.interpolate(self.pos_embed, grid, mode="bicubic",
                                            align_corners=False))
        if self.cls_token is not None:
            x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], 1)
        return self.drop(x), grid

    def block(self, i: int, x: Tensor, grid: Grid) -> Tensor:
        """Block `i` on x (B, [1 +] T, C), with gradient checkpointing if it is enabled."""
        block = self.blocks[i]
        if self.grad_checkpointing and self.training and torch.is_grad_enabled():
            contexts = partial(_checkpoint_contexts, block)
            return checkpoint(block, x, grid, use_reentrant=False, context_fn=contexts)
        return block(x, grid)

    def split(self, x: Tensor, grid: Grid) -> tuple[Tensor | None, Tensor]:
        """The class token (B, 1, C), or None, and the map (B, C, H, W) of the stage's sequence."""
        return split(x, grid, self.cls_token is not None)


class CvT(nn.Module):
    """CvT of a `CvTConfig`: images (B, in_chans, H, W) to logits (B, num_classes).

    Images are normalised floats of any height and width from `config.min_size()` pixels; smaller
    ones raise InputError. With `num_classes=0` the output is the pooled feature
    (B, `num_features`). Under `torch.device("meta")` no memory is allocated.
    """

    load_report: Any = None
    """The `cvt.LoadReport` of the loaded weights, if any."""

    def __init__(self, config: CvTConfig) -> None:
        super().__init__()
        self.config = config
        act: nn.Module = QuickGELU() if config.act == "quick_gelu" else nn.GELU()
        chans = [config.in_chans, *(stage.dim for stage in config.stages)]
        grids = config.grids((config.image_size, config.image_size))
        self.stages = cast("Sequence[Stage]", nn.ModuleList(
            Stage(stage, c, act, grid)
            for stage, c, grid in zip(config.stages, chans, grids, strict=False)))
        self.num_features = chans[-1]
        self.norm = nn.LayerNorm(self.num_features)
        self.head = self._classifier(config.num_classes)
        self._min_size = config.min_size()
        self.init_weights()

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, in_chans, H, W) to logits (B, num_classes)."""
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, in_chans, H, W) to the last stage's normed sequence (B, [1 +] T, C)."""
        check_images(x, self.config.in_chans, self._min_size)
        *early, last = self.stages
        for stage in early:
            _, x = stage.split(*stage(x))
        x, _ = last(x)
        return self.norm(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Output of `forward_features` to logits (B, num_classes).

        Pooling takes the class token if the last stage has one, else the mean over the tokens.
        With `pre_logits` returns the pooled feature (B, C).
        """
        x = x[:, 0] if self.config.stages[-1].cls_token else x.mean(1)
        return x if pre_logits else self.head(x)

    # The interface of timm's models.

    @property
    def feature_info(self) -> list[dict[str, Any]]:
        """Channels (`num_chs`), stride in pixels (`reduction`) and `module` of each stage."""
        return [{"num_chs": stage.dim, "reduction": stride, "module": f"stages.{i}"}
                for i, (stage, stride)
                in enumerate(zip(self.config.stages, self.config.strides, strict=True))]

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: Literal["NCHW", "NLC"] = "NCHW",
        intermediates_only: bool = False,
        *,
        level: Literal["stage", "block"] = "stage",
        return_prefix_tokens: bool = False,
    ) -> Any:
        """Feature maps after stages (strides 4, 8, 16) or after blocks.

        x (B, in_chans, H, W). indices: a list of stages or blocks, counted over the whole network,
        negative from the end; an int n for the last n; None for all. Returns
        (output of `forward_features`, maps), or only the maps with `intermediates_only`; then
        `stop_early` skips everything after the last requested map. A map is (B, C, H, W), or
        (B, T, C) with output_fmt="NLC"; with `return_prefix_tokens` it is a pair (map, class token
        (B, 1, C) or None). norm: apply the final norm to maps of the last stage, whose width it
        has. Raises InputError for an index out of range, for stop_early without intermediates_only,
        and for norm if the norm was pruned.
        """
        check_images(x, self.config.in_chans, self._min_size)
        if stop_early and not intermediates_only:
            raise InputError("stop_early=True leaves no final features to return; set "
                             "intermediates_only=True too")
        if level not in ("stage", "block") or output_fmt not in ("NCHW", "NLC"):
            raise InputError(f"level={level!r}, output_fmt={output_fmt!r}; level is 'stage' or "
                             "'block', output_fmt 'NCHW' or 'NLC'")
        if norm and isinstance(self.norm, nn.Identity):
            raise InputError("norm=True, but the norm was pruned; prune with prune_norm=False, and "
                             "keep the last stage")
        depths = [stage.depth for stage in self.config.stages]
        wanted = positions(indices, len(depths) if level == "stage" else sum(depths))
        maps: dict[int, Any] = {}
        sequences = self._sequences(x, level)
        for i, (stage, x, grid) in enumerate(sequences):
            if i in wanted:
                normed = self.norm(x) if norm and stage is self.stages[-1] else x
                cls, fmap = stage.split(normed, grid)
                out = fmap if output_fmt == "NCHW" else to_tokens(fmap)
                maps[i] = (out, cls) if return_prefix_tokens else out
            if stop_early and len(maps) == len(set(wanted)):
                break
        intermediates = [maps[i] for i in wanted]
        return intermediates if intermediates_only else (self.norm(x), intermediates)

    def _sequences(self, x: Tensor, level: str) -> Iterator[tuple[Stage, Tensor, Grid]]:
        """Run the stages; yields the sequence (B, [1 +] T, C) after each stage or each block."""
        for i, stage in enumerate(self.stages):
            x, grid = stage.enter(x)
            for j in range(len(stage.blocks)):
                x = stage.block(j, x, grid)
                if level == "block":
                    yield stage, x, grid
            if level == "stage":
                yield stage, x, grid
            if i + 1 < len(self.stages):
                _, x = stage.split(x, grid)

    def get_classifier(self) -> nn.Module:
        """The classifier: a Linear, or Identity with `num_classes=0`."""
        return self.head

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the classifier by a newly initialised one; 0 removes it."""
        self.config = dataclasses.replace(self.config, num_classes=num_classes)
        like = next(self.parameters())
        self.head = self._classifier(num_classes).to(device=like.device, dtype=like.dtype)
        self._init_head()

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the blocks in the backward pass: less memory in training, more time.

        Gradients and BatchNorm statistics stay the same.
        """
        for stage in self.stages:
            stage.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Names of parameters with two or more dimensions to exclude from weight decay."""
        return {name for name, _ in self.named_parameters()
                if name.endswith(("cls_token", "pos_embed"))}

    def init_weights(self) -> None:
        """Initialise as the official code does; convolutions keep PyTorch's defaults."""
        for module in self.modules():
            if isinstance(module, nn.Linear) and module is not self.head:
                if self.config.init == "trunc_norm":
                    nn.init.trunc_normal_(module.weight, std=0.02)
                else:
                    nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        tokens = self.no_weight_decay()  # class tokens and position embeddings
        for name, parameter in self.named_parameters():
            if name in tokens:
                nn.init.trunc_normal_(parameter, std=0.02)
        self._init_head()

    def _classifier(self, num_classes: int) -> nn.Module:
        return nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()

    def _init_head(self) -> None:
        if isinstance(self.head, nn.Linear):
            nn.init.trunc_normal_(self.head.weight, std=0.02)  # the bias keeps its default


def projections(config: StageConfig) -> tuple[nn.Module, nn.Module, nn.Module]:
    """Query, key and value projections of a block."""
    assert not isinstance(config.stride_kv, tuple)  # one block's config
    q_args, kv_args = (1, config.kernel // 2), (config.stride_kv, config.padding_kv)
    if config.projection == "conv":
        return (ConvProjection(config, *q_args), ConvProjection(config, *kv_args),
                ConvProjection(config, *kv_args))
    if config.projection == "avg":
        return (LinearProjection(config), AvgProjection(config, *kv_args),
                AvgProjection(config, *kv_args))
    return LinearProjection(config), LinearProjection(config), LinearProjection(config)


# Both go through (B, H, W, C), and so do their gradients. Through (B, C, T), a batch of one image
# gets a batch stride that hides its channels-last layout; PyTorch's BatchNorm on the CPU then
# mistakes an input and a gradient of different layouts for the same, and its gradients are wrong.
def to_map(x: Tensor, grid: Grid) -> Tensor:
    """Tokens (B, T, C) to a map (B, C, H, W): a channels-last view, no copy."""
    return x.unflatten(1, grid).permute(0, 3, 1, 2)


def to_tokens(x: Tensor) -> Tensor:
    """A map (B, C, H, W) to tokens (B, T, C): a view if the map is channels-last."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def split(x: Tensor, grid: Grid, cls_token: bool) -> tuple[Tensor | None, Tensor]:
    """A sequence (B, [1 +] T, C) to its class token (B, 1, C) or None, and map (B, C, H, W)."""
    return (x[:, :1], to_map(x[:, 1:], grid)) if cls_token else (None, to_map(x, grid))


def join(cls: Tensor | None, fmap: Tensor) -> Tensor:
    """The inverse of `split`: (B, 1, C) or None and (B, C, H, W) to (B, [1 +] T, C)."""
    x = to_tokens(fmap)
    return x if cls is None else torch.cat([cls, x], 1)


def heads(x: Tensor, num_heads: int) -> Tensor:
    """Queries, keys or values (B, [1 +] T, C) to heads (B, N, [1 +] T, D)."""
    return x.unflatten(2, (num_heads, -1)).transpose(1, 2)


@torch.fx.wrap
def check_images(x: Tensor, in_chans: int, min_size: int) -> None:
    """Raise InputError unless x is (B, in_chans, H, W) with H and W of at least min_size."""
    if torch.compiler.is_compiling():
        return  # a comparison would specialise symbolic shapes
    if x.ndim != 4 or x.shape[1] != in_chans:
        raise InputError(f"expected images of shape (B, {in_chans}, H, W), got {tuple(x.shape)}")
    if min(x.shape[2:]) < min_size:
        raise InputError(f"images of {x.shape[2]}x{x.shape[3]} pixels leave a stage empty; "
                         f"this network needs at least {min_size} pixels a side")


def positions(indices: int | Sequence[int] | None, count: int) -> list[int]:
    """Non-negative indices below `count`; an int n means the last n. InputError out of range."""
    if indices is None:
        return list(range(count))
    if isinstance(indices, int):
        if not 1 <= indices <= count:
            raise InputError(f"indices={indices} means the last {indices} of {count}; "
                             f"use a number from 1 to {count}, or a list of indices")
        indices = range(count - indices, count)
    for i in indices:
        if not -count <= i < count:
            raise InputError(f"index {i} is out of range; there are {count} (0 to {count - 1})")
    return [i % count for i in indices]


def _checkpoint_contexts(block: nn.Module) -> tuple[Any, Any]:
    return contextlib.nullcontext(), _statistics_kept(block)


@contextlib.contextmanager
def _statistics_kept(block: nn.Module) -> Iterator[None]:
    """Keep the BatchNorm statistics of `block` unchanged while it is recomputed."""
    norms = [m for m in block.modules() if isinstance(m, nn.BatchNorm2d)]
    kept = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        # Momentum 0 keeps the statistics. With track_running_stats=False they would not be saved
        # for the backward pass, and checkpoint() raises when a pass saves fewer tensors.
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, batches) in zip(norms, kept, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, batches
