"""The training state that checkpoints save, and the identity of the run that they belong to."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from cvt.data.dataset import Dataset
from cvt.data.fingerprint import differences, fingerprint, hash_parts
from cvt.evaluate.run import RECIPE
from cvt.system.errors import InputError, one_line
from cvt.train.checkpoints import TrainingCheckpoint
from cvt.train.directory import LAST
from cvt.train.recipe import LENGTH, MACHINE, PLACES, Recipe
from cvt.weights.card import CONFIG, ModelCard

_DATA = ("data.", "max_train_samples")  # prefixes of the options that select the images


@dataclass(kw_only=True)
class Progress:
    """Counters and history of a run: plain values, which JSON preserves bit for bit."""

    step: int = 0
    """Optimiser steps done, including skipped ones."""
    epoch_step: int = 0
    """Those in the current epoch."""
    reshuffles: list[int] = field(default_factory=list)
    """Steps of the current epoch to which the run was rolled back; after each, the rest of the
    epoch was reshuffled."""
    notes: list[str] = field(default_factory=list)
    """Events that matter for the metrics: a rollback, or other images than at the start."""
    history: list[dict[str, float]] = field(default_factory=list)
    """One row of metrics for each finished epoch."""
    loss: float = 0.0
    """Sum of the step losses of the current epoch."""
    losses: int = 0
    """Number of terms in that sum; skipped batches have none."""
    seconds: float = 0.0
    """Time spent on the current epoch."""
    skipped: int = 0
    """Batches skipped since the last checkpoint because loss or gradient were not finite."""
    accum_steps: int = 1
    """Micro-batches in which a process computes its share of a batch."""
    best: dict[str, Any] = field(default_factory=dict)
    """Step and SHA-256 of best.safetensors."""
    scaler: dict[str, float] = field(default_factory=dict)
    """State of the fp16 gradient scaler."""

    def begin_epoch(self) -> None:
        """Reset what belongs to the current epoch."""
        self.epoch_step, self.reshuffles = 0, []
        self.loss, self.losses, self.seconds = 0.0, 0, 0.0


@dataclass(kw_only=True)
class TrainingState:
    """All that training changes: weights, their moving average, the optimiser, the progress."""

    model: nn.Module
    ema: ModelEmaV3 | None
    optimizer: torch.optim.Optimizer
    progress: Progress = field(default_factory=Progress)

    @property
    def eval_model(self) -> nn.Module:
        """The model that is evaluated and saved: the moving average if there is one."""
        return self.model if self.ema is None else self.ema.module

    def checkpoint(self, identity: Mapping[str, Any]) -> TrainingCheckpoint:
        """A checkpoint of this state, of the run with this `identity`."""
        saved = self.optimizer.state_dict()
        moments = {f"{index}.{name}": value for index, state in saved["state"].items()
                   for name, value in state.items()}
        plain = {name: value for name, value in moments.items() if not isinstance(value, Tensor)}
        tensors: dict[str, Mapping[str, Tensor]] = {
            "model": self.model.state_dict(),
            "optimizer": {name: v for name, v in moments.items() if name not in plain}}
        if self.ema is not None:
            tensors["ema"] = self.ema.module.state_dict()
        return TrainingCheckpoint(step=self.progress.step, tensors=tensors, state={
            "progress": dataclasses.asdict(self.progress), "optimizer": plain,
            "groups": saved["param_groups"], "identity": identity})

    def restore(self, checkpoint: TrainingCheckpoint) -> None:
        """Load what `checkpoint` returned. Raises InputError if it is of another network."""
        state: dict[int, dict[str, Any]] = {}
        try:
            self.model.load_state_dict(checkpoint.tensors["model"])
            if self.ema is not None:
                self.ema.module.load_state_dict(checkpoint.tensors["ema"])
            for name, value in (*checkpoint.tensors["optimizer"].items(),
                                *checkpoint.state["optimizer"].items()):
                index, _, key = name.partition(".")
                state.setdefault(int(index), {})[key] = value
            self.optimizer.load_state_dict({"state": state, "param_groups": [
                {**group, "betas": tuple(group["betas"])} if "betas" in group else group
                for group in checkpoint.state["groups"]]})
            self.progress = Progress(**checkpoint.state["progress"])
        except (RuntimeError, LookupError, ValueError, TypeError) as error:
            raise InputError(f"the checkpoint of step {checkpoint.step} does not belong to this "
                             f"run: {one_line(error)}") from None


def run_identity(recipe: Recipe, card: ModelCard, dataset: Dataset, batches: int,
                 teacher: nn.Module | None) -> dict[str, Any]:
    """All that determines the result of a run, as plain data that a checkpoint holds.

    batches: per epoch. teacher: of distillation.
    """
    tensors = {} if teacher is None else teacher.state_dict()
    return json.loads(json.dumps({  # as a checkpoint returns it
        "recipe": recipe.flat(), "card": card.to_dict(), "data": fingerprint(dataset),
        "batches": batches, "teacher": hash_parts(
            tensor.detach().cpu().numpy().tobytes() for tensor in tensors.values())}))


def compare_identity(before: Mapping[str, Any], now: Mapping[str, Any], run: Path, *,
                     accept_data_changes: bool) -> list[str]:
    """The differences of the data, each in a few words; empty unless they are accepted.

    Raises InputError for any other difference, except in the length and execution of the run. Of
    files, the contents are compared and not the paths.
    """
    recipe = {name: f"{name}={value!r} in {RECIPE}, was {before['recipe'].get(name)!r}"
              for name, value in now["recipe"].items()
              if name not in LENGTH | MACHINE | PLACES and before["recipe"].get(name) != value}
    other = [words for name, words in recipe.items() if not name.startswith(_DATA)]
    data = [words for name, words in recipe.items() if name.startswith(_DATA)]
    if before["data"]["classes"] != now["data"]["classes"]:
        other += differences(before["data"], now["data"])[:1]
    elif before["card"] != now["card"] and not other:
        part = next(key for key in now["card"] if before["card"].get(key) != now["card"][key])
        other = [f"the {part} in {CONFIG}, or in the file that it comes from, has changed"]
    if before["teacher"] != now["teacher"] and not other:
        other = [f"the weights of distill.teacher={now['recipe']['distill.teacher']}"]
    if other:
        raise InputError(
            f"the run in {run} cannot be resumed: {'; '.join(other)}. Undo that, or start another "
            f"run from its weights: --weights {run / LAST} --output DIR")
    data += differences(before["data"], now["data"])
    if before["batches"] != now["batches"] and not data:
        data = [f"an epoch has {now['batches']} steps, had {before['batches']}"]
    if data and not accept_data_changes:
        raise InputError(
            f"the run in {run} cannot be resumed exactly, the data have changed: "
            f"{'; '.join(data)}. Restore them, or continue with the changed data by cvt train "
            f"--resume {run} --accept-data-changes, which restarts the current epoch")
    return data
