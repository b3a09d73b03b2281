"""Read a checkpoint in any format: native tensors, and the card to build the model."""

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
from cvt.weights.names import Naming
from cvt.weights.tensors import SUFFIXES, WEIGHT_FILES, read_tensors


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Weights, and everything needed to build their model."""

    path: Path
    """File of the weights."""
    format: Naming
    """Naming scheme in the file."""
    renamed: int
    """Number of names in the file that differ from the native ones."""
    card: ModelCard
    """Network, preprocessing and classes."""
    tensors: Mapping[str, Tensor]
    """Parameters and buffers under native names."""
    notes: tuple[str, ...] = ()
    """Assumptions where the checkpoint is incomplete."""
    tag: str | None = None
    """Tag of the zoo, for weights of the zoo."""
    has_class_names: bool = True
    """Whether the checkpoint names its classes; otherwise the card has numbers as names."""
    head_rows: tuple[int, ...] | None = None
    """Rows of the head to load, in order; empty for a new head, None for the head as it is."""


def read_checkpoint(path: str | Path, *, config: str | CvTConfig | None = None,
                    act: Act | None = None) -> Checkpoint:
    """Read a directory of this package, transformers or timm, or one file of weights.

    The card of a file is that of its directory. Without one, the network is given by the experiment
    file of the same name (.yaml), else recognized from the shapes. `config` (a configuration, a
    variant or a configuration file) and `act` override both. Raises InputError for a missing,
    corrupt or unknown file.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"no model at {path}; give a directory written by `cvt train --output`, a "
                         "directory of transformers or timm, or a file of weights")
    weights = _weights_in(path) if path.is_dir() else path
    has_card = (weights.parent / CONFIG).is_file()
    data = read_mapping(weights.parent / CONFIG) if has_card else {}
    if (network := data.get("network", "cvt")) != "cvt":
        raise InputError(f"{weights.parent} contains a {network}, a baseline or a supernet and not "
                         "a CvT; its metrics are in metrics.json and report.html")
    tensors, renamed, naming = to_native(read_tensors(weights), weights)
    notes: list[str] = []
    if naming == "huggingface" and not {"norm.weight", "norm.bias"} & set(tensors):
        last = max((n for n in tensors if n.endswith(".norm2.bias")), default="",
                   key=lambda name: int(name.split(".")[1]))
        if last:
            tensors |= {"norm.weight": torch.ones_like(tensors[last]),
                        "norm.bias": torch.zeros_like(tensors[last])}
        notes.append("a CvtModel of transformers has no final norm; a new one was added")
    if config is None and has_card:
        card, note = read_card(weights.parent, data, headless="head.weight" not in tensors)
        notes += [note] if note and act is None else []
    elif config is None and path.is_dir():
        raise InputError(f"{path} has no {CONFIG}, which describes the network; give it with "
                         "--model, or give the file of weights itself")
    else:
        if config is None and weights.with_suffix(".yaml").is_file():  # written by `convert`
            config = str(weights.with_suffix(".yaml"))
        model = find_config(config) if isinstance(config, str) else config
        card = _bare_card(model or _recognize(tensors, weights), tensors)
    if act is not None:
        card = dataclasses.replace(card, model=dataclasses.replace(card.model, act=act))
        notes.append(f"act={act} is used, as requested")
    return Checkpoint(path=weights, format=naming, renamed=renamed, card=card, tensors=tensors,
                      notes=tuple(notes),
                      has_class_names=config is None and has_card and _names_classes(data))


def _names_classes(data: Mapping[str, Any]) -> bool:
    """Whether a config.json has class names other than the defaults of transformers."""
    if data.get("model_type") == "cvt":
        names = data.get("id2label")
        return isinstance(names, Mapping) and any(name != f"LABEL_{i}" for i, name in names.items())
    if "architecture" in data:
        cfg = data.get("pretrained_cfg") or data
        return bool(data.get("label_names") or cfg.get("label_names"))
    return True


def build(checkpoint: Checkpoint, *, num_classes: int | None = None, in_chans: int | None = None
          ) -> tuple[CvT, LoadReport]:
    """Build the model in evaluation mode and load its weights, with a report.

    Another number of classes gives a new head, another number of channels an adapted first
    convolution; everything else is strict. Tensors are used without a copy. Raises InputError if
    they do not fit.
    """
    config = checkpoint.card.model
    target = dataclasses.replace(
        config, num_classes=config.num_classes if num_classes is None else num_classes,
        in_chans=in_chans or config.in_chans)
    adapt: list[Adapt] = ["head"] if target.num_classes != config.num_classes else []
    if target.in_chans != config.in_chans:
        adapt.append("in_chans")
    notes = checkpoint.notes
    if num_classes and num_classes == config.num_classes:
        notes = (*notes, f"num_classes={num_classes} equals that of the checkpoint, so its head is "
                 "kept; reset_classifier makes a new one for other classes")
    blocks = sum(stage.depth for stage in config.stages)
    if blocks > len(checkpoint.tensors):  # before building an untrusted configuration
        raise InputError(f"{checkpoint.path} has {len(checkpoint.tensors)} tensors, too few for "
                         f"the {blocks} blocks of its configuration")
    with torch.device("meta"):
        model = CvT(target)
    tensors, report = fit(model, checkpoint.tensors, checkpoint.path, adapt=adapt,
                          format=checkpoint.format, renamed=checkpoint.renamed,
                          notes=notes, head_rows=checkpoint.head_rows)
    model.load_state_dict(_unshared(tensors), strict=False, assign=True)
    if report.missing:
        model.reset_classifier(target.num_classes)
    return model.eval(), report


def _unshared(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, with a copy of those that share memory with another."""
    seen: set[int] = set()
    unshared = {}
    for name, tensor in tensors.items():
        shared = tensor.data_ptr() in seen and tensor.numel() > 0
        seen.add(tensor.data_ptr())
        unshared[name] = tensor.clone() if shared or not tensor.is_contiguous() else tensor
    return unshared


def _weights_in(directory: Path) -> Path:
    for name in WEIGHT_FILES:
        if (directory / name).is_file():
            return directory / name
    files = sorted(p for p in directory.iterdir() if p.suffix in SUFFIXES and p.is_file())
    if len(files) == 1:
        return files[0]
    if files:
        raise InputError(f"{directory} has {len(files)} files of weights ({files[0].name}, ...); "
                         "give one of the files")
    raise InputError(f"{directory} has no weights, such as {WEIGHT_FILES[0]} or {WEIGHT_FILES[1]}")


def read_card(directory: Path, data: Mapping[str, Any], *, headless: bool = False
              ) -> tuple[ModelCard, str | None]:
    """The card of a directory with the config.json `data`, and a note on its assumptions.

    headless: the weights have no classifier; transformers names classes even then. Raises
    InputError for an unknown kind of directory.
    """
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


def _bare_card(config: CvTConfig, tensors: Mapping[str, Tensor]) -> ModelCard:
    """A card for weights without one: numbered classes, preprocessing as in the paper.

    The numbers of classes and channels are those of `tensors`.
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


def _recognize(tensors: Mapping[str, Tensor], path: Path) -> CvTConfig:
    """The variant with the dims, depths and kernels of the tensors."""
    stages: list[tuple[int, int, int]] = []
    while ((conv := tensors.get(f"stages.{len(stages)}.embed.conv.weight")) is not None
           and conv.ndim == 4):
        prefix = f"stages.{len(stages)}.blocks."
        blocks = {name.removeprefix(prefix).split(".")[0] for name in tensors
                  if name.startswith(prefix)}
        stages.append((conv.shape[0], len(blocks), conv.shape[2]))
    for config in VARIANTS.values():
        if stages == [(s.dim, s.depth, s.embed_kernel) for s in config.stages]:
            return config
    raise InputError(f"{path} is of no known variant ({', '.join(VARIANTS)}); give its "
                     "configuration or official YAML with --model FILE")
