"""Directories of transformers: config.json of model_type "cvt" and preprocessor_config.json.

The port of CvT in transformers always computes GELU, unlike the official code. Its config.json has
no key for the activation; ours adds one, `trained_act`, which the port ignores.
Source: transformers 5.23, models/cvt and models/convnext.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cvt.config import MAX_DIM, VARIANTS, Act, CvTConfig, Preprocess, StageConfig
from cvt.system.errors import InputError
from cvt.system.schema import check, from_mapping, read_mapping
from cvt.weights.card import ModelCard

PREPROCESSOR = "preprocessor_config.json"

# Key of config.json -> our field, a list with one entry per stage.
_STAGE_KEYS = {
    "patch_sizes": "embed_kernel", "patch_stride": "embed_stride", "patch_padding": "embed_padding",
    "embed_dim": "dim", "num_heads": "num_heads", "depth": "depth", "mlp_ratio": "mlp_ratio",
    "attention_drop_rate": "attn_drop_rate", "drop_rate": "drop_rate",
    "drop_path_rate": "drop_path_rate", "qkv_bias": "qkv_bias", "cls_token": "cls_token",
    "kernel_qkv": "kernel", "padding_kv": "padding_kv", "stride_kv": "stride_kv",
}
_FLOATS = ("mlp_ratio", "attention_drop_rate", "drop_rate", "drop_path_rate")
_RESAMPLE = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3}  # Pillow's numbers


def read_card(directory: Path, data: Mapping[str, Any]) -> tuple[ModelCard, str | None]:
    """The card of a directory with the config.json `data`, and a note on its activation.

    Weights are assumed to be trained with the port, so with GELU, unless `trained_act` says
    otherwise. Raises InputError for an invalid value.
    """
    where = directory / "config.json"
    default = VARIANTS["cvt_13"].stages  # for missing keys, as in transformers
    values = {key: data.get(key, [getattr(stage, ours) for stage in default])
              for key, ours in _STAGE_KEYS.items()}
    values["qkv_projection_method"] = data.get("qkv_projection_method", ["dw_bn"] * 3)
    depth = values["depth"]
    for key, value in (("depth", depth), *values.items()):
        if not isinstance(value, list) or len(value) != len(depth):
            raise InputError(f"{where} has {key}={value!r}, which is not a list of one entry for "
                             "each stage")
    if any(method != "dw_bn" for method in values["qkv_projection_method"]):
        raise InputError(f"{where} has qkv_projection_method={values['qkv_projection_method']!r}; "
                         "transformers supports only 'dw_bn'")
    stages = []
    for i in range(len(depth)):
        fields = {ours: values[key][i] for key, ours in _STAGE_KEYS.items()}
        stages.append(from_mapping(StageConfig, fields, f"stage {i + 1} of {where}"))
    classes = _classes(data, where)
    act, note = _act(data)
    in_chans = data.get("num_channels", 3)
    check(type(in_chans) is int and 1 <= in_chans <= MAX_DIM,
          f"{where} has num_channels={in_chans!r}, which is not a number of channels")
    preprocess = read_preprocess(directory).with_channels(in_chans)
    model = CvTConfig(stages=tuple(stages), in_chans=in_chans,
                      num_classes=len(classes), act=act, image_size=preprocess.size)
    return ModelCard(model=model, preprocess=preprocess, classes=classes), note


def _act(data: Mapping[str, Any]) -> tuple[Act, str | None]:
    trained = data.get("trained_act")
    if trained == "quick_gelu" and "transformers_version" not in data:
        return "quick_gelu", None
    if trained == "quick_gelu":
        return "gelu", ("transformers saved this directory again, so its weights may have been "
                        "fine-tuned with GELU, which is used; act='quick_gelu' if they were not")
    return "gelu", ("GELU is used, as weights from transformers are usually trained with it; use "
                    "act='quick_gelu' for microsoft's own")


def _classes(data: Mapping[str, Any], where: Path) -> tuple[str, ...]:
    names = data.get("id2label")
    if names is None:
        count = data.get("num_labels", 2)
        check(isinstance(count, int) and 0 <= count <= 10 * MAX_DIM,
              f"{where} has num_labels={count!r}, which is not a number of classes")
        return tuple(f"LABEL_{i}" for i in range(count))
    try:
        return tuple(str(names[str(i)]) for i in range(len(names)))
    except (KeyError, TypeError):
        raise InputError(f"{where} has an id2label whose keys are not 0 to n - 1") from None


def read_preprocess(directory: Path) -> Preprocess:
    """Preprocessing of preprocessor_config.json; without one, the defaults for 224 pixels.

    ConvNext processors crop the centre below 384 pixels and squash from there, ViT's squash, CLIP's
    and BiT's crop the centre.
    """
    path = directory / PREPROCESSOR
    if not path.is_file():
        return Preprocess()
    data = read_mapping(path)
    kind = str(data.get("image_processor_type") or data.get("feature_extractor_type") or "ConvNext")
    names = {number: name for name, number in _RESAMPLE.items()}
    fields: dict[str, Any] = {}
    try:
        resample = data.get("resample")
        fields["interpolation"] = "bicubic" if resample is None else names[resample]
        for key, ours in (("image_mean", "mean"), ("image_std", "std")):
            if key in data:
                fields[ours] = tuple(map(float, data[key]))
        if data.get("do_center_crop") and "crop_size" in data:
            size, side = _side(data["crop_size"]), _side(data["size"])
            fields |= {"size": size, "crop": size / side}
        elif kind.startswith("ConvNext"):
            size = _side(data.get("size", 224))
            squash = size >= 384
            fields |= {"size": size, "mode": "squash" if squash else "crop",
                       "crop": 1.0 if squash else data.get("crop_pct", 224 / 256)}
        else:
            fields |= {"size": _side(data["size"]), "mode": "squash", "crop": 1.0}
    except (KeyError, TypeError, ValueError, ArithmeticError):
        values = {key: data[key] for key in ("size", "crop_size", "resample", "image_mean",
                                             "image_std") if key in data}
        raise InputError(f"{path} has {str(values)[:200]}, which cannot be read; write size as "
                         '{"shortest_edge": 224}, mean and std as lists of numbers, resample as '
                         f"{', '.join(f'{n} ({name})' for n, name in sorted(names.items()))}"
                         ) from None
    return from_mapping(Preprocess, fields, str(path))


def _side(size: Any) -> int:
    if isinstance(size, Mapping):
        size = size["shortest_edge"] if "shortest_edge" in size else size["height"]
    return int(size)


def config_json(card: ModelCard) -> dict[str, Any]:
    """Content of config.json. Raises InputError for a network that transformers cannot build."""
    stages = card.model.stages
    tokens = [stage.cls_token for stage in stages]
    problems = [
        ("pos_embed", any(stage.pos_embed for stage in stages), "has no position embedding"),
        ("projection", any(stage.projection != "conv" for stage in stages),
         "supports only the projection 'conv'"),
        ("cls_token", tokens != [False] * (len(stages) - 1) + [True],
         "needs a class token in the last stage and in no other"),
        ("stride_kv or mlp_ratio", not all(stage.uniform for stage in stages),
         "needs equal blocks in a stage"),
        # It indexes the stochastic depth rates of a stage's blocks by the number of the stage.
        ("depth", any(stage.depth <= i for i, stage in enumerate(stages)),
         "needs at least one block in the first stage, two in the second, three in the third"),
    ]
    for key, wrong, why in problems:
        if wrong:
            raise InputError(f"the CvT of transformers {why}, which does not fit {key} of this "
                             "model; use --to native, which supports every network")
    config: dict[str, Any] = {
        "architectures": ["CvtForImageClassification" if card.classes else "CvtModel"],
        "model_type": "cvt", "num_channels": card.model.in_chans,
        **{key: [getattr(stage, ours) for stage in stages] for key, ours in _STAGE_KEYS.items()},
        "qkv_projection_method": ["dw_bn"] * len(stages),
        "padding_q": [stage.kernel // 2 for stage in stages], "stride_q": [1] * len(stages),
        "initializer_range": 0.02, "trained_act": card.model.act, "dtype": "float32",
    }
    if card.classes:
        config["id2label"] = {str(i): name for i, name in enumerate(card.classes)}
        config["label2id"] = {name: i for i, name in enumerate(card.classes)}
    return config | {key: [float(v) for v in config[key]] for key in _FLOATS}


def preprocessor_json(preprocess: Preprocess) -> dict[str, Any] | None:
    """Content of preprocessor_config.json; None for gray, which transformers does not support."""
    if preprocess.channels != 3:
        return None
    shared = {"do_resize": True, "do_rescale": True, "do_normalize": True,
              "rescale_factor": 1 / 255, "resample": _RESAMPLE[preprocess.interpolation],
              "image_mean": list(preprocess.mean), "image_std": list(preprocess.std)}
    size = preprocess.size
    if (preprocess.mode == "squash") == (size >= 384):  # as microsoft's on the hub
        return {"image_processor_type": "ConvNextImageProcessor", **shared,
                "size": {"shortest_edge": size}, "crop_pct": preprocess.crop}
    if preprocess.mode == "squash":
        return {"image_processor_type": "ViTImageProcessor", **shared,
                "size": {"height": size, "width": size}}
    return {"image_processor_type": "BitImageProcessor", **shared, "do_center_crop": True,
            "size": {"shortest_edge": preprocess.resize},
            "crop_size": {"height": size, "width": size}}


