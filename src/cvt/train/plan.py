"""Time, memory and disk of a run, and the largest micro-batch, measured on a few steps."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Iterator, Mapping
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
from cvt.train.setup import Setup

WARMUP, STEPS = 2, 6  # steps that are not measured, and that are
_VAL_BATCHES = 4
_MIN_SHARE = 8  # images per process and step; with fewer a device is not busy
_USABLE = 0.9  # fraction of the memory that a run may fill


@dataclass(frozen=True, kw_only=True)
class Scaling:
    """Estimate for a number of processes, each with a device like this one."""

    processes: int
    seconds: float
    """Duration of the whole run."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Cost of a run on this machine: seconds and bytes, per process unless stated otherwise."""

    device: str
    processes: int
    parameters: int
    trainable_parameters: int
    train_images: int
    val_images: int
    steps_per_epoch: int
    steps: int
    epochs: int
    step_seconds: float
    """Duration of an optimiser step, including the wait for its images."""
    waiting_seconds: float
    """Wait for images in a step; more data.workers reduce it."""
    exchange_seconds: float | None
    """Upper bound of the all-reduce of the gradients in a step; None with one process."""
    validation_seconds: float
    epoch_seconds: float
    total_seconds: float
    memory: int
    """Peak memory of the device, or of the process on a CPU."""
    memory_limit: int
    """Memory that a process may use: 90 % of the device's, or of its share of the free memory."""
    micro_batch_size: int
    """Images that a process passes through the network at a time."""
    max_micro_batch_size: int | None
    """Largest micro-batch that fits into memory, at most the process's share of the batch; None
    if the measurements do not determine it."""
    grad_accum_steps: int | None
    """The optim.grad_accum_steps of that micro-batch."""
    checkpoint: int
    disk: int
    """Upper bound of the size of all files of the run."""
    disk_free: int
    scaling: tuple[Scaling, ...]
    """Estimates for other numbers of processes, with the same global batch."""

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def plan(recipe: Recipe, output: Path) -> Plan:
    """Take some steps of a run and estimate the cost of the whole; writes nothing.

    `output` is where the run would go. Under torchrun every process calls it. Raises InputError if
    `train` would.
    """
    with Engine(recipe) as engine:
        setup = Setup(recipe, engine)
        model, (epochs, total_steps) = setup.state.model, setup.length()
        batches = setup.batches()
        steps, waits, memory = _steps(setup, batches)
        share, accum_steps = recipe.batch_size // engine.world_size, engine.accum_steps
        largest = None
        limit = int(_USABLE * _memory(engine))
        if share % (2 * accum_steps) == 0:
            engine.accum_steps = 2 * accum_steps
            _, _, half = _steps(setup, batches)
            engine.accum_steps = accum_steps
            largest = _max_micro_batch(share, engine.micro_batch_size, memory, half, limit)
        batches.close()
        exchange = engine.exchange_seconds()
        _reset_peak(engine)
        validation = _validation(model, setup)
        memory = max(memory, _peak(engine))
        step = median(steps)
        # The best weights are evaluated once more at the end.
        total = total_steps * step + (epochs + 1) * validation
        checkpoint = _bytes(*setup.state.checkpoint(setup.identity).tensors.values())
        return Plan(
            device=device_name(engine.device), processes=engine.world_size,
            parameters=sum(p.numel() for p in model.parameters()),
            trainable_parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
            train_images=len(setup.dataset.train), val_images=len(setup.dataset.val),
            steps_per_epoch=len(setup.loader), steps=total_steps, epochs=epochs,
            step_seconds=step, waiting_seconds=median(waits), exchange_seconds=exchange,
            validation_seconds=validation,
            epoch_seconds=total_steps / epochs * step + validation,
            total_seconds=total, memory=memory, memory_limit=limit,
            micro_batch_size=engine.micro_batch_size, max_micro_batch_size=largest,
            grad_accum_steps=None if largest is None else share // largest, checkpoint=checkpoint,
            # Those kept, the best epoch's, one being written, and the best and the last weights.
            disk=((recipe.keep_checkpoints + 2) * checkpoint
                  + 2 * _bytes(setup.state.eval_model.state_dict())),
            disk_free=shutil.disk_usage(next(
                p for p in (output.absolute(), *output.absolute().parents) if p.exists())).free,
            scaling=_scaling(setup, step, exchange, validation))


def _steps(setup: Setup, batches: Iterator[Batch]) -> tuple[list[float], list[float], int]:
    """Durations of steps and of the wait for their images, and the peak memory."""
    engine, recipe, seconds, waits = setup.engine, setup.recipe, [], []
    _, steps = setup.length()
    engine.train_mode()
    for i in range(WARMUP + STEPS):
        if i == WARMUP:
            _reset_peak(engine)
        start = time.perf_counter()
        batch = next(batches)
        ready = time.perf_counter()
        engine.step(batch, learning_rate(recipe.optim, i, steps, len(setup.loader)), i)
        if i >= WARMUP:
            seconds.append(time.perf_counter() - start)
            waits.append(ready - start)
    return seconds, waits, _peak(engine)


def _validation(model: torch.nn.Module, setup: Setup) -> float:
    """Duration of the validation, estimated from a few batches."""
    engine, recipe, val = setup.engine, setup.recipe, setup.dataset.val
    size = engine.micro_batch_size
    some = val.choose(range(min(len(val), (1 + _VAL_BATCHES) * size)))
    batches = evaluation_batches(some, setup.card.preprocess, batch_size=size,
                                 workers=recipe.data.workers, unreadable=setup.val_unreadable)
    first = next(batches, None)  # starts the workers, which happens once
    start, n = time.perf_counter(), 0
    for batch in batches:
        classify(model, [batch], precision=recipe.precision)
        n += len(batch[1])
    if not n and first:
        classify(model, [first], precision=recipe.precision)
        n = len(first[1])
    return (time.perf_counter() - start) / max(1, n) * math.ceil(len(val) / engine.world_size)


def _max_micro_batch(share: int, size: int, peak: int, half: int, limit: int) -> int | None:
    """The largest divisor of `share` images that fits into `limit` bytes.

    Memory is taken as linear in the images: `peak` bytes with `size` of them, `half` bytes with
    half as many.
    """
    each = (peak - half) / (size / 2)
    if each <= 0:  # too small to measure
        return size if peak <= limit else None
    largest = int((limit - (peak - each * size)) / each)
    return max((n for n in range(1, share + 1) if share % n == 0 and n <= largest), default=None)


def _scaling(setup: Setup, step: float, exchange: float | None, validation: float
             ) -> tuple[Scaling, ...]:
    """Estimates for 1, 2, 4, ... processes.

    The work of a step is divided among them; a ring all-reduce of the gradients transfers 2 (N - 1)
    / N of their size over the slowest link.
    """
    world, batch, (epochs, steps) = (setup.engine.world_size, setup.recipe.batch_size,
                                     setup.length())
    ring = exchange * world / (world - 1) if exchange else 0.0
    rows = []
    for n in (1, 2, 4, 8, 16, 32, 64):
        if batch % n == 0 and batch // n >= _MIN_SHARE:
            work = (step - (exchange or 0.0)) * world / n + ring * (n - 1) / n
            rows.append(Scaling(processes=n, seconds=steps * work
                                + (epochs + 1) * validation * world / n))
    return tuple(rows)


def _bytes(*parts: Mapping[str, Tensor]) -> int:
    return sum(t.numel() * t.element_size() for part in parts for t in part.values())


def _memory(engine: Engine) -> int:
    """Memory that a process may use: the device's, or on a CPU its own and its share of the free
    memory."""
    if engine.device.type in ("cuda", "xpu"):
        total: int = getattr(torch, engine.device.type).get_device_properties(
            engine.device).total_memory
        return total
    return available_memory(engine.world_size)


def _reset_peak(engine: Engine) -> None:
    if engine.device.type in ("cuda", "xpu"):
        getattr(torch, engine.device.type).reset_peak_memory_stats(engine.device)
    else:
        reset_peak_memory()


def _peak(engine: Engine) -> int:
    if engine.device.type in ("cuda", "xpu"):
        return int(getattr(torch, engine.device.type).max_memory_reserved(engine.device))
    return peak_memory()
