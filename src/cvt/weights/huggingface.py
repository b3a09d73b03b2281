"""The directories of transformers: config.json of model_type "cvt", preprocessor_config.json.

The port's forward pass is not the official one: it computes GELU, whatever the weights were trained
with. Its config.json has no key for it, so ours adds one, `trained_act`, which the port ignores.
Source: transformers 5.23, models/cvt and models/convnext.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cvt.config import MOST, Act, CvTConfig, Preprocess, StageConfig
from cvt.system.errors import InputError
from cvt.system.schema import check, from_mapping, read_mapping
from cvt.weights.card import ModelCard

PREPROCESSOR = "preprocessor_config.json"
WEIGHTS = "model.safetensors"

# Key of config.json -> our field; a list of one entry a stage.
_STAGE_KEYS = {
    "patch_sizes": "embed_kernel", "patch_stride": "embed_stride", "patch_padding": "embed_padding",
    "embed_dim": "dim", "num_heads": "num_heads", "depth": "depth", "mlp_ratio": "mlp_ratio",
    "attention_drop_rate": "attn_drop_rate", "drop_rate": "drop_rate",
    "drop_path_rate": "drop_path_rate", "qkv_bias": "qkv_bias", "cls_token": "cls_token",
    "kernel_qkv": "kernel", "padding_kv": "padding_kv", "stride_kv": "stride_kv",
}
# What the port assumes where config.json leaves a key out: CvT-13.
_DEFAULTS: Mapping[str, list[Any]] = {
    "patch_sizes": [7, 3, 3], "patch_stride": [4, 2, 2], "patch_padding": [2, 1, 1],
    "embed_dim": [64, 192, 384], "num_heads": [1, 3, 6], "depth": [1, 2, 10],
    "mlp_ratio": [4.0] * 3, "attention_drop_rate": [0.0] * 3, "drop_rate": [0.0] * 3,
    "drop_path_rate": [0.0, 0.0, 0.1], "qkv_bias": [True] * 3, "cls_token": [False, False, True],
    "kernel_qkv": [3] * 3, "padding_kv": [1] * 3, "stride_kv": [2] * 3,
    "qkv_projection_method": ["dw_bn"] * 3,
}
_FLOATS = ("mlp_ratio", "attention_drop_rate", "drop_rate", "drop_path_rate")
_RESAMPLE = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3}  # Pillow's numbers


def read_card(directory: Path, data: Mapping[str, Any]) -> tuple[ModelCard, str | None]:
    """The card of a directory whose config.json holds `data`, and a note on its activation.

    Weights of whom it is not known otherwise were trained with the port, so with GELU. Raises
    InputError for a value that cannot be read.
    """
    where = directory / "config.json"
    values = {key: data.get(key, default) for key, default in _DEFAULTS.items()}
    depth = values["depth"]
    for key, value in (("depth", depth), *values.items()):
        if not isinstance(value, list) or len(value) != len(depth):
            raise InputError(f"{where} says {key}={value!r}, which is not a list of one entry for "
                             "each stage")
    if any(method != "dw_bn" for method in values["qkv_projection_method"]):
        raise InputError(f"{where} says qkv_projection_method={values['qkv_projection_method']!r}; "
                         "the port itself can run 'dw_bn' alone")
    stages = []
    for i in range(len(depth)):
        fields = {ours: values[key][i] for key, ours in _STAGE_KEYS.items()}
        stages.append(from_mapping(StageConfig, fields, f"stage {i + 1} of {where}"))
    classes = _classes(data, where)
    act, note = _act(data)
    in_chans = data.get("num_channels", 3)
    check(type(in_chans) is int and 1 <= in_chans <= MOST,
          f"{where} says num_channels={in_chans!r}, which is not a number of channels")
    preprocess = read_preprocess(directory).with_channels(in_chans)
    model = CvTConfig(stages=tuple(stages), in_chans=in_chans,
                      num_classes=len(classes), act=act, image_size=preprocess.size)
    return ModelCard(model=model, preprocess=preprocess, classes=classes), note


def _act(data: Mapping[str, Any]) -> tuple[Act, str | None]:
    trained = data.get("trained_act")
    if trained == "quick_gelu" and "transformers_version" not in data:
        return "quick_gelu", None
    if trained == "quick_gelu":
        return "gelu", ("transformers wrote this directory anew, so its weights may have been "
                        "trained on with GELU, which is used; act='quick_gelu' if they were not")
    return "gelu", ("weights of the port in transformers were trained with GELU, which is used; "
                    "act='quick_gelu' for microsoft's own")


def _classes(data: Mapping[str, Any], where: Path) -> tuple[str, ...]:
    names = data.get("id2label")
    if names is None:
        count = data.get("num_labels", 2)
        check(isinstance(count, int) and 0 <= count <= 10 * MOST,
              f"{where} says num_labels={count!r}, which is not a number of classes")
        return tuple(f"LABEL_{i}" for i in range(count))
    try:
        return tuple(str(names[str(i)]) for i in range(len(names)))
    except (KeyError, TypeError):
        raise InputError(f"{where} has an id2label whose keys are not 0 to n - 1") from None


def read_preprocess(directory: Path) -> Preprocess:
    """What preprocessor_config.json says; the port's own for 224 pixels where it is absent.

    The ConvNext way (below 384 the centre of an image resized to size / crop_pct, else squashed),
    or the ViT way (squashed), or CLIP's and BiT's (short side resized, centre cut).
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
        told = {key: data[key] for key in ("size", "crop_size", "resample", "image_mean",
                                           "image_std") if key in data}
        raise InputError(f"{path} says {str(told)[:200]}, which cannot be read; write size as "
                         '{"shortest_edge": 224}, mean and std as lists of numbers, resample as '
                         f"{', '.join(f'{n} ({name})' for n, name in sorted(names.items()))}"
                         ) from None
    return from_mapping(Preprocess, fields, str(path))


def _side(size: Any) -> int:
    if isinstance(size, Mapping):
        size = size["shortest_edge"] if "shortest_edge" in size else size["height"]
    return int(size)


def config_json(card: ModelCard) -> dict[str, Any]:
    """The content of config.json. Raises InputError for what the port cannot run."""
    stages = card.model.stages
    tokens = [stage.cls_token for stage in stages]
    problems = [
        ("pos_embed", any(stage.pos_embed for stage in stages), "has no position embedding"),
        ("projection", any(stage.projection != "conv" for stage in stages),
         "runs no projection but 'conv'"),
        ("cls_token", tokens != [False] * (len(stages) - 1) + [True],
         "needs a class token in the last stage and none before"),
        ("stride_kv or mlp_ratio", not all(stage.uniform for stage in stages),
         "has blocks of one kind in a stage"),
        # It counts stochastic depth's rates of a stage's blocks by the number of the stage.
        ("depth", any(stage.depth <= i for i, stage in enumerate(stages)),
         "needs at least one block in the first stage, two in the second, three in the third"),
    ]
    for key, wrong, why in problems:
        if wrong:
            raise InputError(f"transformers' CvT {why}, which this model's {key} does not fit; "
                             "choose --to native, which keeps every network")
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
    """The content of preprocessor_config.json; None for gray, which its processors cannot make."""
    if preprocess.channels != 3:
        return None
    shared = {"do_resize": True, "do_rescale": True, "do_normalize": True,
              "rescale_factor": 1 / 255, "resample": _RESAMPLE[preprocess.interpolation],
              "image_mean": list(preprocess.mean), "image_std": list(preprocess.std)}
    size = preprocess.size
    if (preprocess.mode == "squash") == (size >= 384):  # the ConvNext way, the hub's own for CvT
        return {"image_processor_type": "ConvNextImageProcessor", **shared,
                "size": {"shortest_edge": size}, "crop_pct": preprocess.crop}
    if preprocess.mode == "squash":
        return {"image_processor_type": "ViTImageProcessor", **shared,
                "size": {"height": size, "width": size}}
    return {"image_processor_type": "BitImageProcessor", **shared, "do_center_crop": True,
            "size": {"shortest_edge": preprocess.resize},
            "crop_size": {"height": size, "width": size}}


