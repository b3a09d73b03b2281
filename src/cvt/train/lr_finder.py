"""Which learning rate? One that rises at every step, and the loss beside it (Smith, 2017)."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from cvt.system.errors import InputError
from cvt.system.files import replace_file
from cvt.train.engine import Engine
from cvt.train.recipe import Recipe
from cvt.train.setting import Setting

PLOT, TABLE = "lr_finder.png", "lr_finder.csv"
LOW, HIGH = 1e-6, 1.0
_STEPS = 100  # from one to the other
_SMOOTH = 0.9  # of the running mean, what is kept at each step
_BLOWN = 3.0  # times the least loss, at which it ends


@dataclass(frozen=True, kw_only=True)
class Found:
    """Learning rates, the loss at each, and what they suggest."""

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    """Smoothed, nats."""
    steepest: float
    """The rate at which the loss falls fastest; what to try for a run."""
    least: float
    """That of the least loss, near which a run is no longer stable."""


def find_learning_rate(recipe: Recipe, output: Path) -> Found | None:
    """Train from the start with a learning rate that rises from 1e-6 to 1, until the loss blows up.

    `output` gets lr_finder.png and lr_finder.csv. The steps take the recipe's batches, augmentation
    and loss. None in all processes but the main one. Raises InputError where the loss never falls.
    """
    with Engine(recipe) as engine:
        setting = Setting(recipe, engine)
        setting.build()
        rates, losses = _ramp(setting)
        if not engine.main:
            return None
    found = suggest(rates, losses)
    output.mkdir(parents=True, exist_ok=True)
    replace_file(output / TABLE, lambda part: part.write_text(_table(found), encoding="utf-8"))
    replace_file(output / PLOT, lambda part: _plot(found, recipe, part))
    return found


def _ramp(setting: Setting) -> tuple[list[float], list[float]]:
    rates: list[float] = []
    losses: list[float] = []
    setting.engine.train_mode()
    while len(rates) < _STEPS:
        for batch in setting.loader.epoch(len(rates) // len(setting.loader)):
            rate = LOW * (HIGH / LOW) ** (len(rates) / (_STEPS - 1))
            done = setting.engine.step(batch, rate, len(rates))
            if not done.updated or (losses and done.loss > _BLOWN * min(losses)):
                return rates, losses
            rates.append(rate)
            losses.append(done.loss)
            if len(rates) == _STEPS:
                break
    return rates, losses


def suggest(rates: Sequence[float], losses: Sequence[float]) -> Found:
    """Smooth the losses and find where they fall fastest. Raises InputError where they do not."""
    mean, smooth = 0.0, []
    for i, loss in enumerate(losses, 1):
        mean = _SMOOTH * mean + (1 - _SMOOTH) * loss
        smooth.append(mean / (1 - _SMOOTH**i))
    if len(smooth) < 10 or (least := int(np.argmin(smooth))) < 5:
        raise InputError("the loss does not fall at any learning rate from "
                         f"{LOW:g} on; look at the data, or start from other weights")
    slope = np.gradient(np.array(smooth), np.log(rates))
    steepest = int(slope[:least + 1].argmin())
    return Found(rates=tuple(rates), losses=tuple(smooth), steepest=_round(rates[steepest]),
                 least=_round(rates[least]))


def _round(rate: float) -> float:
    """To one and a half digits: nobody can tell more."""
    unit = 10.0 ** math.floor(math.log10(rate))
    return float(f"{round(2 * rate / unit) / 2 * unit:.2g}")


def _table(found: Found) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(
        [("lr", "loss"), *zip(found.rates, found.losses, strict=True)])
    return text.getvalue()


def _plot(found: Found, recipe: Recipe, path: Path) -> None:
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(found.rates, found.losses, color="#2f6fb0")
    axes.set_xscale("log")
    axes.set_xlabel("learning rate")
    axes.set_ylabel("training loss, smoothed (nats)")
    axes.set_title(f"{recipe.name} on {recipe.data.name}, batch {recipe.batch_size}",
                   loc="left", parse_math=False)
    for rate, word, colour in ((found.steepest, "steepest", "#2f6fb0"),
                               (found.least, "least", "#de6830")):
        axes.axvline(rate, color=colour, linestyle=":", label=f"{word}: {rate:g}")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150, format="png")
