"""A recipe on its dataset, resolved once: card, weights, loader, loss, network and optimiser."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Generator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from timm.utils import ModelEmaV3
from torch import nn

from cvt.data.augment import training_transform
from cvt.data.classes import class_order
from cvt.data.dataset import Dataset, subset
from cvt.data.fingerprint import differences
from cvt.data.load import load_dataset
from cvt.data.loader import Batch, TrainLoader
from cvt.data.randomness import seed_all
from cvt.data.unreadable import UnreadableImages
from cvt.model import CvT
from cvt.networks.build import build_network
from cvt.system.errors import InputError
from cvt.train.config import FreezeConfig
from cvt.train.engine import Engine
from cvt.train.loss import Loss
from cvt.train.optim import build_optimizer
from cvt.train.recipe import Recipe
from cvt.train.state import TrainingState, run_identity
from cvt.weights.card import ModelCard, find_config
from cvt.weights.checkpoint import Checkpoint
from cvt.weights.load import LoadReport, fit
from cvt.weights.models import open_checkpoint


class Setup:
    """All parts of a run: dataset, model card, loader, loss and the initial training state.

    identify: set `identity`, which the checkpoints hold; all images are read for it. resumed: the
    directory of a run that has checkpoints, and no longer needs the pretrained weights of its
    recipe. Raises InputError if the recipe cannot be trained.
    """

    def __init__(self, recipe: Recipe, engine: Engine, *, identify: bool = False,
                 resumed: Path | None = None) -> None:
        self.recipe, self.engine = recipe, engine
        dataset = load_dataset(recipe.data)
        if recipe.max_train_samples:
            dataset = dataclasses.replace(dataset, train=subset(
                dataset.train, recipe.max_train_samples, recipe.data.split_seed))
        self.dataset = dataset
        self.card, pretrained = (ModelCard.load(resumed), None) if resumed else (
            resolve_model(recipe, dataset))
        self.loader = TrainLoader(
            dataset.train, training_transform(self.card.preprocess, recipe.augment),
            batch_size=recipe.batch_size, seed=recipe.seed, workers=recipe.data.workers,
            rank=engine.rank, world=engine.world_size, passes=recipe.passes_per_epoch,
            repeats=recipe.augment.repeats, balanced=recipe.sampling == "balanced",
            max_unreadable=recipe.data.max_unreadable)
        self.val_unreadable = UnreadableImages(dataset.val, recipe.data.max_unreadable)
        self.loss = Loss(recipe, self.card, dataset.train)
        # Before the network: it would differ between processes that see different classes.
        self.identity = self._identify() if identify else {}

        seed_all(recipe.seed)
        model = build_network(self.card)
        self.load_report: LoadReport | None = None
        frozen: Sequence[nn.Module] = ()
        if isinstance(model, CvT):  # other networks are neither pretrained nor frozen
            self.load_report = load_pretrained(model, pretrained) if pretrained else None
            frozen = freeze(model, recipe.freeze)
        model.to(engine.device)
        ema = ModelEmaV3(model, decay=recipe.ema, use_warmup=True) if recipe.ema else None
        optimizer = build_optimizer(model, recipe.optim)
        engine.prepare(model, optimizer, self.loss, len(self.card.classes), frozen)
        self.state = TrainingState(model=model, ema=ema, optimizer=optimizer)

    def batches(self) -> Generator[Batch]:
        """Training batches from the first epoch on, without end."""
        for epoch in count():
            yield from self.loader.epoch(epoch)

    def length(self) -> tuple[int, int]:
        """Epochs and optimiser steps of the whole run, including those done.

        The remaining epochs have the length of the current dataset, whatever earlier ones had.
        """
        recipe, progress, batches = self.recipe, self.state.progress, len(self.loader)
        done, before = len(progress.history), progress.step - progress.epoch_step
        if recipe.steps is not None:
            return done + math.ceil((recipe.steps - before) / batches), recipe.steps
        return recipe.epochs, before + (recipe.epochs - done) * batches

    def _identify(self) -> dict[str, Any]:
        """The identity of the run. Raises InputError if the processes see different images."""
        own = run_identity(self.recipe, self.card, self.dataset, len(self.loader),
                           self.loss.teacher)
        data = self.engine.gather(own["data"])
        other = next((rank for rank, seen in enumerate(data) if seen != data[0]), None)
        if (other := self.engine.broadcast(other)) is not None:
            what = differences(data[0], data[other]) if self.engine.main else ()
            raise InputError(f"process {other} sees other images in {self.recipe.data.root} than "
                             "the main process" + (f": {'; '.join(what)}" if what else "")
                             + "; give all processes the same copy")
        return own


def resolve_model(recipe: Recipe, dataset: Dataset) -> tuple[ModelCard, Checkpoint | None]:
    """The card of the network to train, and its pretrained weights, if any.

    Configuration and preprocessing are those of the weights, except for what the recipe sets. Their
    head is kept if its classes are those of the dataset, by name. Raises InputError if the weights
    cannot be read or are of another network than `recipe.model`, or if all stages are frozen and
    the recipe sets an option for trained stages.
    """
    classes = dataset.train.classes
    if recipe.weights is None:
        return recipe.card(classes, dataset.preprocess), None
    checkpoint = open_checkpoint(recipe.weights, model=recipe.model)
    base = checkpoint.card.model
    if recipe.model is not None and [(s.dim, s.depth) for s in base.stages] != [
            (s.dim, s.depth) for s in find_config(recipe.model).stages]:
        raise InputError(f"weights={recipe.weights} are of another network than "
                         f"model={recipe.model}; leave model out to use theirs")
    if recipe.freeze.stages == len(base.stages):
        recipe.check_frozen(f"freeze.stages={recipe.freeze.stages}")
    return (recipe.card(classes, checkpoint.card.preprocess, base),
            _match_head(checkpoint, classes))


def _match_head(checkpoint: Checkpoint, classes: tuple[str, ...]) -> Checkpoint:
    """The checkpoint with the rows of its head for `classes`, and a note on them."""
    known, weight = checkpoint.card.classes, checkpoint.tensors.get("head.weight")
    if weight is None:
        return checkpoint
    order, head = class_order(classes, known), list[int]()
    if not checkpoint.has_class_names or len(weight) != len(known):
        note = "it does not name its classes, so the head is new"
    elif isinstance(order, str):
        note = f"its classes are not the dataset's, such as {order!r}, so the head is new"
    else:
        head, note = order, "its classes are the dataset's, by name, so the head is kept"
    return dataclasses.replace(checkpoint, head_rows=tuple(head), notes=(*checkpoint.notes, note))


def load_pretrained(model: CvT, checkpoint: Checkpoint) -> LoadReport:
    """Load a checkpoint of `resolve_model` into `model`.

    Head, input channels and position embeddings are adapted; raises InputError if anything else
    does not fit.
    """
    tensors, report = fit(model, checkpoint.tensors, checkpoint.path,
                          adapt=("head", "in_chans", "pos_embed"), format=checkpoint.format,
                          renamed=checkpoint.renamed, notes=checkpoint.notes,
                          head_rows=checkpoint.head_rows)
    model.load_state_dict(tensors, strict=False)
    return report


def freeze(model: CvT, config: FreezeConfig) -> Sequence[nn.Module]:
    """Freeze the parts of `config`; returns their modules, which must stay in evaluation mode.

    Raises InputError for more stages than `model` has.
    """
    stages: list[nn.Module] = list(model.stages)
    if config.stages > len(stages):
        raise InputError(f"freeze.stages={config.stages}, and the network has {len(stages)}; "
                         "freeze.backbone freezes all of them")
    frozen: list[nn.Module] = [*stages, model.norm] if config.backbone else stages[:config.stages]
    if config.batchnorm:
        frozen += [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for module in frozen:
        module.requires_grad_(False)
    return frozen
