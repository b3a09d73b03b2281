"""Directories of timm: config.json with architecture, model_args and pretrained_cfg. No timm.

timm builds the architecture, which `import cvt.weights.timm_models` registers, with `model_args`;
tensors have native names. Source: timm 1.0.31, models/_hub.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cvt.config import VARIANTS, CvTConfig, Preprocess
from cvt.system.errors import InputError, did_you_mean
from cvt.system.schema import check, from_mapping
from cvt.weights.card import ModelCard

_CROP_MODES = {"center": "crop", "squash": "squash"}  # timm's crop_mode -> our mode


def read_card(directory: Path, data: Mapping[str, Any]) -> ModelCard:
    """The card of a directory with the config.json `data`.

    Raises InputError for another architecture, and for an unsupported pooling, crop mode or input
    size.
    """
    where = directory / "config.json"
    name = str(data.get("architecture"))
    if name not in VARIANTS:
        raise InputError(f"{where} has architecture={name!r}, which is not a CvT; "
                         f"{did_you_mean(name, VARIANTS)}")
    # In older files the keys of pretrained_cfg are at the top level.
    args, cfg = data.get("model_args") or {}, data.get("pretrained_cfg") or data
    if not isinstance(args, Mapping) or not isinstance(cfg, Mapping):
        raise InputError(f"{where} has a model_args or pretrained_cfg that is not a mapping")
    try:
        return _card(name, data, args, cfg)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def _card(name: str, data: Mapping[str, Any], args: Mapping[str, Any], cfg: Mapping[str, Any]
          ) -> ModelCard:
    args = dict(args)
    pool = args.pop("global_pool", None)
    known = build_config.__kwdefaults__ or {}
    for key in args:
        check(key in known, f"model_args has the unknown key {key!r}; "
              f"{did_you_mean(str(key), known)}")
    size = cfg.get("input_size") or [3, 224, 224]
    check(isinstance(size, Sequence) and len(size) == 3 and size[1] == size[2],
          f"input_size={size!r} is not [channels, size, size]")
    model = build_config(name, **{
        "num_classes": data.get("num_classes", cfg.get("num_classes", 1000)),
        "in_chans": size[0], **args})
    check(pool in (None, global_pool(model)), f"global_pool={pool!r} is not the pooling of this "
          f"network, {global_pool(model)!r}; load it with timm.create_model")
    crop_mode = str(cfg.get("crop_mode") or "center")
    check(crop_mode in _CROP_MODES, f"crop_mode={crop_mode!r} is not known; "
          f"{did_you_mean(crop_mode, _CROP_MODES)}")
    preprocess = from_mapping(Preprocess, {
        "size": size[-1], "mode": _CROP_MODES[crop_mode],
        "crop": cfg.get("crop_pct") or (1.0 if crop_mode == "squash" else 0.875),
        **{key: cfg[key] for key in ("interpolation", "mean", "std") if key in cfg}}, "it")
    names = data.get("label_names") or cfg.get("label_names")
    classes = tuple(map(str, range(model.num_classes))) if not names else label_names(names)
    return ModelCard(model=model, preprocess=preprocess, classes=classes)


def label_names(names: Any) -> tuple[str, ...]:
    """Class names from `label_names`: a list, or a mapping from indices to names.

    Raises InputError for anything else, and if the indices do not count up from 0.
    """
    if isinstance(names, Mapping):
        named = {str(number): name for number, name in names.items()}
        numbers = [str(i) for i in range(len(named))]
        check(named.keys() == set(numbers), "label_names has the indices "
              f"{', '.join(named)[:200]}, not 0 to {len(named) - 1}")
        names = [named[number] for number in numbers]
    check(isinstance(names, Sequence) and not isinstance(names, str),
          f"label_names={names!r} is not a list of names")
    return tuple(map(str, names))


def config_json(card: ModelCard) -> dict[str, Any]:
    """Content of config.json; `init`, which only an untrained network needs, is left out."""
    name, args = _nearest(card.model)
    return {
        "architecture": name, "num_classes": card.model.num_classes,
        "num_features": card.model.stages[-1].dim, "global_pool": global_pool(card.model),
        "model_args": args, "label_names": list(card.classes),
        "pretrained_cfg": {**pretrained_cfg(card.model, card.preprocess), "custom_load": False},
    }


def pretrained_cfg(config: CvTConfig, preprocess: Preprocess) -> dict[str, Any]:
    """The pretrained cfg of timm: preprocessing, and the first and last layer."""
    return {
        "input_size": (config.in_chans, preprocess.size, preprocess.size),
        "fixed_input_size": False, "interpolation": preprocess.interpolation,
        "crop_pct": preprocess.crop,
        "crop_mode": {ours: theirs for theirs, ours in _CROP_MODES.items()}[preprocess.mode],
        "mean": preprocess.mean, "std": preprocess.std,
        "num_classes": config.num_classes, "pool_size": None,
        "first_conv": "stages.0.embed.conv", "classifier": "head",
    }


def build_config(name: str, *, num_classes: int | None = None, in_chans: int = 3,
                 act_layer: str | None = None, drop_rate: float | None = None,
                 attn_drop_rate: float | None = None, drop_path_rate: float | None = None,
                 img_size: int | Sequence[int] | None = None,
                 stages: Sequence[Mapping[str, Any]] | None = None) -> CvTConfig:
    """The configuration of variant `name` with the arguments of timm; None changes nothing.

    act_layer: "quick_gelu" or "gelu". drop_rate and attn_drop_rate apply to every stage,
    drop_path_rate to the stages with stochastic depth, or the last if there are none. img_size:
    image side in pixels, or two equal ones, at which position embeddings are learned. stages:
    replaces all stages, each given by the fields of `StageConfig`. Raises InputError for invalid
    values.
    """
    if isinstance(img_size, (list, tuple)):
        check(len(img_size) == 2 and img_size[0] == img_size[1],
              f"img_size={tuple(img_size)} is not a square, on which position "
              "embeddings are learned. Images may have any shape without it")
        img_size = img_size[0]
    changed = {"num_classes": num_classes, "in_chans": in_chans, "act": act_layer,
               "image_size": img_size, "stages": stages}
    config = CvTConfig.from_dict({
        **VARIANTS[name].to_dict(), **{k: v for k, v in changed.items() if v is not None}})
    rates: dict[str, Any] = {"drop_rate": drop_rate, "attn_drop_rate": attn_drop_rate}
    built = [dataclasses.replace(stage, **{k: v for k, v in rates.items() if v is not None})
             for stage in config.stages]
    if drop_path_rate is not None:
        for i in [i for i, stage in enumerate(built) if stage.drop_path_rate] or [-1]:
            built[i] = dataclasses.replace(built[i], drop_path_rate=drop_path_rate)
    return dataclasses.replace(config, stages=tuple(built))


def global_pool(config: CvTConfig) -> str:
    """The pooling of the network in timm's terms: its class token, else the mean of its tokens."""
    return "token" if config.stages[-1].cls_token else "avg"


def _nearest(config: CvTConfig) -> tuple[str, dict[str, Any]]:
    """A variant, and the arguments of `build_config` that turn it into `config`."""
    dims = [stage.dim for stage in config.stages]
    names = [name for name, variant in VARIANTS.items() if variant.stages == config.stages]
    name = names[0] if names else min(
        VARIANTS, key=lambda n: [s.dim for s in VARIANTS[n].stages] != dims)
    variant = VARIANTS[name]
    args: dict[str, Any] = {}
    if config.in_chans != 3:
        args["in_chans"] = config.in_chans
    if config.act != variant.act:
        args["act_layer"] = config.act
    if config.image_size != variant.image_size:
        args["img_size"] = config.image_size
    if config.stages != variant.stages:
        args["stages"] = [dataclasses.asdict(stage) for stage in config.stages]
    return name, args
