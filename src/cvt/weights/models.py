"""Any model by its name: a variant, a tag of the zoo, a path or `hf-hub:org/name`."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from cvt.config import VARIANTS, Act, CvTConfig
from cvt.model import CvT
from cvt.system.errors import InputError, did_you_mean
from cvt.weights.card import CONFIG, ModelCard, find_config
from cvt.weights.checkpoint import Checkpoint, build, read_card, read_checkpoint
from cvt.weights.hub import fetch
from cvt.zoo import ZOO, imagenet_classes, list_models, shipped

HUB = "hf-hub:"


def create_model(name: str, *, weights: str | Path | None = None, num_classes: int | None = None,
                 in_chans: int | None = None, act: Act | None = None) -> CvT:
    """A model in evaluation mode: a variant untrained, or with weights.

    name: a variant, a tag, or a configuration file. weights: a tag, a file, a directory of this
    package, transformers or timm, or `hf-hub:org/name[@revision]`; by default those of the tag,
    for a variant none. The network is that of the weights, or a configuration file's where one is
    given, but for classes, channels and activation. num_classes: another number puts a new head on,
    the weights' own number keeps theirs, whatever its classes; 0 takes it away. in_chans: another
    number fits the first convolution. act: instead of what the weights were trained with. What was
    done stands in the model's `load_report`. Raises InputError for an unknown name, for weights of
    another network, and where they cannot be had.
    """
    variant = ZOO[name].variant if name in ZOO else name
    if variant not in VARIANTS and Path(variant).suffix not in (".json", ".yaml", ".yml"):
        raise InputError(f"there is no model {name!r}; {did_you_mean(name, list_models())}")
    config = find_config(variant)
    if weights is None and name not in ZOO:
        return CvT(dataclasses.replace(
            config, num_classes=config.num_classes if num_classes is None else num_classes,
            in_chans=in_chans or config.in_chans, act=act or config.act)).eval()
    checkpoint = open_checkpoint(name if weights is None else weights, model=name, act=act)
    found = checkpoint.card.model
    if [(s.dim, s.depth) for s in found.stages] != [(s.dim, s.depth) for s in config.stages]:
        theirs = next((v for v, c in VARIANTS.items() if c.stages == found.stages), "another CvT")
        raise InputError(f"{weights} holds weights of {theirs}, not of {variant}; create that one")
    if variant not in VARIANTS:  # a file says more than a name does
        network = dataclasses.replace(config, num_classes=found.num_classes,
                                      in_chans=found.in_chans, act=found.act)
        checkpoint = dataclasses.replace(
            checkpoint, card=dataclasses.replace(checkpoint.card, model=network))
    return _build(checkpoint, num_classes, in_chans)


def load_model(source: str | Path, *, act: Act | None = None) -> tuple[CvT, ModelCard]:
    """A trained model in evaluation mode, and its card: preprocessing and class names.

    source: what `create_model` takes as weights, such as a directory that `cvt train` wrote, or
    one file in it. Raises InputError where something is missing, damaged or does not fit together.
    """
    checkpoint = open_checkpoint(source, act=act)
    return _build(checkpoint, None, None), checkpoint.card


def open_checkpoint(source: str | Path, *, model: str | None = None, act: Act | None = None
                    ) -> Checkpoint:
    """The weights and the card that `source` stands for, in any format.

    source: a tag, `hf-hub:org/name[@revision]`, a directory or a file. model: the tag, the variant
    or the configuration file that a bare file of weights is of, where its shapes do not tell.
    Raises InputError where there is nothing of that name, and for what cannot be read.
    """
    text = str(source)
    if text in ZOO:
        row = ZOO[text]
        return _open_tag(text, shipped(text) or fetch(str(row.repo), row.revision), act)
    if text.startswith(HUB):
        repo, _, revision = text.removeprefix(HUB).partition("@")
        directory = fetch(repo, revision or "main")
        tag = next((tag for tag, row in ZOO.items() if row.repo == repo), None)
        return _open_tag(tag, directory, act) if tag else read_checkpoint(directory, act=act)
    path = Path(source)
    if not path.exists() and "/" not in text and not path.suffix:
        raise InputError(f"{text!r} is neither a path nor a tag; "
                         f"{did_you_mean(text, ZOO)}" if text.startswith("cvt_") else
                         f"no model at {text}; give a directory that `cvt train --output` wrote, a "
                         "tag of `cvt zoo`, or hf-hub:org/name")
    # The official files say in their names what they are.
    tag = model if model in ZOO else next((t for t, row in ZOO.items() if row.file == path.name),
                                          None)
    if tag and path.is_file():
        return _open_tag(tag, path, act)
    bare = path.is_file() and model is not None and not (path.parent / CONFIG).is_file()
    return read_checkpoint(path, config=model if bare else None, act=act)


def _open_tag(tag: str, path: Path, act: Act | None) -> Checkpoint:
    row = ZOO[tag]
    network = dataclasses.replace(config_of(tag), act=act or row.act)
    checkpoint = read_checkpoint(path, config=network)
    found = checkpoint.card.model
    home = shipped(tag)
    classes = ModelCard.load(home).classes if home else imagenet_classes()
    named = found.num_classes == len(classes)
    card = ModelCard(model=found, preprocess=row.preprocess.with_channels(found.in_chans),
                     classes=classes if named else checkpoint.card.classes)
    return dataclasses.replace(checkpoint, card=card, tag=tag, named=named)


def _build(checkpoint: Checkpoint, num_classes: int | None, in_chans: int | None) -> CvT:
    model, report = build(checkpoint, num_classes=num_classes, in_chans=in_chans)
    model.load_report = report
    return model


def config_of(name: str) -> CvTConfig:
    """The network of anything that has a name here, without its weights.

    name: a tag, a variant, a configuration file, or the directory of a model in any format. Raises
    InputError where it is none of these.
    """
    if (home := shipped(name)) is not None:
        return ModelCard.load(home).model
    if name in ZOO:
        return dataclasses.replace(VARIANTS[ZOO[name].variant], image_size=ZOO[name].size)
    if (Path(name) / CONFIG).is_file():
        return read_card(Path(name))[0].model
    return find_config(name)
