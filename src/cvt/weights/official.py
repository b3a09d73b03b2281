"""Experiment files of the official code (microsoft/CvT): MODEL.SPEC to a configuration and back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cvt.config import CvTConfig, StageConfig
from cvt.system.errors import InputError, did_you_mean
from cvt.system.schema import check, from_mapping, read_mapping

# Official key of MODEL.SPEC -> our field, a list with one entry per stage.
_SPEC_KEYS = {
    "PATCH_SIZE": "embed_kernel", "PATCH_STRIDE": "embed_stride", "PATCH_PADDING": "embed_padding",
    "DIM_EMBED": "dim", "NUM_HEADS": "num_heads", "DEPTH": "depth", "MLP_RATIO": "mlp_ratio",
    "ATTN_DROP_RATE": "attn_drop_rate", "DROP_RATE": "drop_rate",
    "DROP_PATH_RATE": "drop_path_rate", "QKV_BIAS": "qkv_bias", "CLS_TOKEN": "cls_token",
    "POS_EMBED": "pos_embed", "QKV_PROJ_METHOD": "projection", "KERNEL_QKV": "kernel",
    "PADDING_KV": "padding_kv", "STRIDE_KV": "stride_kv",
}
_PROJECTIONS = {"dw_bn": "conv", "avg": "avg", "linear": "linear"}


def from_official_yaml(path: str | Path) -> CvTConfig:
    """Config from the `MODEL.SPEC` of an experiment file of microsoft/CvT.

    The official code always uses QuickGELU, so `act` is "quick_gelu". Its "linear" projection
    fails there; here it keeps every token, and STRIDE_KV is ignored. Raises InputError for a
    file without MODEL.SPEC and for invalid values.
    """
    data = read_mapping(Path(path))
    model = data.get("MODEL")
    if not isinstance(model, Mapping) or not isinstance(model.get("SPEC"), Mapping):
        raise InputError(f"{path} has no MODEL.SPEC; is it an experiment file of "
                         "microsoft/CvT? A config of this package is read by CvTConfig.load")
    train = data.get("TRAIN")
    sizes = train.get("IMAGE_SIZE", [224]) if isinstance(train, Mapping) else [224]
    check(isinstance(sizes, list) and len(sizes) > 0,
          f"{path} has TRAIN.IMAGE_SIZE={sizes!r}, which is not a list of pixels")
    return from_official_spec(model["SPEC"], num_classes=model.get("NUM_CLASSES", 1000),
                                  image_size=sizes[0])


def from_official_spec(spec: Mapping[str, Any], *, num_classes: int = 1000,
                       image_size: int = 224) -> CvTConfig:
    """Config from an official `MODEL.SPEC` mapping; see `from_official_yaml`."""
    unknown = sorted(set(spec) - set(_SPEC_KEYS) - {"INIT", "NUM_STAGES", "STRIDE_Q",
                                                    "PADDING_Q"})
    if unknown:
        raise InputError(f"MODEL.SPEC has the unknown key {unknown[0]}; "
                         f"{did_you_mean(unknown[0], _SPEC_KEYS)}")
    missing = sorted(key for key in ("NUM_STAGES", "DIM_EMBED", "NUM_HEADS", "DEPTH")
                     if key not in spec)
    if missing:
        raise InputError(f"MODEL.SPEC lacks {', '.join(missing)}")
    check(isinstance(spec["NUM_STAGES"], int),
          f"MODEL.SPEC has NUM_STAGES={spec['NUM_STAGES']!r}, which is not an integer")
    stages = []
    for i in range(spec["NUM_STAGES"]):
        try:
            stage = {ours: spec[key][i] for key, ours in _SPEC_KEYS.items() if key in spec}
            stride_q = spec["STRIDE_Q"][i] if "STRIDE_Q" in spec else 1
            padding_q = spec["PADDING_Q"][i] if "PADDING_Q" in spec else None
        except (IndexError, KeyError, TypeError):
            raise InputError(f"MODEL.SPEC has NUM_STAGES={spec['NUM_STAGES']}, but one of its "
                             f"lists has no entry for stage {i + 1}") from None
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
                "of the queries, which the residual connection needs; use 1 and kernel // 2")
    return CvTConfig(stages=tuple(stages), num_classes=num_classes, image_size=image_size,
               init=spec.get("INIT", "trunc_norm"))


def to_official_yaml(config: CvTConfig, size: int) -> dict[str, Any]:
    """Content of an experiment file of microsoft/CvT for images of `size` pixels.

    The activation is not part of it: the official code always uses QuickGELU. Raises InputError
    for a network that the official code cannot build.
    """
    for key, wrong in (("pos_embed", any(s.pos_embed for s in config.stages)),
                       ("projection", any(s.projection == "linear" for s in config.stages)),
                       ("stride_kv or mlp_ratio, which differ between the blocks of a stage",
                        not all(s.uniform for s in config.stages))):
        if wrong:
            raise InputError(f"the official code cannot build this network's {key}; choose "
                             "another format")
    names = {ours: theirs for theirs, ours in _PROJECTIONS.items()}
    spec: dict[str, Any] = {key: [getattr(stage, ours) for stage in config.stages]
                            for key, ours in _SPEC_KEYS.items()}
    spec["QKV_PROJ_METHOD"] = [names[method] for method in spec["QKV_PROJ_METHOD"]]
    return {"MODEL": {"NAME": "cls_cvt", "NUM_CLASSES": config.num_classes, "SPEC": {
                "INIT": config.init, "NUM_STAGES": len(config.stages), **spec,
                "PADDING_Q": [stage.kernel // 2 for stage in config.stages],
                "STRIDE_Q": [1] * len(config.stages)}},
            "TRAIN": {"IMAGE_SIZE": [size, size]}}
