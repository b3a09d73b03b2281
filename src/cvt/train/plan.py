"""What a run will take, from a few of its steps: time, memory, disk, and the batch that fits."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Generator, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from cvt.data.loader import Batch, evaluation_batches
from cvt.evaluate.run import classify
from cvt.system.device import device_name
from cvt.system.machine import available_memory, peak_memory, reset_peak_memory
from cvt.train.engine import Engine
from cvt.train.optim import learning_rate
from cvt.train.recipe import Recipe
from cvt.train.setting import Setting
from cvt.train.state import Progress

WARM, STEPS = 2, 6  # steps that do not count, and that do
_VALIDATED = 4  # batches
_LEAST_EACH = 8  # images of a process, with fewer of which none is kept busy
_SHARE = 0.9  # of the memory that a run may fill


@dataclass(frozen=True, kw_only=True)
class Scaled:
    """A run on some processes, each with a device like this one."""

    processes: int
    seconds: float
    """Of the whole run."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a recipe takes here; times in seconds, sizes in bytes, of one process unless said."""

    device: str
    processes: int
    parameters: int
    trained: int
    """Parameters that are not frozen."""
    train_images: int
    val_images: int
    steps_per_epoch: int
    steps: int
    epochs: int
    step_seconds: float
    """Of an optimiser step, the wait for its images included."""
    waiting_seconds: float
    """Of that, the wait for images; more data.workers make it shorter."""
    exchange_seconds: float | None
    """Of a step, at most, the exchange of gradients between processes; None with one process."""
    validation_seconds: float
    epoch_seconds: float
    total_seconds: float
    memory: int
    """At its peak, of the device, or of the process on a CPU."""
    memory_limit: int
    """That a process may fill: nine tenths of the device's, or of its share of what is free."""
    at_a_time: int
    """Images that a process passes at a time."""
    most_at_a_time: int | None
    """Images that fit into memory at a time, at most its share of the batch; None where two
    measurements do not tell."""
    accumulate: int | None
    """The least optim.accumulate with which they do."""
    checkpoint: int
    disk: int
    """At most, all files of the run together."""
    disk_free: int
    scaling: tuple[Scaled, ...]
    """The whole run on other numbers of processes, with the same global batch."""

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as JSON has it."""
        return asdict(self)


def plan(recipe: Recipe, output: Path) -> Plan:
    """Build model and data, take some steps, and say what the whole run would take; writes nothing.

    `output` is where the run would go. Under torchrun every process calls it. Raises InputError for
    what `train` would refuse.
    """
    with Engine(recipe) as engine:
        setting = Setting(recipe, engine)
        weights, _ = setting.build()
        model = weights.model
        batches = _endless(setting)
        steps, waits, memory = _steps(setting, batches)
        share, parts = recipe.batch_size // engine.world, engine.parts
        most = None
        limit = int(_SHARE * _memory(engine))
        if share % (2 * parts) == 0:
            engine.parts = 2 * parts
            _, _, less = _steps(setting, batches)
            engine.parts = parts
            most = _fitting(share, share // parts, memory, less, limit)
        batches.close()
        exchange = engine.exchange_seconds()
        _forget_peak(engine)
        validation = _validation(model, setting)
        memory = max(memory, _peak(engine))
        step, epoch = median(steps), setting.steps / setting.epochs
        # The best weights are evaluated once more at the end.
        total = setting.steps * step + (setting.epochs + 1) * validation
        checkpoint = _bytes(*weights.checkpoint(Progress(), setting.identity).tensors.values())
        return Plan(
            device=device_name(engine.device), processes=engine.world,
            parameters=sum(p.numel() for p in model.parameters()),
            trained=sum(p.numel() for p in model.parameters() if p.requires_grad),
            train_images=len(setting.dataset.train), val_images=len(setting.dataset.val),
            steps_per_epoch=len(setting.loader), steps=setting.steps, epochs=setting.epochs,
            step_seconds=step, waiting_seconds=median(waits), exchange_seconds=exchange,
            validation_seconds=validation, epoch_seconds=epoch * step + validation,
            total_seconds=total, memory=memory, memory_limit=limit,
            at_a_time=share // parts, most_at_a_time=most,
            accumulate=None if most is None else share // most, checkpoint=checkpoint,
            # Those kept, the best epoch's, one being written, and the best and the last weights.
            disk=(recipe.keep + 2) * checkpoint + 2 * _bytes(weights.kept.state_dict()),
            disk_free=shutil.disk_usage(_existing(output)).free,
            scaling=_scaling(setting, step, exchange, validation))


def _endless(setting: Setting) -> Generator[Batch]:
    epoch = 0
    while True:
        yield from setting.loader.epoch(epoch)
        epoch += 1


def _steps(setting: Setting, batches: Iterator[Batch]) -> tuple[list[float], list[float], int]:
    """Seconds of steps and of the wait for their images, and the peak of memory in bytes."""
    engine, recipe, seconds, waits = setting.engine, setting.recipe, [], []
    engine.train_mode()
    for i in range(WARM + STEPS):
        if i == WARM:
            _forget_peak(engine)
        start = time.perf_counter()
        batch = next(batches)
        ready = time.perf_counter()
        engine.step(batch, learning_rate(recipe.optim, i, setting.steps, len(setting.loader)), i)
        if i >= WARM:
            seconds.append(time.perf_counter() - start)
            waits.append(ready - start)
    return seconds, waits, _peak(engine)


def _validation(model: torch.nn.Module, setting: Setting) -> float:
    """Seconds of this process's share of the validation images."""
    engine, recipe, val = setting.engine, setting.recipe, setting.dataset.val
    size = setting.at_a_time
    some = val.choose(range(min(len(val), (1 + _VALIDATED) * size)))
    batches = evaluation_batches(some, setting.card.preprocess, batch_size=size,
                                 workers=recipe.data.workers, unreadable=setting.unreadable)
    first = next(batches, None)  # starts the workers, which is not the rule
    start, seen = time.perf_counter(), 0
    for batch in batches:
        classify(model, [batch], precision=recipe.precision)
        seen += len(batch[1])
    if not seen and first:
        classify(model, [first], precision=recipe.precision)
        seen = len(first[1])
    return (time.perf_counter() - start) / max(1, seen) * math.ceil(len(val) / engine.world)


def _fitting(share: int, at_a_time: int, peak: int, less: int, limit: int) -> int | None:
    """The largest divisor of `share` images that fits, where memory grows along a line.

    peak: with `at_a_time` images. less: with half as many.
    """
    each = (peak - less) / (at_a_time / 2)
    if each <= 0:  # too small to be seen
        return at_a_time if peak <= limit else None
    most = int((limit - (peak - each * at_a_time)) / each)
    return max((n for n in range(1, share + 1) if share % n == 0 and n <= most), default=None)


def _scaling(setting: Setting, step: float, exchange: float | None, validation: float
             ) -> tuple[Scaled, ...]:
    """The run on 1, 2, 4, ... processes.

    A step's own work is shared out; a ring's exchange of gradients takes 2 (N - 1) / N of their
    size over the slowest line.
    """
    world, batch = setting.engine.world, setting.recipe.batch_size
    ring = exchange * world / (world - 1) if exchange else 0.0
    rows = []
    for n in (1, 2, 4, 8, 16, 32, 64):
        if batch % n == 0 and batch // n >= _LEAST_EACH:
            work = (step - (exchange or 0.0)) * world / n + ring * (n - 1) / n
            rows.append(Scaled(processes=n, seconds=setting.steps * work
                               + (setting.epochs + 1) * validation * world / n))
    return tuple(rows)


def _bytes(*parts: Mapping[str, Tensor]) -> int:
    return sum(t.numel() * t.element_size() for part in parts for t in part.values())


def _existing(path: Path) -> Path:
    path = path.absolute()
    return next(p for p in (path, *path.parents) if p.exists())


def _memory(engine: Engine) -> int:
    """Bytes that a process may fill: the device's, or its share of the machine's."""
    if engine.device.type in ("cuda", "xpu"):
        total: int = getattr(torch, engine.device.type).get_device_properties(
            engine.device).total_memory
        return total
    return available_memory(engine.world)


def _forget_peak(engine: Engine) -> None:
    if engine.device.type in ("cuda", "xpu"):
        getattr(torch, engine.device.type).reset_peak_memory_stats(engine.device)
    else:
        reset_peak_memory()


def _peak(engine: Engine) -> int:
    if engine.device.type in ("cuda", "xpu"):
        return int(getattr(torch, engine.device.type).max_memory_reserved(engine.device))
    return peak_memory()
