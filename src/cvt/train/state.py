"""A run on disk: the names of its files, and the state from which it goes on."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cvt.atomic import replace_file
from cvt.card import CONFIG
from cvt.errors import InputError
from cvt.evaluate.run import EVALUATION, METRICS, RECIPE, REPORT
from cvt.weights.native import BEST
from cvt.weights.tensors import read_pickled

LAST = "last.safetensors"
STATE = "state.pt"
CSV = "metrics.csv"
JSONL = "metrics.jsonl"
TENSORBOARD = "tensorboard"


@dataclass(kw_only=True)
class State:
    """What a run needs, beside its recipe, to go on after the epochs in `history`."""

    model: dict[str, torch.Tensor]
    ema: dict[str, torch.Tensor] | None
    optimizer: dict[str, Any]
    history: list[dict[str, float]]
    """A row an epoch; what the log and the curves show."""

    def save(self, run: Path) -> None:
        """Write the state; the one before stays until this one is whole."""
        replace_file(run / STATE, lambda part: torch.save(vars(self), part))

    @classmethod
    def load(cls, run: Path) -> State:
        """Read the state of a run. Raises InputError where there is none or it is damaged."""
        if not (run / STATE).is_file():
            raise InputError(f"{run} has no {STATE} to go on from; give the --output of a run that "
                             "finished at least one epoch")
        data = read_pickled(run / STATE)
        try:
            return cls(**data)
        except TypeError:
            raise InputError(f"{run / STATE} is not the state of a training run") from None


def open_run(run: Path, overwrite: bool) -> None:
    """Make the directory of a new run. Raises InputError where one is there, unless `overwrite`."""
    if run.exists() and not run.is_dir():
        raise InputError(f"--output {run} is a file; give a directory")
    there = _files(run)
    if there and not overwrite:
        raise InputError(f"{run} already holds a run ({there[0].name}); continue it with --resume "
                         f"{run}, replace it with --overwrite, or give another --output")
    clear_run(run)
    run.mkdir(parents=True, exist_ok=True)


def clear_run(run: Path) -> None:
    """Take away what a run wrote, and its directory if nothing else is in it."""
    for path in _files(run):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    if run.is_dir() and not any(run.iterdir()):
        run.rmdir()


def _files(run: Path) -> list[Path]:
    names = (STATE, CONFIG, BEST, LAST, RECIPE, METRICS, REPORT, CSV, JSONL, TENSORBOARD,
             EVALUATION)
    return [run / name for name in names if (run / name).exists()]
