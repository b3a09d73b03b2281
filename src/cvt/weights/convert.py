"""Convert a checkpoint from any format to any other, with a README.md for the hub."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from torch import Tensor

from cvt.config import VARIANTS, Act, CvTConfig
from cvt.model import CvT
from cvt.system.errors import InputError
from cvt.system.files import replace_file
from cvt.system.schema import write_mapping
from cvt.system.text import utf8
from cvt.weights import huggingface, timm
from cvt.weights.card import CONFIG, ModelCard
from cvt.weights.checkpoint import build
from cvt.weights.find import Part
from cvt.weights.load import LoadReport, is_finite
from cvt.weights.models import open_checkpoint
from cvt.weights.names import FROM_NATIVE, Naming, rename
from cvt.weights.official import to_official_yaml
from cvt.weights.tensors import BEST, SAFETENSORS, SUFFIXES, WEIGHT_FILES, write_tensors
from cvt.zoo import ZOO

Format = Literal["native", "official", "huggingface", "timm"]
Dtype = Literal["fp32", "fp16"]

README = "README.md"

_Content = Mapping[str, Any] | str | None  # of a JSON or YAML file, of a text, of the weights


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """Result of `convert`."""

    written: tuple[Path, ...]
    """Files written."""
    report: LoadReport
    """How the source was loaded, strictly."""
    notes: tuple[str, ...]
    """What the new format cannot express, and what differs for its users."""


def convert(source: str | Path, destination: str | Path, to: Format, *, model: str | None = None,
            act: Act | None = None, dtype: Dtype = "fp32", overwrite: bool = False,
            key: str | None = None, prefix: str | None = None, ignore: Collection[str] = ()
            ) -> Conversion:
    """Convert the weights of `source` to the format `to`; values are unchanged bit for bit.

    source: a tag, `hf-hub:org/name`, a directory or a file in any format. destination: a new
    directory; for "official" a file ending in .pth, .pt, .bin or .safetensors, next to which an
    experiment file of the official code (.yaml) is written. model: tag, variant or configuration
    file of a bare file of weights, if its shapes are ambiguous. act: activation that the weights
    were trained with, if the source does not say. dtype: "fp16" rounds to float16 and halves the
    size; it loads as float32. overwrite: replace existing files. key, prefix, ignore: which part of
    the source, as in `create_model`. Raises InputError if the weights
    do not fit, if the format cannot express the network, if values are too large for float16, and
    if files exist without `overwrite`.
    """
    if model is not None and not Path(source).is_file():
        raise InputError(f"{source} defines its own network; model={model!r} is only for a bare "
                         "file of weights")
    checkpoint = open_checkpoint(source, model=model, act=act,
                                 part=Part(key=key, prefix=prefix, ignore=ignore))
    network, report = build(checkpoint)
    card = checkpoint.card
    directory, files = _contents(card, Path(destination), to, tag=checkpoint.tag)
    _check_destination(directory, files, to, overwrite)
    notes: list[str] = []
    tensors = network.state_dict()
    if dtype == "fp16":
        tensors = {name: _halved(name, tensor) for name, tensor in tensors.items()}
        rounded = {name: t.to(network.state_dict()[name].dtype) for name, t in tensors.items()}
        notes.append("values were rounded to float16: "
                     + _difference(network, network.config, rounded, card))
    # The activation that the code of the format computes.
    theirs: Act = "gelu" if to == "huggingface" else "quick_gelu"
    if to in ("official", "huggingface") and card.model.act != theirs:
        words = {"gelu": "GELU", "quick_gelu": "QuickGELU"}
        code = "transformers" if to == "huggingface" else "the official code"
        notes.append(f"{code} will compute {words[theirs]}, but these weights were trained with "
                     f"{words[card.model.act]}: " + _difference(
                         network, dataclasses.replace(network.config, act=theirs),
                         network.state_dict(), card))
    if to == "huggingface" and card.preprocess.channels != 3:
        notes.append("the image processors of transformers always make three channels, so no "
                     f"{huggingface.PREPROCESSOR} was written")
    if to != "official" and card.classes and not checkpoint.has_class_names:
        notes.append("the source does not name its classes, so they are numbered")
    directory.mkdir(parents=True, exist_ok=True)
    for path, content in files.items():
        if content is None:
            naming: Naming = "native" if to == "timm" else to
            write_tensors({rename(name, FROM_NATIVE[naming]): tensor
                           for name, tensor in tensors.items()}, path)
        elif isinstance(content, str):
            replace_file(path, partial(Path.write_text, data=utf8(content), encoding="utf-8"))
        else:
            write_mapping(content, path)
    return Conversion(written=tuple(files), report=report, notes=tuple(notes))


def _contents(card: ModelCard, place: Path, to: Format, *, tag: str | None
              ) -> tuple[Path, dict[Path, _Content]]:
    """The directory to write to and the content of its files; None stands for the weights, which
    are written last."""
    if to == "official":
        if place.suffix not in SUFFIXES or place.is_dir():
            raise InputError(f"{place} cannot be an official checkpoint, which is one file; use a "
                             f"name ending in {', '.join(SUFFIXES)}")
        spec = to_official_yaml(card.model, card.preprocess.size)
        return place.parent, {place.with_suffix(".yaml"): spec, place: None}
    if place.exists() and not place.is_dir():
        raise InputError(f"{place} is a file; --to {to} writes a directory")
    readme: dict[Path, _Content] = {place / README: model_readme(card, to, name=place.name,
                                                                 tag=tag)}
    if to == "native":
        return place, {**readme, place / CONFIG: card.to_dict(), place / BEST: None}
    if to == "timm":
        return place, {**readme, place / CONFIG: timm.config_json(card), place / SAFETENSORS: None}
    preprocessor = huggingface.preprocessor_json(card.preprocess)
    extra: dict[Path, _Content] = (
        {place / huggingface.PREPROCESSOR: preprocessor} if preprocessor else {})
    return place, {**readme, place / CONFIG: huggingface.config_json(card), **extra,
                   place / SAFETENSORS: None}


def _check_destination(directory: Path, files: Collection[Path], to: Format, overwrite: bool
                       ) -> None:
    existing = [path for path in files if path.exists()]
    if existing and not overwrite:
        raise InputError(f"{existing[0]} already exists; give another destination, or --overwrite")
    # Files of another format next to the new ones might be loaded instead of them.
    others = [] if to == "official" else [
        path for name in (*WEIGHT_FILES, huggingface.PREPROCESSOR)
        if (path := directory / name) not in files and path.exists()]
    if others:
        raise InputError(f"{others[0]} is of a model in another format, which would be mixed with "
                         "this one; give another destination")


def _halved(name: str, tensor: Tensor) -> Tensor:
    """`tensor` in float16, if it is a floating-point tensor."""
    if not tensor.is_floating_point():
        return tensor
    half = tensor.half()
    if not is_finite(half):
        raise InputError(f"{name} reaches {tensor.abs().max().item():.3g}, and the maximum of "
                         "float16 is 65504; keep these weights in fp32")
    return half


def _difference(network: CvT, config: CvTConfig, tensors: Mapping[str, Tensor], card: ModelCard
                ) -> str:
    """How far the logits of another configuration or other weights are from those of `network`."""
    with torch.device("meta"):
        other = CvT(config)
    other.load_state_dict(tensors, assign=True)
    side = min(card.preprocess.size, 224)
    # White noise with ImageNet's statistics: the same sample on every machine.
    images = torch.randn(1, card.model.in_chans, side, side,
                         generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        logits, changed = network(images), other.eval()(images)
    return (f"on a sample its logits differ by up to {(logits - changed).abs().max().item():.2g} "
            f"(the largest is {logits.abs().max().item():.2g})")


_USAGE = {
    "native": """import cvt

model, card = cvt.load_model("{name}")""",
    "huggingface": """from transformers import pipeline

classify = pipeline("image-classification", "{name}")
print(classify("photo.jpg"))""",
    "timm": """import timm
import cvt.weights.timm_models  # registers the architecture

model = timm.create_model("local-dir:{name}", pretrained=True)""",
}
_LIBRARY = {"native": "cvt-torch", "huggingface": "transformers", "timm": "timm"}


def model_readme(card: ModelCard, to: Literal["native", "huggingface", "timm"], *, name: str,
                 tag: str | None = None) -> str:
    """README.md of a directory of weights: a model card for the Hugging Face hub.

    name: of the directory, for the example code. tag: of the zoo; without it the card leaves the
    origin and the license of the weights open.
    """
    config, p = card.model, card.preprocess
    row = ZOO[tag] if tag else None
    variant = next((name for name, v in VARIANTS.items()
                    if [(s.dim, s.depth) for s in v.stages]
                    == [(s.dim, s.depth) for s in config.stages]), "CvT")
    header: dict[str, object] = {
        **({"license": row.license} if row else {}), "library_name": _LIBRARY[to],
        "pipeline_tag": "image-classification" if card.classes else "image-feature-extraction",
        "tags": ["vision", "cvt", *(["image-classification"] if card.classes else []),
                 *(["timm"] if to == "timm" else [])],
        **({"datasets": sorted(row.trained_on)} if row else {})}
    resize = (f"squashed to {p.size}x{p.size}" if p.mode == "squash" else
              f"short side resized to {p.resize}, centre crop of {p.size}x{p.size}")
    mean, std = (", ".join(f"{v:.4g}" for v in values) for values in (p.mean, p.std))
    origin = (f"`{tag}`, {'microsoft' if row.repo else 'trained with the recipe of this package'}"
              if row else "trained with this package or converted by it; state the data and the "
                          "license here")
    rows = {
        "network": f"{variant}, {len(config.stages)} stages of dims "
                   f"{', '.join(str(s.dim) for s in config.stages)} and depths "
                   f"{', '.join(str(s.depth) for s in config.stages)}",
        "weights": origin,
        "activation": "QuickGELU, x sigmoid(1.702 x)" if config.act == "quick_gelu" else "GELU",
        "input": f"{config.in_chans} channels, {resize}, {p.interpolation}, mean {mean}, std {std}",
        "classes": f"{config.num_classes:,}" if card.classes else "none: features",
    }
    table = "\n".join(f"| {key} | {text} |" for key, text in rows.items())
    note = ("\n\nNote: transformers computes GELU whatever the weights were trained with, so its "
            "logits differ from the official ones."
            if to == "huggingface" and config.act == "quick_gelu" else "")
    return (f"---\n{yaml.safe_dump(header, sort_keys=False)}---\n\n"
            f"# {tag or variant}\n\n"
            "A Convolutional vision Transformer ([Wu et al., ICCV 2021]"
            "(https://arxiv.org/abs/2103.15808)).\n\n"
            f"| | |\n|---|---|\n{table}\n\n"
            f"```python\n{_USAGE[to].format(name=name)}\n```{note}\n")
