"""What a recipe comes to on a dataset: images in, network, optimiser and loss."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from timm.utils import ModelEmaV3
from torch import nn

from cvt.data.augment import training_transform
from cvt.data.dataset import subset
from cvt.data.fingerprint import differences
from cvt.data.load import load_dataset
from cvt.data.loader import TrainLoader
from cvt.data.randomness import seed_all
from cvt.data.unreadable import UnreadableImages
from cvt.model import CvT
from cvt.networks.build import build_network
from cvt.system.errors import InputError
from cvt.train.engine import Engine
from cvt.train.identity import identity
from cvt.train.loss import Loss
from cvt.train.optim import build_optimizer
from cvt.train.recipe import Recipe
from cvt.train.start import freeze, put_weights, starting_point
from cvt.train.state import Progress, Weights
from cvt.weights.card import ModelCard
from cvt.weights.load import LoadReport


class Setting:
    """What a recipe comes to on a dataset; refuses what cannot be trained.

    begun: a run that has checkpoints, and needs the weights that it started from no more.
    """

    def __init__(self, recipe: Recipe, engine: Engine, begun: Path | None = None) -> None:
        dataset = load_dataset(recipe.data)
        if recipe.max_train_samples:
            dataset = dataclasses.replace(dataset, train=subset(
                dataset.train, recipe.max_train_samples, recipe.data.split_seed))
        self.recipe, self.dataset, self.engine = recipe, dataset, engine
        self.card, self.checkpoint = starting_point(recipe, dataset) if begun is None else (
            ModelCard.load(begun), None)
        self.pipeline = training_transform(self.card.preprocess, recipe.augment)
        self.loader = TrainLoader(dataset.train, self.pipeline,
                                  batch_size=recipe.batch_size, seed=recipe.seed,
                                  workers=recipe.data.workers, rank=engine.rank,
                                  world=engine.world, passes=recipe.passes,
                                  repeats=recipe.augment.repeats,
                                  balanced=recipe.sampling == "balanced",
                                  max_unreadable=recipe.data.max_unreadable)
        self.unreadable = UnreadableImages(dataset.val, recipe.data.max_unreadable)
        self.loss = Loss(recipe, self.card, dataset.train)
        self.epochs, self.steps = self.length(Progress())
        self.identity: dict[str, Any] = {}
        """What decides the run, which its checkpoints hold, once `identify` took it."""

    def identify(self) -> None:
        """Take the `identity` of the run, from the images as they are now. Raises InputError where
        the processes see different ones."""
        own = identity(self.recipe, self.card, self.dataset, len(self.loader), self.loss.teacher)
        data = [own["data"], *self.engine.gathered(own["data"])]
        other = next((rank for rank, seen in enumerate(data[1:]) if seen != data[0]), None)
        if (other := self.engine.agreed(other)) is not None:
            what = differences(data[0], data[1 + other]) if self.engine.main else ()
            raise InputError(f"process {other} sees other images in {self.recipe.data.root} than "
                             "the main process" + (f": {'; '.join(what)}" if what else "")
                             + "; give all the same copy")
        self.identity = own

    @property
    def at_a_time(self) -> int:
        """Images that a process passes the network at a time, in training and in validation."""
        return max(1, self.recipe.batch_size // self.engine.world // self.engine.parts)

    def length(self, progress: Progress) -> tuple[int, int]:
        """Epochs and optimiser steps of the whole run, of which `progress` is done.

        An epoch is what a pass over the images of today takes, whatever earlier ones took.
        """
        recipe, done, batches = self.recipe, len(progress.history), len(self.loader)
        before = progress.step - progress.epoch_step
        if recipe.steps is not None:
            return done + math.ceil((recipe.steps - before) / batches), recipe.steps
        return recipe.epochs, before + (recipe.epochs - done) * batches

    def build(self) -> tuple[Weights, LoadReport | None]:
        """The tensors to train, on the engine, and what was done to load them."""
        recipe, engine = self.recipe, self.engine
        seed_all(recipe.seed)
        model = build_network(self.card)
        started: LoadReport | None = None
        frozen: Sequence[nn.Module] = ()
        if isinstance(model, CvT):  # the others start from nothing, and nothing of them is frozen
            started = put_weights(model, self.checkpoint) if self.checkpoint else None
            frozen = freeze(model, recipe.freeze)
        model.to(engine.device)
        ema = ModelEmaV3(model, decay=recipe.ema, use_warmup=True) if recipe.ema else None
        optimizer = build_optimizer(model, recipe.optim)
        engine.prepare(model, optimizer, self.loss, len(self.card.classes), frozen)
        return Weights(model=model, ema=ema, optimizer=optimizer), started
