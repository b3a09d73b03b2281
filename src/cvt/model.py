"""The Convolutional vision Transformer (Wu et al., ICCV 2021, arXiv:2103.15808).

    Fig. 2a   the pyramid of stages                    CvT, Stage
    Sec. 3.1  Convolutional Token Embedding, Eq. 1     ConvEmbed
    Sec. 3.2  Convolutional Projection, Eq. 2          ConvProjection
    Fig. 2b   the Convolutional Transformer Block      Block, ConvAttention, MLP
    Table 8   projections without a convolution        AvgProjection, LinearProjection

Where the paper and the authors' code disagree, this is what the code computes, for the released
weights were trained with it; each such place says so.

Shape letters: B batch, C channels (`dim`), (H, W) token grid, T = H W tokens, S key tokens, N
heads, D = C / N. A sequence is the class token, where the stage has one, followed by the T tokens
of the grid, row by row: (B, [1 +] T, C).
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
    """Convolutional Token Embedding (Sec. 3.1): strided convolution, LayerNorm over channels.

    Its kernel overlaps its neighbours, so a token knows what lies around it; with
    `embed="patch"` it does not, as in ViT (Table 6).
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

    Depthwise convolution and BatchNorm on the token map, then a Linear. With a stride above 1 there
    are fewer keys and values than tokens. The class token has no place on the map: it skips both
    and joins again before the Linear.
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
    """Average pooling in the place of convolution and BatchNorm; the official code's "avg"."""

    def __init__(self, config: StageConfig, stride: int, padding: int) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(config.kernel, stride, padding, ceil_mode=True)
        self.linear = nn.Linear(config.dim, config.dim, bias=config.qkv_bias)

    def forward(self, cls: Tensor | None, fmap: Tensor) -> Tensor:
        return self.linear(join(cls, self.pool(fmap)))


class LinearProjection(nn.Module):
    """The position-wise projection of ViT: a Linear alone (Table 8)."""

    def __init__(self, config: StageConfig) -> None:
        super().__init__()
        self.linear = nn.Linear(config.dim, config.dim, bias=config.qkv_bias)

    def forward(self, cls: Tensor | None, fmap: Tensor) -> Tensor:
        return self.linear(join(cls, fmap))


class ConvAttention(nn.Module):
    """Multi-head attention whose queries, keys and values come from projections of the map."""

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
    """Two Linears with the activation between them, dropout after each."""

    def __init__(self, config: StageConfig, act: nn.Module) -> None:
        super().__init__()
        assert not isinstance(config.mlp_ratio, tuple)  # the config is a block's
        hidden = int(config.dim * config.mlp_ratio)
        self.fc1 = nn.Linear(config.dim, hidden)
        self.act = act
        self.fc2 = nn.Linear(hidden, config.dim)
        self.drop = nn.Dropout(config.drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        # In place where it may be: fresh memory of its size costs more than the arithmetic.
        x = self.act(x) if self._read_again(x) else self.act(x, inplace=True)
        return self.drop(self.fc2(self.drop(x)))

    def _read_again(self, x: Tensor) -> bool:
        """Whether another than the activation may read what fc1 gave: backward, hooks, tracers."""
        return (torch.is_grad_enabled() or bool(self.fc1._forward_hooks)
                or isinstance(cast("object", x), torch.fx.Proxy) or type(self.act) is not QuickGELU)


QUICK = 1.702  # with it x sigmoid(a x) is nearest to GELU (Hendrycks and Gimpel, 2016)


class QuickGELU(nn.Module):
    """x sigmoid(a x), a = 1.702: the activation of the official code, where the paper says GELU.

    Written as SiLU, silu(a x) / a, which keeps one tensor for the backward pass, not three.
    """

    def forward(self, x: Tensor, inplace: bool = False) -> Tensor:
        x = x.mul_(QUICK) if inplace else x * QUICK
        return F.silu(x, inplace).mul_(1 / QUICK)


class DropPath(nn.Module):
    """Stochastic depth (Huang et al., 2016): in training, drops a sample's residual branch."""

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
    """The Convolutional Transformer Block (Fig. 2b), pre-norm, with two residual branches."""

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
    """A token embedding, then blocks. A class token lives in one stage alone: it enters after the
    embedding and is not handed on with the map."""

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
        # Stochastic depth starts at 0 again in each stage, as in the official code.
        last = max(1, config.depth - 1)
        self.blocks = nn.ModuleList(Block(config.block(i), act, config.drop_path_rate * i / last)
                                    for i in range(config.depth))

    def forward(self, x: Tensor) -> tuple[Tensor, Grid]:  # (B, C_in, H_in, W_in)
        x, grid = self.enter(x)
        for i in range(len(self.blocks)):
            x = self.block(i, x, grid)
        return x, grid  # (B, [1 +] T, C)

    def enter(self, x: Tensor) -> tuple[Tensor, Grid]:
        """Map (B, C_in, H_in, W_in) to the first block's sequence (B, [1 +] T, C) and its grid."""
        x, grid = self.embed(x)  # (B, T, C)
        if self.pos_embed is not None:
            x = x + to_tokens(F.interpolate(self.pos_embed, grid, mode="bicubic",
                                            align_corners=False))
        if self.cls_token is not None:
            x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], 1)
        return self.drop(x), grid

    def block(self, i: int, x: Tensor, grid: Grid) -> Tensor:
        """Block `i` on x (B, [1 +] T, C); if so asked, the backward pass computes it again."""
        block = self.blocks[i]
        if self.grad_checkpointing and self.training and torch.is_grad_enabled():
            contexts = partial(_checkpoint_contexts, block)
            return checkpoint(block, x, grid, use_reentrant=False, context_fn=contexts)
        return block(x, grid)

    def split(self, x: Tensor, grid: Grid) -> tuple[Tensor | None, Tensor]:
        """The stage's sequence as class token (B, 1, C), None without, and map (B, C, H, W)."""
        return split(x, grid, self.cls_token is not None)


class CvT(nn.Module):
    """The network of a `CvTConfig`: images (B, in_chans, H, W) to logits (B, num_classes).

    Images are normalised floats of any height and width that leave every stage a token
    (`config.min_size()` pixels a side); InputError otherwise. With `num_classes=0` the result is
    the pooled feature (B, `num_features`). Built under `torch.device("meta")` it allocates nothing.
    """

    load_report: Any = None
    """What was done to load its weights, a `cvt.LoadReport`, where they were loaded."""

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
        """What `forward_features` returns to logits (B, num_classes).

        Pools first: the class token where the last stage has one, else the mean over its tokens;
        with `pre_logits` returns that pooled feature (B, C).
        """
        x = x[:, 0] if self.config.stages[-1].cls_token else x.mean(1)
        return x if pre_logits else self.head(x)

    # What the ecosystem expects; names as in timm.

    @property
    def feature_info(self) -> list[dict[str, Any]]:
        """For each stage: channels `num_chs`, stride in pixels `reduction`, and its `module`."""
        return [{"num_chs": stage.dim, "reduction": stride, "module": f"stages.{i}"}
                for i, (stage, stride)
                in enumerate(zip(self.config.stages, self.config.strides, strict=True))]

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        *,
        level: Literal["stage", "block"] = "stage",
        output_fmt: Literal["NCHW", "NLC"] = "NCHW",
        return_prefix_tokens: bool = False,
        stop_early: bool = False,
        intermediates_only: bool = False,
    ) -> Any:
        """The raw maps after stages (strides 4, 8, 16) or after every block.

        x (B, in_chans, H, W). `indices`: which ones, counted over all stages or all blocks of the
        network, negative from the end; an int n for the last n; None for all. Each is a map
        (B, C, H, W), or its tokens (B, T, C) with output_fmt="NLC"; with `return_prefix_tokens` a
        pair of it and the class token (B, 1, C), None where the stage has none. Returns (result of
        `forward_features`, maps), or the maps alone with `intermediates_only`, where `stop_early`
        skips all that comes after the last one asked for. Raises InputError for an index out of
        range or stop_early without intermediates_only.
        """
        check_images(x, self.config.in_chans, self._min_size)
        if stop_early and not intermediates_only:
            raise InputError("stop_early=True leaves no final features to return; set "
                             "intermediates_only=True too")
        if level not in ("stage", "block") or output_fmt not in ("NCHW", "NLC"):
            raise InputError(f"level={level!r}, output_fmt={output_fmt!r}; level is 'stage' or "
                             "'block', output_fmt 'NCHW' or 'NLC'")
        depths = [stage.depth for stage in self.config.stages]
        wanted = positions(indices, len(depths) if level == "stage" else sum(depths))
        found: dict[int, Any] = {}

        def keep(i: int, stage: Stage, x: Tensor, grid: Grid) -> None:
            if i in wanted:
                cls, fmap = stage.split(x, grid)
                out = fmap if output_fmt == "NCHW" else to_tokens(fmap)
                found[i] = (out, cls) if return_prefix_tokens else out

        seen = 0
        for i, stage in enumerate(self.stages):
            x, grid = stage.enter(x)
            for j in range(depths[i]):
                x = stage.block(j, x, grid)
                if level == "block":
                    keep(seen, stage, x, grid)
                seen += 1
                if stop_early and level == "block" and len(found) == len(set(wanted)):
                    return [found[w] for w in wanted]
            if level == "stage":
                keep(i, stage, x, grid)
            if stop_early and len(found) == len(set(wanted)):
                break
            if i + 1 < len(self.stages):
                _, x = stage.split(x, grid)
        maps = [found[w] for w in wanted]
        return maps if intermediates_only else (self.norm(x), maps)

    def get_classifier(self) -> nn.Module:
        """The classifier: a Linear, or Identity with `num_classes=0`."""
        return self.head

    def reset_classifier(self, num_classes: int) -> None:
        """Put a freshly initialised classifier of another width in place; 0 takes it away."""
        self.config = dataclasses.replace(self.config, num_classes=num_classes)
        some = next(self.parameters())
        self.head = self._classifier(num_classes).to(device=some.device, dtype=some.dtype)
        self._init_head()

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade time for memory in training: keep only each block's input, compute the rest again.

        Gradients and BatchNorm's statistics come out the same.
        """
        for stage in self.stages:
            stage.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Parameters of two or more dimensions that weight decay must leave alone."""
        return {name for name, _ in self.named_parameters()
                if name.endswith(("cls_token", "pos_embed"))}

    def init_weights(self) -> None:
        """Initialise as the official code does; convolutions keep PyTorch's default."""
        for module in self.modules():
            if isinstance(module, nn.Linear) and module is not self.head:
                if self.config.init == "trunc_norm":
                    nn.init.trunc_normal_(module.weight, std=0.02)
                else:
                    nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        learned = self.no_weight_decay()  # class tokens and position embeddings
        for name, parameter in self.named_parameters():
            if name in learned:
                nn.init.trunc_normal_(parameter, std=0.02)
        self._init_head()

    def _classifier(self, num_classes: int) -> nn.Module:
        return nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()

    def _init_head(self) -> None:
        if isinstance(self.head, nn.Linear):
            nn.init.trunc_normal_(self.head.weight, std=0.02)  # the bias keeps PyTorch's default


def projections(config: StageConfig) -> tuple[nn.Module, nn.Module, nn.Module]:
    """The query, key and value projections of a block."""
    assert not isinstance(config.stride_kv, tuple)  # the config is a block's
    q_args, kv_args = (1, config.kernel // 2), (config.stride_kv, config.padding_kv)
    if config.projection == "conv":
        return (ConvProjection(config, *q_args), ConvProjection(config, *kv_args),
                ConvProjection(config, *kv_args))
    if config.projection == "avg":
        return (LinearProjection(config), AvgProjection(config, *kv_args),
                AvgProjection(config, *kv_args))
    return LinearProjection(config), LinearProjection(config), LinearProjection(config)


# Both go through (B, H, W, C), and so do their gradients. Through (B, C, T), a batch of one image
# would get a batch stride that hides its channels-last layout: PyTorch's BatchNorm on a CPU then
# takes an input and a gradient of different layouts for the same, and its gradients are wrong.
def to_map(x: Tensor, grid: Grid) -> Tensor:
    """Tokens (B, T, C) as a map (B, C, H, W): a view in channels-last layout, no copy."""
    return x.unflatten(1, grid).permute(0, 3, 1, 2)


def to_tokens(x: Tensor) -> Tensor:
    """A map (B, C, H, W) as tokens (B, T, C): a view where the map is channels-last."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def split(x: Tensor, grid: Grid, cls_token: bool) -> tuple[Tensor | None, Tensor]:
    """A sequence (B, [1 +] T, C) as its class token (B, 1, C) or None, and its map (B, C, H, W)."""
    return (x[:, :1], to_map(x[:, 1:], grid)) if cls_token else (None, to_map(x, grid))


def join(cls: Tensor | None, fmap: Tensor) -> Tensor:
    """The inverse of `split`: (B, 1, C) or None and (B, C, H, W) to (B, [1 +] T, C)."""
    x = to_tokens(fmap)
    return x if cls is None else torch.cat([cls, x], 1)


def heads(x: Tensor, num_heads: int) -> Tensor:
    """Queries, keys or values (B, [1 +] T, C), a head each: (B, N, [1 +] T, D)."""
    return x.unflatten(2, (num_heads, -1)).transpose(1, 2)


@torch.fx.wrap
def check_images(x: Tensor, in_chans: int, min_size: int) -> None:
    """Raise InputError for a batch that is not (B, in_chans, at least min_size, the same)."""
    if torch.compiler.is_compiling():
        return  # shapes are symbols there, and a comparison would bind them
    if x.ndim != 4 or x.shape[1] != in_chans:
        raise InputError(f"expected images of shape (B, {in_chans}, H, W), got {tuple(x.shape)}")
    if min(x.shape[2:]) < min_size:
        raise InputError(f"images of {x.shape[2]}x{x.shape[3]} pixels leave a stage empty; "
                         f"this network needs at least {min_size} pixels a side")


def positions(indices: int | Sequence[int] | None, count: int) -> list[int]:
    """Absolute positions among `count`; an int n means the last n. InputError out of range."""
    if indices is None:
        return list(range(count))
    if isinstance(indices, int):
        if not 1 <= indices <= count:
            raise InputError(f"indices={indices} asks for the last {indices} of {count}; "
                             f"give a number from 1 to {count}, or a list of positions")
        indices = range(count - indices, count)
    for i in indices:
        if not -count <= i < count:
            raise InputError(f"index {i} is out of range; there are {count} (0 to {count - 1})")
    return [i % count for i in indices]


def _checkpoint_contexts(block: nn.Module) -> tuple[Any, Any]:
    return contextlib.nullcontext(), _statistics_kept(block)


@contextlib.contextmanager
def _statistics_kept(block: nn.Module) -> Iterator[None]:
    """Let no BatchNorm of `block` count the batch a second time while it is computed again."""
    norms = [m for m in block.modules() if isinstance(m, nn.BatchNorm2d)]
    kept = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        # Momentum 0 leaves the statistics as they are. With track_running_stats=False they would
        # not be saved for the backward pass, and checkpoint() refuses a pass that saves less.
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, batches) in zip(norms, kept, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, batches
