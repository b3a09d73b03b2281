"""Create, load and save models, by variant, tag, path or `hf-hub:org/name`."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from cvt.config import VARIANTS, Act, CvTConfig, Preprocess
from cvt.model import CvT
from cvt.system.errors import InputError, did_you_mean
from cvt.system.schema import read_mapping
from cvt.weights.card import CONFIG, ModelCard, find_config
from cvt.weights.checkpoint import Checkpoint, build, read_card, read_checkpoint
from cvt.weights.hub import fetch
from cvt.weights.tensors import BEST, write_tensors
from cvt.zoo import ZOO, imagenet_classes, list_models, shipped

HUB = "hf-hub:"


def create_model(name: str, *, weights: str | Path | None = None, num_classes: int | None = None,
                 in_chans: int | None = None, act: Act | None = None) -> CvT:
    """Create a model in evaluation mode: an untrained variant, or one with weights.

    name: a variant, a tag, or a configuration file. weights: a tag, a file, a directory of this
    package, transformers or timm, or `hf-hub:org/name[@revision]`; by default those of the tag, and
    none for a variant. num_classes: a number different from the weights' gives a new head, 0 none;
    with the same number their head is kept, even if the classes differ. in_chans: another number
    adapts the first convolution. act: overrides the activation of the weights. The `load_report` of
    the model says what was loaded. Raises InputError for an unknown name, and for weights that are
    not available or of another network.
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
    own = checkpoint.card.model
    if [(s.dim, s.depth) for s in own.stages] != [(s.dim, s.depth) for s in config.stages]:
        other = next((v for v, c in VARIANTS.items() if c.stages == own.stages), "another CvT")
        raise InputError(f"{weights} has weights of {other}, not of {variant}; create that one")
    if variant not in VARIANTS:  # the file describes more than dims and depths
        network = dataclasses.replace(config, num_classes=own.num_classes, in_chans=own.in_chans,
                                      act=own.act)
        checkpoint = dataclasses.replace(
            checkpoint, card=dataclasses.replace(checkpoint.card, model=network))
    return _build(checkpoint, num_classes, in_chans)


def load_model(source: str | Path, *, act: Act | None = None) -> tuple[CvT, ModelCard]:
    """Load a trained model in evaluation mode, and its card with preprocessing and class names.

    source: as `weights` of `create_model`, such as a directory written by `cvt train`, or a file in
    it. Raises InputError for missing, corrupt or inconsistent files.
    """
    checkpoint = open_checkpoint(source, act=act)
    return _build(checkpoint, None, None), checkpoint.card


def save_model(directory: str | Path, model: CvT, preprocess: Preprocess,
               classes: tuple[str, ...]) -> None:
    """Save `model` as config.json and best.safetensors in `directory`, created if needed.

    classes: names in the order of the logits. `load_model` restores it bit for bit. Raises OSError
    if the directory cannot be written.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    ModelCard(model=model.config, preprocess=preprocess, classes=classes).save(directory)
    write_tensors(model.state_dict(), directory / BEST)


def open_checkpoint(source: str | Path, *, model: str | None = None, act: Act | None = None
                    ) -> Checkpoint:
    """The weights and the card of `source`, in any format.

    source: a tag, `hf-hub:org/name[@revision]`, a directory or a file. model: tag, variant or
    configuration file of a bare file of weights, if its shapes are ambiguous. Raises InputError if
    the source does not exist or cannot be read.
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
                         f"no model at {text}; give a directory written by `cvt train --output`, a "
                         "tag of `cvt zoo`, or hf-hub:org/name")
    # The file names of the official release are unique.
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
    own = checkpoint.card.model
    home = shipped(tag)
    classes = ModelCard.load(home).classes if home else imagenet_classes()
    named = own.num_classes == len(classes)
    card = ModelCard(model=own, preprocess=row.preprocess.with_channels(own.in_chans),
                     classes=classes if named else checkpoint.card.classes)
    return dataclasses.replace(checkpoint, card=card, tag=tag, has_class_names=named)


def _build(checkpoint: Checkpoint, num_classes: int | None, in_chans: int | None) -> CvT:
    model, report = build(checkpoint, num_classes=num_classes, in_chans=in_chans)
    model.load_report = report
    return model


def config_of(name: str) -> CvTConfig:
    """Configuration of a tag, a variant, a configuration file or a directory of a model in any
    format, without its weights. Raises InputError for any other name."""
    if (home := shipped(name)) is not None:
        return ModelCard.load(home).model
    if name in ZOO:
        return dataclasses.replace(VARIANTS[ZOO[name].variant], image_size=ZOO[name].size)
    if (config := Path(name) / CONFIG).is_file():
        return read_card(Path(name), read_mapping(config))[0].model
    return find_config(name)
