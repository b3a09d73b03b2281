"""A checkpoint in any format: the weights under our names, and the card that rebuilds the model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cvt.config import VARIANTS, Act, CvTConfig, imagenet_preprocess
from cvt.model import CvT
from cvt.system.errors import InputError
from cvt.system.schema import read_mapping
from cvt.weights import huggingface, timm
from cvt.weights.card import CONFIG, ModelCard, find_config
from cvt.weights.load import Adapt, LoadReport, fit, to_native
from cvt.weights.names import Names
from cvt.weights.native import WEIGHTS
from cvt.weights.tensors import SUFFIXES, read_tensors


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Weights and what rebuilds their model."""

    path: Path
    """The file of the weights."""
    names: Names
    """In whose names the file has them."""
    renamed: int
    """How many of its names are not ours."""
    card: ModelCard
    """Network, preprocessing and classes."""
    tensors: Mapping[str, Tensor]
    """Parameters and buffers under our names."""
    notes: tuple[str, ...] = ()
    """What was decided where the checkpoint does not say."""
    tag: str | None = None
    """The zoo's name of the weights, if they are the zoo's."""
    named: bool = True
    """Whether it names its classes itself; else the card has numbers in place of names."""
    head: tuple[int, ...] | None = None
    """The rows of its head to load, in order; empty for a new head, None for as it stands."""


def read_checkpoint(path: str | Path, *, config: str | CvTConfig | None = None,
                    act: Act | None = None) -> Checkpoint:
    """Read a directory of this package, transformers or timm, or one file of weights.

    A file's card is that of its directory; a bare one is known by the experiment file of the same
    name beside it (.yaml), else by its shapes. `config` (a network, a variant or a configuration
    file) is believed instead of either, and `act` instead of any activation. Raises InputError
    where something is missing, damaged or unknown.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"no model at {path}; give a directory that `cvt train --output` wrote, a "
                         "directory of transformers or timm, or a file of weights")
    weights = _weights_in(path) if path.is_dir() else path
    _refuse_baseline(weights.parent)
    found, renamed, names = to_native(read_tensors(weights), weights)
    notes: list[str] = []
    if names == "huggingface" and not {"norm.weight", "norm.bias"} & set(found):
        last = max((n for n in found if n.endswith(".norm2.bias")), default="",
                   key=lambda name: int(name.split(".")[1]))
        if last:
            found |= {"norm.weight": torch.ones_like(found[last]),
                      "norm.bias": torch.zeros_like(found[last])}
        notes.append("it is a CvtModel of transformers, which has no last norm: a new one stands "
                     "in its place")
    by_act, named = None, False
    if config is None and (weights.parent / CONFIG).is_file():
        card, by_act = read_card(weights.parent, headless="head.weight" not in found)
        named = _names_classes(read_mapping(weights.parent / CONFIG))
    elif config is None and path.is_dir():
        raise InputError(f"{path} has no {CONFIG}, which says what its weights are of; name it "
                         "with --model, or give the file of weights itself")
    else:
        if config is None and weights.with_suffix(".yaml").is_file():  # as `convert` writes it
            config = str(weights.with_suffix(".yaml"))
        network = find_config(config) if isinstance(config, str) else config
        card = bare_card(network or _recognise(found, weights), found)
    if act is not None:
        card = dataclasses.replace(card, model=dataclasses.replace(card.model, act=act))
        by_act = f"{act} is computed, as asked"
    notes += [by_act] if by_act else []
    return Checkpoint(path=weights, names=names, renamed=renamed, card=card, tensors=found,
                      notes=tuple(notes), named=named)


def _names_classes(data: Mapping[str, Any]) -> bool:
    """Whether a config.json has names of classes, and not what transformers writes for none."""
    if data.get("model_type") == "cvt":
        names = data.get("id2label")
        return isinstance(names, Mapping) and any(name != f"LABEL_{i}" for i, name in names.items())
    if "architecture" in data:
        cfg = data.get("pretrained_cfg") or data
        return bool(data.get("label_names") or cfg.get("label_names"))
    return True


def _refuse_baseline(directory: Path) -> None:
    if not (directory / CONFIG).is_file():
        return
    network = read_mapping(directory / CONFIG).get("network", "cvt")
    if network != "cvt":
        raise InputError(f"{directory} holds a {network}, which was trained to be compared with a "
                         "CvT, or searched for one; its figures are in metrics.json and "
                         "report.html, and nothing else here computes it")


def build(checkpoint: Checkpoint, *, num_classes: int | None = None, in_chans: int | None = None
          ) -> tuple[CvT, LoadReport]:
    """The checkpoint's model in evaluation mode, and what was done to fit it.

    Another number of classes makes a new head, another of channels an adapted first convolution;
    all else is strict. The tensors are taken over, not copied. Raises InputError where they do not
    fit.
    """
    config = checkpoint.card.model
    wanted = dataclasses.replace(
        config, num_classes=config.num_classes if num_classes is None else num_classes,
        in_chans=in_chans or config.in_chans)
    adapt: list[Adapt] = ["head"] if wanted.num_classes != config.num_classes else []
    if wanted.in_chans != config.in_chans:
        adapt.append("in_chans")
    notes = checkpoint.notes
    if num_classes and num_classes == config.num_classes:
        notes = (*notes, f"num_classes={num_classes} is the checkpoint's own number, so its head "
                 "is kept; reset_classifier makes a new one for other classes")
    blocks = sum(stage.depth for stage in config.stages)
    if blocks > len(checkpoint.tensors):  # before a stranger's configuration is built
        raise InputError(f"{checkpoint.path} holds {len(checkpoint.tensors)} tensors, too few for "
                         f"the {blocks} blocks of its configuration")
    with torch.device("meta"):
        model = CvT(wanted)
    tensors, report = fit(model, checkpoint.tensors, checkpoint.path, adapt=adapt,
                          format=checkpoint.names, renamed=checkpoint.renamed,
                          notes=notes, head=checkpoint.head)
    model.load_state_dict(_apart(tensors), strict=False, assign=True)
    if report.left_over:
        model.reset_classifier(wanted.num_classes)
    return model.eval(), report


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, each in memory of its own, for a file may let several share some."""
    seen: set[int] = set()
    apart = {}
    for name, tensor in tensors.items():
        shared = tensor.data_ptr() in seen and tensor.numel() > 0
        seen.add(tensor.data_ptr())
        apart[name] = tensor.clone() if shared or not tensor.is_contiguous() else tensor
    return apart


def _weights_in(directory: Path) -> Path:
    for name in WEIGHTS:
        if (directory / name).is_file():
            return directory / name
    files = sorted(p for p in directory.iterdir() if p.suffix in SUFFIXES and p.is_file())
    if len(files) == 1:
        return files[0]
    if files:
        raise InputError(f"{directory} has {len(files)} files of weights ({files[0].name}, ...); "
                         "name the one that is meant")
    raise InputError(f"{directory} has no weights; put {WEIGHTS[0]} or {WEIGHTS[1]} there")


def read_card(directory: Path, *, headless: bool = False) -> tuple[ModelCard, str | None]:
    """The card that a directory's config.json gives, and a note on what it does not say.

    transformers names classes even where the weights have no classifier, which `headless` says.
    Raises InputError for a directory of nothing that is known here.
    """
    data = read_mapping(directory / CONFIG)
    if data.get("model_type") == "cvt":
        if headless:
            data = {**data, "id2label": {}}
        return huggingface.read_card(directory, data)
    if "architecture" in data:
        return timm.read_card(directory, data), None
    if "model_type" in data:
        raise InputError(f"{directory / CONFIG} is of a {data['model_type']!r} model of "
                         "transformers, not of a CvT")
    return ModelCard.load(directory), None


def bare_card(config: CvTConfig, tensors: Mapping[str, Tensor]) -> ModelCard:
    """A card for weights that come without one: numbered classes, ImageNet's preprocessing.

    Classes and channels are those of `tensors`; at 384 pixels and above images are squashed, as
    in the paper.
    """
    head, first = tensors.get("head.weight"), tensors.get("stages.0.embed.conv.weight")
    num_classes = config.num_classes if head is None else head.shape[0]
    if head is None and "head.bias" not in tensors:
        num_classes = 0
    in_chans = config.in_chans if first is None else first.shape[1]
    return ModelCard(
        model=dataclasses.replace(config, num_classes=num_classes, in_chans=in_chans),
        preprocess=imagenet_preprocess(config.image_size).with_channels(in_chans),
        classes=tuple(map(str, range(num_classes))))


def _recognise(tensors: Mapping[str, Tensor], path: Path) -> CvTConfig:
    """The variant that has these dims and depths."""
    shape = _shape({name: tuple(t.shape) for name, t in tensors.items()})
    for config in VARIANTS.values():
        if shape == [(s.dim, s.depth, s.embed_kernel) for s in config.stages]:
            return config
    raise InputError(f"{path} is of no known variant ({', '.join(VARIANTS)}); give the "
                     "configuration that it was made with: --model FILE, or an official YAML")


def _shape(shapes: Mapping[str, tuple[int, ...]]) -> list[tuple[int, int, int]]:
    stages: list[tuple[int, int, int]] = []
    while (conv := shapes.get(f"stages.{len(stages)}.embed.conv.weight")) and len(conv) == 4:
        prefix = f"stages.{len(stages)}.blocks."
        blocks = {name.removeprefix(prefix).split(".")[0] for name in shapes
                  if name.startswith(prefix)}
        stages.append((conv[0], len(blocks), conv[2]))
    return stages
