"""Learning rate range test: increase it at every step and record the loss (Smith, 2017)."""

from __future__ import annotations

import contextlib
import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from cvt.system.errors import InputError
from cvt.system.files import replace_file
from cvt.train.engine import Engine
from cvt.train.recipe import Recipe
from cvt.train.setup import Setup

PLOT, TABLE = "lr_finder.png", "lr_finder.csv"
MIN_LR, MAX_LR = 1e-6, 1.0
_STEPS = 100
_SMOOTHING = 0.9  # decay of the moving average of the loss
_DIVERGED = 3.0  # times the minimum loss, at which the test ends


@dataclass(frozen=True, kw_only=True)
class LearningRateResult:
    """The losses of a range test and the learning rates that they suggest."""

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    """Smoothed training loss at each rate, in nats."""
    steepest: float
    """Learning rate at which the loss falls fastest: a value to try."""
    min_loss: float
    """Learning rate of the minimum loss, near which training becomes unstable."""


def find_learning_rate(recipe: Recipe, output: Path) -> LearningRateResult | None:
    """Train with a learning rate that increases from 1e-6 to 1, until the loss diverges.

    Writes lr_finder.png and lr_finder.csv to `output`. Batches, augmentation and loss are the
    recipe's. Returns None in all processes but the main one. Raises InputError if the loss never
    falls.
    """
    with Engine(recipe) as engine:
        rates, losses = _range_test(Setup(recipe, engine))
        if not engine.main:
            return None
    result = suggest(rates, losses)
    output.mkdir(parents=True, exist_ok=True)
    replace_file(output / TABLE, lambda part: _write_table(result, part))
    replace_file(output / PLOT, lambda part: _plot(result, recipe, part))
    return result


def _range_test(setup: Setup) -> tuple[list[float], list[float]]:
    rates: list[float] = []
    losses: list[float] = []
    setup.engine.train_mode()
    with contextlib.closing(setup.batches()) as batches:
        for i, batch in enumerate(islice(batches, _STEPS)):
            rate = MIN_LR * (MAX_LR / MIN_LR) ** (i / (_STEPS - 1))
            done = setup.engine.step(batch, rate, i)
            if not done.updated or (losses and done.loss > _DIVERGED * min(losses)):
                break
            rates.append(rate)
            losses.append(done.loss)
    return rates, losses


def suggest(rates: Sequence[float], losses: Sequence[float]) -> LearningRateResult:
    """Smooth the losses and find where they fall fastest. Raises InputError if they do not fall."""
    mean, smooth = 0.0, []
    for i, loss in enumerate(losses, 1):
        mean = _SMOOTHING * mean + (1 - _SMOOTHING) * loss
        smooth.append(mean / (1 - _SMOOTHING**i))
    if len(smooth) < 10 or (lowest := int(np.argmin(smooth))) < 5:
        raise InputError(f"the loss does not fall at any learning rate from {MIN_LR:g} on; check "
                         "the data, or start from other weights")
    slope = np.gradient(np.array(smooth), np.log(rates))
    steepest = int(slope[:lowest + 1].argmin())
    return LearningRateResult(rates=tuple(rates), losses=tuple(smooth),
                              steepest=_round(rates[steepest]), min_loss=_round(rates[lowest]))


def _round(rate: float) -> float:
    """To a multiple of half of its leading decimal unit: the test is no more precise."""
    unit = 10.0 ** math.floor(math.log10(rate))
    return float(f"{round(2 * rate / unit) / 2 * unit:.2g}")


def _write_table(result: LearningRateResult, path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(
            [("lr", "loss"), *zip(result.rates, result.losses, strict=True)])


def _plot(result: LearningRateResult, recipe: Recipe, path: Path) -> None:
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(result.rates, result.losses, color="#2f6fb0")
    axes.set_xscale("log")
    axes.set_xlabel("learning rate")
    axes.set_ylabel("training loss, smoothed (nats)")
    axes.set_title(f"{recipe.name} on {recipe.data.name}, batch {recipe.batch_size}",
                   loc="left", parse_math=False)
    for rate, label, color in ((result.steepest, "steepest", "#2f6fb0"),
                               (result.min_loss, "minimum loss", "#de6830")):
        axes.axvline(rate, color=color, linestyle=":", label=f"{label}: {rate:g}")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150, format="png")
