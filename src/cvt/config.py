"""Configuration of a CvT and of its preprocessing, as data. No torch.

`StageConfig` is a column of Table 2 of the paper (arXiv:2103.15808), `CvTConfig` the whole network,
`VARIANTS` the table and `Preprocess` the steps from an image to the input of the network.
Ablations are configurations too: Table 5 is `pos_embed`, Table 6 `embed="patch"`, Table 7
`stride_kv=1` and Table 8 `projection="linear"`. The choices of an architecture search (CvT-13-NAS
in Table 3), `stride_kv` and `mlp_ratio`, may differ from block to block.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from cvt.system.errors import InputError
from cvt.system.schema import check, check_types, from_mapping, read_mapping, write_mapping

Act = Literal["quick_gelu", "gelu"]
Grid = tuple[int, int]  # (H, W) in tokens
_Number = TypeVar("_Number", int, float)

# Upper bound of every dimension: a configuration may come from an untrusted file.
MAX_DIM = 100_000

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """One stage: a token embedding, then `depth` Transformer blocks of width `dim`.

    Raises InputError for invalid values.
    """

    dim: int
    """Channels of a token."""
    num_heads: int
    """Attention heads; the paper keeps dim / num_heads = 64."""
    depth: int
    """Transformer blocks."""
    embed: Literal["conv", "patch"] = "conv"
    """Token embedding: overlapping convolution (Sec. 3.1), or non-overlapping patches as in ViT
    (Table 6)."""
    embed_kernel: int = 3
    """Kernel size of the embedding, in pixels or in tokens of the previous stage."""
    embed_stride: int = 2
    """Stride of the embedding; equal to embed_kernel for "patch"."""
    embed_padding: int = 1
    """Zero padding of the embedding; 0 for "patch"."""
    projection: Literal["conv", "avg", "linear"] = "conv"
    """Before the query, key and value Linears (Sec. 3.2): depthwise convolution and BatchNorm,
    average pooling (keys and values only), or nothing (Table 8)."""
    kernel: int = 3
    """Kernel size of the projection, odd."""
    stride_kv: int | tuple[int, ...] = 2
    """Stride of the key and value projections (Table 7), for all blocks or one per block; 1 for
    "linear"."""
    padding_kv: int = 1
    """Padding of the key and value projections; the padding of the query is kernel // 2, which
    keeps its grid."""
    qkv_bias: bool = True
    """Bias in the query, key and value Linears."""
    mlp_ratio: float | tuple[float, ...] = 4.0
    """Hidden width of the MLP divided by dim, for all blocks or one per block."""
    cls_token: bool = False
    """Class token in front of the tokens of the stage; the last stage's is classified."""
    pos_embed: bool = False
    """Learned position embedding added to the tokens, resized to the grid (Table 5)."""
    drop_rate: float = 0.0
    """Dropout probability of tokens and of both MLP layers, in [0, 1)."""
    attn_drop_rate: float = 0.0
    """Dropout probability of attention weights, in [0, 1)."""
    drop_path_rate: float = 0.0
    """Stochastic depth rate of the last block, in [0, 1); rises linearly from 0 at the first."""

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("dim", "num_heads", "depth", "embed_kernel", "embed_stride", "kernel"):
            check_range(self, name, 1)
        for name in ("stride_kv", "mlp_ratio"):
            _collapse_equal(self, name)
        check_range(self, "stride_kv", 1)
        for name in ("embed_padding", "padding_kv"):
            check(getattr(self, name) >= 0, f"{name}={getattr(self, name)} must not be negative")
        for name in ("drop_rate", "attn_drop_rate", "drop_path_rate"):
            check(0 <= getattr(self, name) < 1, f"{name}={getattr(self, name)} must be in [0, 1)")
        ratios = _each(self.mlp_ratio)
        check(max(ratios) <= MAX_DIM, f"mlp_ratio={self.mlp_ratio} must be at most {MAX_DIM}")
        check(int(self.dim * min(ratios)) >= 1, f"mlp_ratio={self.mlp_ratio} leaves no hidden "
              "channel; the paper uses 4")
        check(self.dim % self.num_heads == 0,
              f"dim={self.dim} is not divisible by num_heads={self.num_heads}; the paper keeps "
              f"dim / num_heads = 64, so try num_heads={max(1, self.dim // 64)}")
        check(self.kernel % 2 == 1, f"kernel={self.kernel} is even, which changes the grid of the "
              "queries; use an odd kernel such as 3")
        check(self.embed_padding < self.embed_kernel,
              f"embed_padding={self.embed_padding} must be smaller than "
              f"embed_kernel={self.embed_kernel}")
        if self.embed == "patch":
            check(self.embed_kernel == self.embed_stride and self.embed_padding == 0,
                  f"embed='patch' does not overlap, but embed_kernel={self.embed_kernel}, "
                  f"embed_stride={self.embed_stride}, embed_padding={self.embed_padding}; set "
                  f"embed_kernel=embed_stride and embed_padding=0")
        if self.projection == "linear":
            check(self.stride_kv == 1, f"projection='linear' keeps every token, but "
                  f"stride_kv={self.stride_kv}; set stride_kv=1")
        if self.projection == "avg":
            check(self.padding_kv <= self.kernel // 2, f"projection='avg' pads at most half its "
                  f"kernel={self.kernel}, but padding_kv={self.padding_kv}; "
                  f"set padding_kv={self.kernel // 2}")

    def grid(self, grid: Grid) -> Grid:
        """Token grid of the stage for an input of `grid` (H, W); may be empty (0)."""
        height, width = (_conv(n, self.embed_kernel, self.embed_stride, self.embed_padding)
                         for n in grid)
        return height, width

    def grids_kv(self, grid: Grid) -> tuple[Grid, ...]:
        """Grids of keys and values for a token grid (H, W): one for each different stride of the
        blocks, in order of the strides."""
        if self.projection == "linear":
            return (grid,)
        out = _pool_ceil if self.projection == "avg" else _conv
        grids = []
        for stride in sorted(set(_each(self.stride_kv))):
            height, width = (out(n, self.kernel, stride, self.padding_kv) for n in grid)
            grids.append((height, width))
        return tuple(grids)

    def block(self, i: int) -> StageConfig:
        """The configuration of block `i` (from 0): a stage of depth 1."""
        def of_block(value: _Number | tuple[_Number, ...]) -> _Number:
            return value[i] if isinstance(value, tuple) else value

        return replace(self, depth=1, stride_kv=of_block(self.stride_kv),
                       mlp_ratio=of_block(self.mlp_ratio))

    @property
    def uniform(self) -> bool:
        """Whether all blocks have the same stride_kv and mlp_ratio, as in the paper."""
        return not isinstance(self.stride_kv, tuple) and not isinstance(self.mlp_ratio, tuple)


@dataclass(frozen=True, kw_only=True)
class CvTConfig:
    """A whole CvT: everything needed to build the network, without its weights.

    Raises InputError for invalid values.
    """

    stages: tuple[StageConfig, ...]
    """Stages, from the finest grid to the coarsest."""
    in_chans: int = 3
    """Channels of the input image."""
    num_classes: int = 1000
    """Number of classes; 0 builds no classifier."""
    act: Act = "quick_gelu"
    """Activation of the MLP. The official code and its weights use QuickGELU, x sigmoid(1.702 x);
    weights trained with the transformers port use GELU."""
    init: Literal["trunc_norm", "xavier"] = "trunc_norm"
    """Initialisation of Linear weights: truncated normal with std 0.02, or Xavier uniform."""
    image_size: int = 224
    """Image side in pixels at which position embeddings are learned; nothing else depends on it."""

    def __post_init__(self) -> None:
        check_types(self)
        check(1 <= len(self.stages) <= 100, f"{len(self.stages)} stages; a CvT has 1 to 100")
        check_range(self, "in_chans", 1)
        check(self.image_size <= MAX_DIM, f"image_size={self.image_size} must be at most {MAX_DIM}")
        check(self.num_classes >= 0, f"num_classes={self.num_classes} must not be negative; "
              "0 builds no classifier")
        check(self.num_classes <= 10 * MAX_DIM, f"num_classes={self.num_classes} must be at most "
              f"{10 * MAX_DIM}")
        self.grids((self.image_size, self.image_size))

    def grids(self, size: Grid) -> tuple[Grid, ...]:
        """Token grid (H, W) of each stage for an image of `size` (H, W) pixels.

        Raises InputError if a stage would have no tokens.
        """
        grid, grids = size, []
        for i, stage in enumerate(self.stages):
            grid = stage.grid(grid)
            if _empty(stage, grid):
                fitting = next(filter(self._fits, range(1, MAX_DIM + 1)), None)
                raise InputError(
                    f"an image of {size[0]}x{size[1]} pixels leaves stage {i + 1} without tokens; "
                    + (f"this network needs at least {fitting} pixels a side" if fitting else
                       f"this network has no tokens for images of up to {MAX_DIM} pixels a side"))
            grids.append(grid)
        return tuple(grids)

    def min_size(self) -> int:
        """Minimum image side in pixels, with at least one token in every stage."""
        return next(filter(self._fits, range(1, self.image_size)), self.image_size)

    def _fits(self, side: int) -> bool:
        grid = (side, side)
        for stage in self.stages:
            grid = stage.grid(grid)
            if _empty(stage, grid):
                return False
        return True

    @property
    def strides(self) -> tuple[int, ...]:
        """Stride of each stage in pixels of the image; (4, 8, 16) in the paper."""
        return tuple(math.prod(s.embed_stride for s in self.stages[: i + 1])
                     for i in range(len(self.stages)))

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, dicts, numbers and strings, for `from_dict`."""
        return {**asdict(self), "stages": [
            {name: list(value) if isinstance(value, tuple) else value
             for name, value in asdict(stage).items()} for stage in self.stages]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> CvTConfig:
        """Config from plain data. Raises InputError for an unknown key or an invalid value."""
        stages = data.get("stages") if isinstance(data, Mapping) else None
        if not isinstance(stages, Sequence) or isinstance(stages, str):
            raise InputError(f"stages={stages!r} is not a list of stages")
        built = tuple(from_mapping(StageConfig, s, f"stages[{i}]") for i, s in enumerate(stages))
        return from_mapping(cls, {**data, "stages": built}, "model")

    def save(self, path: str | Path) -> None:
        """Write the config as JSON or YAML, by the suffix of `path`."""
        write_mapping(self.to_dict(), Path(path))

    @classmethod
    def load(cls, path: str | Path) -> CvTConfig:
        """Read a file written by `save`. Raises InputError for any other file."""
        return cls.from_dict(read_mapping(Path(path)))


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """Preprocessing from an image of any size to the network's input; saved with every model.

    mode="crop" resizes the short side to size / crop and takes the centre crop. mode="squash"
    resizes both sides to size, whatever the aspect ratio (as the paper does at 384). Raises
    InputError for invalid values.
    """

    size: int = 224
    """Side in pixels of the square input of the network."""
    crop: float = 0.875
    """Size of the centre crop as a fraction of the resized short side, in (0, 1]."""
    mode: Literal["crop", "squash"] = "crop"
    """Keep the aspect ratio and crop the centre, or squash the image to a square."""
    interpolation: Literal["bicubic", "bilinear", "nearest", "lanczos"] = "bicubic"
    """Resize filter, antialiased, as in Pillow."""
    mean: tuple[float, ...] = IMAGENET_MEAN
    """Mean of each channel in [0, 1], which is subtracted: one value for gray, three for RGB."""
    std: tuple[float, ...] = IMAGENET_STD
    """Standard deviation of each channel, by which it is then divided."""

    def __post_init__(self) -> None:
        check_types(self)
        check_range(self, "size", 1)
        check(0 < self.crop <= 1, f"crop={self.crop} must be in (0, 1]")
        check(len(self.mean) == len(self.std) >= 1, f"mean={self.mean} and std={self.std} must "
              "have as many entries as the input has channels")
        check(all(s > 0 for s in self.std), f"std={self.std} must be positive")
        check(self.mode == "crop" or self.crop == 1, f"mode='squash' does not crop, but "
              f"crop={self.crop}; set crop=1")

    @property
    def channels(self) -> int:
        """Input channels of the network."""
        return len(self.mean)

    @property
    def resize(self) -> int:
        """Pixels to which the short side ("crop") or both sides ("squash") are resized."""
        return math.floor(self.size / self.crop + 1e-6)  # 90 / (90 / 100) is 99.99999999999999

    def with_channels(self, channels: int) -> Preprocess:
        """The same for another number of channels: mean and std are averaged for one, else
        repeated."""
        if channels == self.channels:
            return self
        mean, std = ((sum(v) / len(v),) if channels == 1 else
                     tuple(v[i % len(v)] for i in range(channels)) for v in (self.mean, self.std))
        return replace(self, mean=mean, std=std)


def imagenet_preprocess(size: int) -> Preprocess:
    """Preprocessing of the paper at `size` pixels: ImageNet's mean and std, squashed from 384."""
    return Preprocess(size=size, mode="squash", crop=1.0) if size >= 384 else Preprocess(size=size)


def check_range(config: Any, name: str, minimum: int) -> None:
    """Raise InputError for a field below `minimum`, or so large that it would fill the memory."""
    value = getattr(config, name)
    check(min(_each(value)) >= minimum, f"{name}={value} must be at least {minimum}")
    check(max(_each(value)) <= MAX_DIM, f"{name}={value} must be at most {MAX_DIM}")


def _each(value: _Number | tuple[_Number, ...]) -> tuple[_Number, ...]:
    return value if isinstance(value, tuple) else (value,)


def _collapse_equal(stage: StageConfig, name: str) -> None:
    """Replace a field with one entry per block by a single number if all entries are equal."""
    value = getattr(stage, name)
    if isinstance(value, tuple):
        check(len(value) == stage.depth, f"{name}={value} has {len(value)} entries for "
              f"depth={stage.depth}; give one number for all blocks, or one per block")
        if len(set(value)) == 1:
            object.__setattr__(stage, name, value[0])


def _empty(stage: StageConfig, grid: Grid) -> bool:
    """Whether the token grid of the stage, or a grid of keys and values, has no token."""
    return min(grid) < 1 or min(map(min, stage.grids_kv(grid))) < 1


def _conv(size: int, kernel: int, stride: int, padding: int) -> int:
    return max(0, (size + 2 * padding - kernel) // stride + 1)


def _pool_ceil(size: int, kernel: int, stride: int, padding: int) -> int:
    out = -(-(size + 2 * padding - kernel) // stride) + 1
    # PyTorch drops a last window that would start in the right padding.
    return max(0, out - 1 if (out - 1) * stride >= size + padding else out)


def _variant(dims: Sequence[int], heads: Sequence[int], depths: Sequence[int], *,
             stem: tuple[int, int, int] = (7, 4, 2), drop_path_rate: float = 0.1,
             num_classes: int = 1000, image_size: int = 224) -> CvTConfig:
    """A row of VARIANTS: three stages, with class token and stochastic depth in the last."""
    embeds = (stem, (3, 2, 1), (3, 2, 1))  # kernel, stride, padding
    return CvTConfig(num_classes=num_classes, image_size=image_size, stages=tuple(
        StageConfig(dim=dim, num_heads=num_heads, depth=depth, embed_kernel=kernel,
                    embed_stride=stride, embed_padding=padding, cls_token=i == 2,
                    drop_path_rate=drop_path_rate if i == 2 else 0.0)
        for i, (dim, num_heads, depth, (kernel, stride, padding))
        in enumerate(zip(dims, heads, depths, embeds, strict=True))))


VARIANTS: Mapping[str, CvTConfig] = {
    # Table 2 of the paper; stochastic depth as in the official experiment files.
    "cvt_13": _variant((64, 192, 384), (1, 3, 6), (1, 2, 10)),
    "cvt_21": _variant((64, 192, 384), (1, 3, 6), (1, 4, 16)),
    "cvt_w24": _variant((192, 768, 1024), (3, 12, 16), (2, 2, 20), drop_path_rate=0.3,
                        image_size=384),
    # Ours, for training from scratch on images of 28 to 64 pixels: half the width, half the width
    # of a head, and a stem of stride 2.
    "cvt_nano": _variant((32, 64, 128), (1, 2, 4), (1, 2, 4), stem=(3, 2, 1), num_classes=10,
                         image_size=32),
}
