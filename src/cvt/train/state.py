"""A run on disk and in memory: the names of its files, how far it is, what a checkpoint holds."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from cvt.data.unreadable import UNREADABLE
from cvt.evaluate.run import EVALUATION, METRICS, RECIPE, REPORT
from cvt.system.errors import InputError, one_line
from cvt.train.store import Checkpoint
from cvt.weights.card import CONFIG
from cvt.weights.tensors import BEST

LAST = "last.safetensors"
CHECKPOINTS = "checkpoints"
CSV = "metrics.csv"
JSONL = "metrics.jsonl"
TENSORBOARD = "tensorboard"
DIVERGED = "diverged"
LOCK = ".lock"


@dataclass(kw_only=True)
class Progress:
    """How far a run is; plain values, so that JSON keeps them bit for bit."""

    step: int = 0
    """Optimiser steps that are done, skipped ones included."""
    epoch_step: int = 0
    """Those of them that belong to the epoch in hand."""
    redraws: list[int] = field(default_factory=list)
    """Steps of this epoch to which the run went back, each time with the rest drawn anew."""
    notes: list[str] = field(default_factory=list)
    """What a reader of the figures must know: that the run went back, or on with other images."""
    history: list[dict[str, float]] = field(default_factory=list)
    """A row a finished epoch; what the log and the curves show."""
    loss: float = 0.0
    """Sum of the losses of this epoch's steps."""
    losses: int = 0
    """How many those are: a skipped batch has none."""
    seconds: float = 0.0
    """Spent on this epoch by earlier processes."""
    skipped: int = 0
    """Batches skipped since the last checkpoint, for loss or gradient were not finite."""
    parts: int = 1
    """In how many parts a process computes its share of a batch."""
    best: dict[str, Any] = field(default_factory=dict)
    """Step and SHA-256 of best.safetensors."""
    scaler: dict[str, float] = field(default_factory=dict)
    """The gradient scaler's, in fp16."""

    def begin_epoch(self) -> None:
        """The next step is the first of an epoch."""
        self.epoch_step, self.redraws = 0, []
        self.loss, self.losses, self.seconds = 0.0, 0, 0.0


@dataclass(frozen=True, kw_only=True)
class Weights:
    """The tensors that training moves."""

    model: nn.Module
    ema: ModelEmaV3 | None
    optimizer: torch.optim.Optimizer

    @property
    def kept(self) -> nn.Module:
        """What is evaluated and written: the moving average, where there is one."""
        return self.model if self.ema is None else self.ema.module

    def checkpoint(self, progress: Progress, identity: Mapping[str, Any]) -> Checkpoint:
        """All that a run needs to go on from here, and what it was begun with."""
        saved = self.optimizer.state_dict()
        moments = {f"{index}.{name}": value for index, state in saved["state"].items()
                   for name, value in state.items()}
        plain = {name: value for name, value in moments.items() if not isinstance(value, Tensor)}
        tensors: dict[str, Mapping[str, Tensor]] = {
            "model": self.model.state_dict(),
            "optimizer": {name: v for name, v in moments.items() if name not in plain}}
        if self.ema is not None:
            tensors["ema"] = self.ema.module.state_dict()
        return Checkpoint(step=progress.step, tensors=tensors, state={
            "progress": dataclasses.asdict(progress), "optimizer": plain,
            "groups": saved["param_groups"], "identity": identity})

    def restore(self, checkpoint: Checkpoint) -> None:
        """Put back what `checkpoint` gave. Raises InputError where it is of another network."""
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
        except (RuntimeError, LookupError, ValueError, TypeError) as error:
            raise InputError(f"the checkpoint of step {checkpoint.step} is not of this run: "
                             f"{one_line(error)}") from None


def open_run(run: Path, overwrite: bool) -> FileLock:
    """Make the directory of a new run; its lock. Raises InputError where one is there already."""
    if run.exists() and not run.is_dir():
        raise InputError(f"--output {run} is a file; give a directory")
    there = _files(run)
    if there and not overwrite:
        raise InputError(f"{run} already holds a run ({there[0].name}); continue it with --resume "
                         f"{run}, replace it with --overwrite, or give another --output")
    run.mkdir(parents=True, exist_ok=True)
    lock = lock_run(run)
    for path in there:
        _remove(path)
    _remove(run / DIVERGED)
    return lock


def lock_run(run: Path) -> FileLock:
    """Hold the run for this process, until it ends. Raises InputError where another holds it."""
    lock = FileLock(run / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise InputError(f"another process trains in {run}; wait for it or end it, or give another "
                         "--output") from None
    return lock


def clear_run(run: Path) -> None:
    """Take away what a run wrote, but for a batch that it failed on, and an empty directory."""
    for path in (*_files(run), run / LOCK):
        _remove(path)
    if run.is_dir() and not any(run.iterdir()):
        run.rmdir()


def _files(run: Path) -> list[Path]:
    names = (CHECKPOINTS, CONFIG, BEST, LAST, RECIPE, METRICS, REPORT, CSV, JSONL, TENSORBOARD,
             EVALUATION, UNREADABLE)
    return [run / name for name in names if (run / name).exists()]


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
