"""A checkpoint from any format to any other."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from cvt.config import Act, CvTConfig
from cvt.model import CvT
from cvt.system.errors import InputError
from cvt.system.files import replace_file
from cvt.system.schema import write_mapping
from cvt.weights import huggingface, timm
from cvt.weights.card import CONFIG, ModelCard
from cvt.weights.checkpoint import build
from cvt.weights.load import LoadReport, is_finite
from cvt.weights.models import open_checkpoint
from cvt.weights.names import FROM_NATIVE, Names, rename
from cvt.weights.native import BEST, WEIGHTS
from cvt.weights.readme import model_readme
from cvt.weights.tensors import SUFFIXES, write_tensors
from cvt.zoo import ZOO

Format = Literal["native", "official", "huggingface", "timm"]
Dtype = Literal["fp32", "fp16"]

README = "README.md"

_Content = Mapping[str, Any] | str | None  # of a JSON or YAML file, of a text, of the weights


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """What `convert` wrote."""

    written: tuple[Path, ...]
    """The files."""
    report: LoadReport
    """What was read: every tensor fitted the network."""
    notes: tuple[str, ...]
    """What the new format cannot say or its users will see differ."""


def convert(source: str | Path, destination: str | Path, to: Format, *, model: str | None = None,
            act: Act | None = None, dtype: Dtype = "fp32", overwrite: bool = False) -> Conversion:
    """Write the weights of `source` in the format `to`; every value stays bit for bit.

    source: a tag, `hf-hub:org/name`, a directory or a file in any format. destination: a new
    directory; for "official" a file ending in .pth, .pt, .bin or .safetensors, beside which an
    experiment file of the official code (.yaml) is written. model: the tag, variant or
    configuration file that a bare file is of, where its shapes do not tell. act: what the weights
    were trained with, where the source does not say. dtype: "fp16" rounds to float16, half the
    bytes; whatever reads it here makes float32 of it again. Raises InputError where something does
    not fit, where the format cannot express the network, where values are too large for float16,
    and where files would be replaced without `overwrite`.
    """
    if model is not None and not Path(source).is_file():
        raise InputError(f"{source} says itself what its weights are of; model={model!r} is for a "
                         "bare file of weights")
    checkpoint = open_checkpoint(source, model=model, act=act)
    network, report = build(checkpoint)  # strict: every weight has its place
    card = checkpoint.card
    directory, files = _contents(card, Path(destination), to, tag=checkpoint.tag)
    _check_place(directory, files, to, overwrite)
    notes: list[str] = []
    tensors = network.state_dict()
    if dtype == "fp16":
        tensors = {name: _halved(name, tensor) for name, tensor in tensors.items()}
        notes.append(_rounding(network, card, tensors))
    if to in ("official", "huggingface"):
        notes += _difference(network, card, to)
    if to == "huggingface" and card.preprocess.channels != 3:
        notes.append("the image processors of transformers make three channels, so no "
                     f"{huggingface.PREPROCESSOR} was written")
    if to != "official" and card.classes and not checkpoint.named:
        notes.append("the source does not name its classes, so they are called by their numbers")
    directory.mkdir(parents=True, exist_ok=True)
    for path, content in files.items():
        if content is None:
            write_tensors(_named(tensors, to), path)
        elif isinstance(content, str):
            _write_text(path, content)
        else:
            write_mapping(content, path)
    return Conversion(written=tuple(files), report=report, notes=tuple(notes))


def _contents(card: ModelCard, place: Path, to: Format, *, tag: str | None
              ) -> tuple[Path, dict[Path, _Content]]:
    """The directory to write to and the content of every file in it; None stands for the weights.

    The weights come last: what they need is then there.
    """
    if to == "official":
        if place.suffix not in SUFFIXES or place.is_dir():
            raise InputError(f"{place} cannot be an official checkpoint, which is one file; end it "
                             f"in {', '.join(SUFFIXES)}")
        spec = card.model.to_official_yaml(card.preprocess.size)
        return place.parent, {place.with_suffix(".yaml"): spec, place: None}
    if place.exists() and not place.is_dir():
        raise InputError(f"{place} is a file; --to {to} writes a directory")
    row = ZOO[tag] if tag else None
    text = model_readme(card, to, place=place.name) if row is None else model_readme(
        card, to, place=place.name, tag=tag, trained_on=row.trained_on, licence=row.licence,
        whose="microsoft's" if row.repo else "trained by this package's recipe")
    readme: dict[Path, _Content] = {place / README: text}
    if to == "native":
        return place, {**readme, place / CONFIG: card.to_dict(), place / BEST: None}
    if to == "timm":
        return place, {**readme, place / CONFIG: timm.config_json(card),
                       place / timm.WEIGHTS: None}
    preprocessor = huggingface.preprocessor_json(card.preprocess)
    extra: dict[Path, _Content] = (
        {place / huggingface.PREPROCESSOR: preprocessor} if preprocessor else {})
    return place, {**readme, place / CONFIG: huggingface.config_json(card), **extra,
                   place / huggingface.WEIGHTS: None}


def _check_place(directory: Path, files: Collection[Path], to: Format, overwrite: bool) -> None:
    there = [path for path in files if path.exists()]
    if there and not overwrite:
        raise InputError(f"{there[0]} is there already; give another place, or --overwrite")
    # Left beside the new files, those of another format might be read in their place.
    others = [] if to == "official" else [
        path for name in (*WEIGHTS, huggingface.PREPROCESSOR)
        if (path := directory / name) not in files and path.exists()]
    if others:
        raise InputError(f"{others[0]} is of a model in another format, which would be mixed up "
                         "with this one; give another place")


def _named(tensors: dict[str, Tensor], to: Format) -> dict[str, Tensor]:
    names: Names = "native" if to == "timm" else to
    return {rename(name, FROM_NATIVE[names]): tensor for name, tensor in tensors.items()}


def _difference(network: CvT, card: ModelCard, to: Literal["official", "huggingface"]
                ) -> list[str]:
    """A line on the activation that the format's own code computes, if it is not the weights'."""
    theirs: Act = "gelu" if to == "huggingface" else "quick_gelu"
    ours = card.model.act
    if ours == theirs:
        return []
    other = _built(dataclasses.replace(network.config, act=theirs), network.state_dict())
    words = {"gelu": "GELU", "quick_gelu": "QuickGELU"}
    who = "transformers" if to == "huggingface" else "the official code"
    return [f"{who} will compute {words[theirs]} where these weights were trained with "
            f"{words[ours]}: {_on_a_sample(network, other, card)}"]


def _halved(name: str, tensor: Tensor) -> Tensor:
    """`tensor` in float16, if it holds floating-point numbers."""
    if not tensor.is_floating_point():
        return tensor
    half = tensor.half()
    if not is_finite(half):
        raise InputError(f"{name} reaches {tensor.abs().max().item():.3g}, and float16 ends at "
                         "65504; leave these weights in fp32")
    return half


def _rounding(network: CvT, card: ModelCard, halves: dict[str, Tensor]) -> str:
    """A line on what float16 costs."""
    rounded = {name: half.to(network.state_dict()[name].dtype) for name, half in halves.items()}
    other = _built(network.config, rounded)
    return f"values were rounded to float16: {_on_a_sample(network, other, card)}"


def _built(config: CvTConfig, tensors: dict[str, Tensor]) -> CvT:
    with torch.device("meta"):
        model = CvT(config)
    model.load_state_dict(tensors, assign=True)
    return model.eval()


def _on_a_sample(network: CvT, other: CvT, card: ModelCard) -> str:
    """How far the logits of `other` are from those of `network`."""
    side = min(card.preprocess.size, 224)
    # White noise of ImageNet's statistics: the same sample wherever it is measured.
    images = torch.randn(1, card.model.in_chans, side, side,
                         generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        right, wrong = network(images), other(images)
    return (f"on a sample its logits differ by up to {(right - wrong).abs().max().item():.2g} (the "
            f"largest is {right.abs().max().item():.2g})")


def _write_text(path: Path, text: str) -> None:
    replace_file(path, lambda part: part.write_text(text, encoding="utf-8"))
