"""What a CvT is and how its images are prepared, as data. No torch.

`StageConfig` is a column of Table 2 of the paper (arXiv:2103.15808), `CvTConfig` the whole network,
`VARIANTS` the table itself and `Preprocess` the way from an image to the network's input.
Ablations are configurations too: Table 5 is `pos_embed`, Table 6 `embed="patch"`, Table 7
`stride_kv=1` and Table 8 `projection="linear"`; what a search for architectures (CvT-13-NAS of
Table 3) chooses, `stride_kv` and `mlp_ratio`, may differ from block to block.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from cvt.system.errors import InputError, did_you_mean
from cvt.system.schema import check, check_types, from_mapping, read_mapping, write_mapping

Act = Literal["quick_gelu", "gelu"]
Grid = tuple[int, int]  # (H, W) in tokens
_Number = TypeVar("_Number", int, float)

# No dimension of any network is larger; a configuration may come from a stranger.
MOST = 100_000

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """One stage: a token embedding, then `depth` Transformer blocks of width `dim`.

    Raises InputError for values that no network can be built from.
    """

    dim: int
    """Channels of every token in the stage."""
    num_heads: int
    """Attention heads; the paper keeps dim / num_heads = 64."""
    depth: int
    """Transformer blocks."""
    embed: Literal["conv", "patch"] = "conv"
    """Overlapping convolution (Sec. 3.1) or, as in ViT, patches that do not overlap (Table 6)."""
    embed_kernel: int = 3
    """Side of the embedding's kernel, in pixels or tokens of the stage before."""
    embed_stride: int = 2
    """Stride of the embedding; for "patch" it equals embed_kernel."""
    embed_padding: int = 1
    """Zero padding of the embedding; for "patch" it is 0."""
    projection: Literal["conv", "avg", "linear"] = "conv"
    """What stands before the query, key and value Linears (Sec. 3.2): depthwise convolution with
    BatchNorm, average pooling (keys and values only), or nothing (Table 8)."""
    kernel: int = 3
    """Side of the projection's kernel, odd."""
    stride_kv: int | tuple[int, ...] = 2
    """Stride of the key and value projections (Table 7), of all blocks or one for each; 1 for
    "linear"."""
    padding_kv: int = 1
    """Padding of the key and value projections; the query's is kernel // 2, so its grid stays."""
    qkv_bias: bool = True
    """Bias in the query, key and value Linears."""
    mlp_ratio: float | tuple[float, ...] = 4.0
    """Hidden width of the MLP in units of dim, of all blocks or one for each."""
    cls_token: bool = False
    """A learned class token in front of the stage's tokens; the last stage's is classified."""
    pos_embed: bool = False
    """A learned position embedding added to the tokens, resized to any grid (Table 5)."""
    drop_rate: float = 0.0
    """Dropout of tokens and of both MLP layers, probability in [0, 1)."""
    attn_drop_rate: float = 0.0
    """Dropout of attention weights, probability in [0, 1)."""
    drop_path_rate: float = 0.0
    """Stochastic depth: rises from 0 at the first block of the stage to this at its last."""

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("dim", "num_heads", "depth", "embed_kernel", "embed_stride", "kernel"):
            check_range(self, name, 1)
        for name in ("stride_kv", "mlp_ratio"):
            _one_where_equal(self, name)
        check_range(self, "stride_kv", 1)
        for name in ("embed_padding", "padding_kv"):
            check(getattr(self, name) >= 0, f"{name}={getattr(self, name)} must not be negative")
        for name in ("drop_rate", "attn_drop_rate", "drop_path_rate"):
            check(0 <= getattr(self, name) < 1, f"{name}={getattr(self, name)} must be in [0, 1)")
        ratios = _each(self.mlp_ratio)
        check(max(ratios) <= MOST, f"mlp_ratio={self.mlp_ratio} must be at most {MOST}")
        check(int(self.dim * min(ratios)) >= 1, f"mlp_ratio={self.mlp_ratio} leaves no hidden "
               "channel; the paper's is 4")
        check(self.dim % self.num_heads == 0,
               f"dim={self.dim} is not divisible by num_heads={self.num_heads}; the paper keeps "
               f"dim / num_heads = 64, so try num_heads={max(1, self.dim // 64)}")
        check(self.kernel % 2 == 1, f"kernel={self.kernel} is even, so the queries would not keep "
               "their grid; use an odd kernel such as 3")
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
        """The stage's token grid for an input of `grid` (H, W); may be empty (0)."""
        height, width = (_conv(n, self.embed_kernel, self.embed_stride, self.embed_padding)
                         for n in grid)
        return height, width

    def grids_kv(self, grid: Grid) -> tuple[Grid, ...]:
        """The grids of keys and values for the stage's own token grid (H, W).

        One, or where the strides of its blocks differ one for each stride, the smallest first.
        """
        if self.projection == "linear":
            return (grid,)
        out = _pool_ceil if self.projection == "avg" else _conv
        grids = []
        for stride in sorted(set(_each(self.stride_kv))):
            height, width = (out(n, self.kernel, stride, self.padding_kv) for n in grid)
            grids.append((height, width))
        return tuple(grids)

    def block(self, i: int) -> StageConfig:
        """Block `i`, counted from 0, as a stage of that block alone."""
        def its(value: _Number | tuple[_Number, ...]) -> _Number:
            return value[i] if isinstance(value, tuple) else value

        return replace(self, depth=1, stride_kv=its(self.stride_kv), mlp_ratio=its(self.mlp_ratio))

    @property
    def uniform(self) -> bool:
        """Whether all blocks have one key and value stride and one MLP ratio, as in the paper."""
        return not isinstance(self.stride_kv, tuple) and not isinstance(self.mlp_ratio, tuple)


@dataclass(frozen=True, kw_only=True)
class CvTConfig:
    """A whole CvT: everything needed to rebuild the network, weights aside.

    Raises InputError for values that no network can be built from.
    """

    stages: tuple[StageConfig, ...]
    """From the finest grid to the coarsest."""
    in_chans: int = 3
    """Channels of the input image."""
    num_classes: int = 1000
    """Width of the classifier; 0 for none."""
    act: Act = "quick_gelu"
    """The MLP's activation. The official code and its weights use QuickGELU, x sigmoid(1.702 x);
    weights trained with the transformers port use GELU."""
    init: Literal["trunc_norm", "xavier"] = "trunc_norm"
    """Initialisation of the Linear weights: truncated normal of std 0.02, or Xavier uniform."""
    image_size: int = 224
    """Side in pixels at which position embeddings are learned; no other part depends on it."""

    def __post_init__(self) -> None:
        check_types(self)
        check(len(self.stages) >= 1, "stages is empty; a CvT has at least one stage")
        check(len(self.stages) <= 100, f"{len(self.stages)} stages are more than 100")
        check_range(self, "in_chans", 1)
        check(self.image_size <= MOST, f"image_size={self.image_size} must be at most {MOST}")
        check(self.num_classes >= 0, f"num_classes={self.num_classes} must not be negative; "
               "0 builds no classifier")
        check(self.num_classes <= 10 * MOST, f"num_classes={self.num_classes} must be at most "
              f"{10 * MOST}")
        self.grids((self.image_size, self.image_size))

    def grids(self, size: Grid) -> tuple[Grid, ...]:
        """The token grid (H, W) of each stage for an image of `size` (H, W) pixels.

        Raises InputError where a stage would be left without tokens.
        """
        grid, grids = size, []
        for i, stage in enumerate(self.stages):
            grid = stage.grid(grid)
            if _empty(stage, grid):
                raise InputError(
                    f"an image of {size[0]}x{size[1]} pixels leaves stage {i + 1} without tokens; "
                    + self._needs())
            grids.append(grid)
        return tuple(grids)

    def min_size(self) -> int:
        """The least image side, in pixels, that leaves every stage at least one token."""
        return next(filter(self._fits, range(1, self.image_size)), self.image_size)

    def _fits(self, side: int) -> bool:
        grid = (side, side)
        for stage in self.stages:
            grid = stage.grid(grid)
            if _empty(stage, grid):
                return False
        return True

    def _needs(self) -> str:
        least = next(filter(self._fits, range(1, MOST + 1)), None)
        return (f"this network needs at least {least} pixels a side" if least else
                f"this network has no room for a token in images of up to {MOST} pixels a side")

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels between neighbouring tokens of each stage; (4, 8, 16) in the paper."""
        return tuple(math.prod(s.embed_stride for s in self.stages[: i + 1])
                     for i in range(len(self.stages)))

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, dicts, numbers and strings; `from_dict` reads them back."""
        return {**asdict(self), "stages": [
            {name: list(value) if isinstance(value, tuple) else value
             for name, value in asdict(stage).items()} for stage in self.stages]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> CvTConfig:
        """The config `data` describes. Raises InputError for an unknown key or a wrong value."""
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
        """Read what `save` wrote. Raises InputError for anything else."""
        return cls.from_dict(read_mapping(Path(path)))

    @classmethod
    def from_official_yaml(cls, path: str | Path) -> CvTConfig:
        """The network that an experiment file of microsoft/CvT describes (its `MODEL.SPEC`).

        The official code knows no choice of activation, so `act` is "quick_gelu". Its "linear"
        projection cannot run there; here it keeps every token, whatever its STRIDE_KV says.
        Raises InputError for a file without MODEL.SPEC or with a value that cannot be built.
        """
        data = read_mapping(Path(path))
        model = data.get("MODEL")
        if not isinstance(model, Mapping) or not isinstance(model.get("SPEC"), Mapping):
            raise InputError(f"{path} has no MODEL.SPEC; is it an experiment file of "
                             "microsoft/CvT? A config of this package is read by CvTConfig.load")
        train = data.get("TRAIN")
        sizes = train.get("IMAGE_SIZE", [224]) if isinstance(train, Mapping) else [224]
        check(isinstance(sizes, list) and len(sizes) > 0,
              f"{path} says TRAIN.IMAGE_SIZE={sizes!r}, which is not a list of pixels")
        return cls.from_official_spec(model["SPEC"], num_classes=model.get("NUM_CLASSES", 1000),
                                      image_size=sizes[0])

    @classmethod
    def from_official_spec(cls, spec: Mapping[str, Any], *, num_classes: int = 1000,
                           image_size: int = 224) -> CvTConfig:
        """The network of an official `MODEL.SPEC` mapping; see `from_official_yaml`."""
        unknown = sorted(set(spec) - set(_SPEC_KEYS) - {"INIT", "NUM_STAGES", "STRIDE_Q",
                                                        "PADDING_Q"})
        if unknown:
            raise InputError(f"MODEL.SPEC has the unknown key {unknown[0]}; "
                             f"{did_you_mean(unknown[0], _SPEC_KEYS)}")
        missing = sorted(key for key in ("NUM_STAGES", "DIM_EMBED", "NUM_HEADS", "DEPTH")
                         if key not in spec)
        if missing:
            raise InputError(f"MODEL.SPEC lacks {', '.join(missing)}")
        check(isinstance(spec["NUM_STAGES"], int), f"MODEL.SPEC says NUM_STAGES="
              f"{spec['NUM_STAGES']!r}, which is not a number of stages")
        stages = []
        for i in range(spec["NUM_STAGES"]):
            try:
                stage = {ours: spec[key][i] for key, ours in _SPEC_KEYS.items() if key in spec}
                stride_q = spec["STRIDE_Q"][i] if "STRIDE_Q" in spec else 1
                padding_q = spec["PADDING_Q"][i] if "PADDING_Q" in spec else None
            except (IndexError, KeyError, TypeError):
                raise InputError(f"MODEL.SPEC says NUM_STAGES={spec['NUM_STAGES']}, but a list in "
                                 f"it has no entry for stage {i + 1}") from None
            method = stage.get("projection", "dw_bn")
            if not isinstance(method, str) or method not in _PROJECTIONS:
                raise InputError(f"QKV_PROJ_METHOD={method!r} is not a projection; "
                                 f"{did_you_mean(str(method), _PROJECTIONS)}")
            stage["projection"] = _PROJECTIONS[method]
            if method == "linear":
                stage["stride_kv"] = 1
            stages.append(from_mapping(StageConfig, stage, f"stage {i + 1} of MODEL.SPEC"))
            if stride_q != 1 or padding_q not in (None, stages[-1].kernel // 2):
                raise InputError(
                    f"STRIDE_Q={stride_q}, PADDING_Q={padding_q} in stage {i + 1} change the grid "
                    "of the queries, which the residual needs; use 1 and kernel // 2")
        return cls(stages=tuple(stages), num_classes=num_classes, image_size=image_size,
                   init=spec.get("INIT", "trunc_norm"))

    def to_official_yaml(self, size: int) -> dict[str, Any]:
        """The content of an experiment file of microsoft/CvT for images of `size` pixels.

        The activation is not in it: the official code knows QuickGELU alone. Raises InputError for
        a network that it cannot build.
        """
        for key, wrong in (("pos_embed", any(s.pos_embed for s in self.stages)),
                           ("projection", any(s.projection == "linear" for s in self.stages)),
                           ("stride_kv or mlp_ratio, which differ between the blocks of a stage",
                            not all(s.uniform for s in self.stages))):
            if wrong:
                raise InputError(f"the official code cannot build this network's {key}; choose "
                                 "another format")
        names = {ours: theirs for theirs, ours in _PROJECTIONS.items()}
        spec: dict[str, Any] = {key: [getattr(stage, ours) for stage in self.stages]
                                for key, ours in _SPEC_KEYS.items()}
        spec["QKV_PROJ_METHOD"] = [names[method] for method in spec["QKV_PROJ_METHOD"]]
        return {"MODEL": {"NAME": "cls_cvt", "NUM_CLASSES": self.num_classes, "SPEC": {
                    "INIT": self.init, "NUM_STAGES": len(self.stages), **spec,
                    "PADDING_Q": [stage.kernel // 2 for stage in self.stages],
                    "STRIDE_Q": [1] * len(self.stages)}},
                "TRAIN": {"IMAGE_SIZE": [size, size]}}


# Official key of MODEL.SPEC -> our field. One entry a stage.
_SPEC_KEYS = {
    "PATCH_SIZE": "embed_kernel", "PATCH_STRIDE": "embed_stride", "PATCH_PADDING": "embed_padding",
    "DIM_EMBED": "dim", "NUM_HEADS": "num_heads", "DEPTH": "depth", "MLP_RATIO": "mlp_ratio",
    "ATTN_DROP_RATE": "attn_drop_rate", "DROP_RATE": "drop_rate",
    "DROP_PATH_RATE": "drop_path_rate", "QKV_BIAS": "qkv_bias", "CLS_TOKEN": "cls_token",
    "POS_EMBED": "pos_embed", "QKV_PROJ_METHOD": "projection", "KERNEL_QKV": "kernel",
    "PADDING_KV": "padding_kv", "STRIDE_KV": "stride_kv",
}
_PROJECTIONS = {"dw_bn": "conv", "avg": "avg", "linear": "linear"}


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """From an image of any size to the network's input; stored with every trained model.

    "crop": resize the short side to size / crop, then cut the centre; "squash": resize both sides
    to size, whatever the shape (the paper's way at 384). Raises InputError for nonsense.
    """

    size: int = 224
    """Side in pixels of the square that the network sees."""
    crop: float = 0.875
    """Fraction of the resized short side that the centre crop keeps, in (0, 1]."""
    mode: Literal["crop", "squash"] = "crop"
    """Whether to keep the shape and cut the centre, or to squash the image to a square."""
    interpolation: Literal["bicubic", "bilinear", "nearest", "lanczos"] = "bicubic"
    """Filter of the resize, antialiased, as Pillow computes it."""
    mean: tuple[float, ...] = IMAGENET_MEAN
    """Subtracted from channels in [0, 1]; its length is the number of channels. Images give 1
    (gray) or 3 (RGB)."""
    std: tuple[float, ...] = IMAGENET_STD
    """Divides the channels after the mean."""

    def __post_init__(self) -> None:
        check_types(self)
        check_range(self, "size", 1)
        check(0 < self.crop <= 1, f"crop={self.crop} must be in (0, 1]")
        check(len(self.mean) == len(self.std) >= 1, f"mean={self.mean} and std={self.std} must "
              "have as many entries as the input has channels")
        check(all(s > 0 for s in self.std), f"std={self.std} must be positive")
        check(self.mode == "crop" or self.crop == 1, f"mode='squash' cuts nothing off, but "
               f"crop={self.crop}; set crop=1")

    @property
    def channels(self) -> int:
        """Channels of the network's input."""
        return len(self.mean)

    @property
    def resize(self) -> int:
        """Side in pixels to which the short side ("crop") or both sides ("squash") are resized."""
        return math.floor(self.size / self.crop + 1e-6)  # 90 / (90 / 100) is 99.99999999999999

    def with_channels(self, channels: int) -> Preprocess:
        """The same for another number of channels: the average for one, else repeated."""
        if channels == self.channels:
            return self
        mean, std = ((sum(v) / len(v),) if channels == 1 else
                     tuple(v[i % len(v)] for i in range(channels)) for v in (self.mean, self.std))
        return replace(self, mean=mean, std=std)


def imagenet_preprocess(size: int) -> Preprocess:
    """As the paper evaluates at `size` pixels: ImageNet's mean and std, from 384 on squashed."""
    return Preprocess(size=size, mode="squash", crop=1.0) if size >= 384 else Preprocess(size=size)


def check_range(config: Any, name: str, least: int) -> None:
    """Refuse a field that is below `least`, or so large that building would fill the memory."""
    value = getattr(config, name)
    check(min(_each(value)) >= least, f"{name}={value} must be at least {least}")
    check(max(_each(value)) <= MOST, f"{name}={value} must be at most {MOST}")


def _each(value: _Number | tuple[_Number, ...]) -> tuple[_Number, ...]:
    return value if isinstance(value, tuple) else (value,)


def _one_where_equal(stage: StageConfig, name: str) -> None:
    """Let a field with an entry for each block be one number where all are equal."""
    value = getattr(stage, name)
    if isinstance(value, tuple):
        check(len(value) == stage.depth, f"{name}={value} has {len(value)} entries for "
              f"depth={stage.depth}; give one number for all blocks, or one for each")
        if len(set(value)) == 1:
            object.__setattr__(stage, name, value[0])


def _empty(stage: StageConfig, grid: Grid) -> bool:
    """Whether the stage's token grid, or one of keys and values, has no token."""
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
    """A row of VARIANTS: three stages, the class token and stochastic depth in the last."""
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
    # Ours, for images of 28 to 64 pixels from scratch: half the width, half the heads' width, and a
    # stem whose first grid keeps every second pixel.
    "cvt_nano": _variant((32, 64, 128), (1, 2, 4), (1, 2, 4), stem=(3, 2, 1), num_classes=10,
                         image_size=32),
}
