"""The training runs of ablations: their recipes and directories, and training them in parallel."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import shutil
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import torch

from cvt.evaluate.run import METRICS
from cvt.studies.ablate.tables import Row
from cvt.studies.resume import STOPPED, train_or_resume
from cvt.system.device import pick_device
from cvt.system.errors import DivergedError, InputError, StoppedError
from cvt.system.machine import available_cores
from cvt.system.schema import write_mapping
from cvt.train.directory import CHECKPOINTS, LAST, TENSORBOARD, clear_run
from cvt.train.recipe import MACHINE, PLACES, Recipe
from cvt.train.stop import Stop
from cvt.weights.tensors import BEST

RUNS, MODELS, FAILURE = "runs", "models", "diverged.json"
_POLL = 0.5  # seconds between checks for a signal


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training: a row of a study, with a seed."""

    recipe: Recipe
    directory: Path

    @property
    def done(self) -> bool:
        """Whether it is complete and cleaned up, or diverged."""
        return (not (self.directory / CHECKPOINTS).is_dir()
                and any((self.directory / name).is_file() for name in (METRICS, FAILURE)))

    @property
    def without_weights(self) -> bool:
        """Whether it is complete, and its weights were not kept."""
        return (self.done and (self.directory / METRICS).is_file()
                and not (self.directory / LAST).is_file())


def plan_run(base: Recipe, row: Row, seed: int, output: Path, data: str,
             images: int | None = None) -> Run:
    """The run of `row` with `seed` under the recipe `base`; writes its model file below `output`.

    The name of its directory is a hash of everything that determines its result, so that studies
    share runs. data: the digest of the dataset. images: number of training images, for the steps of
    the recipe in a single epoch.
    """
    studied = base.card(("",)).model
    config = row.change(replace(studied, num_classes=1000))
    model = base.model
    if config.stages != studied.stages:
        text = json.dumps(config.to_dict(), sort_keys=True)
        model = str(output / MODELS / f"{_digest(text)}.json")
        Path(model).parent.mkdir(parents=True, exist_ok=True)
        config.save(model)
    recipe = replace(base, model=model, network=row.network, seed=seed)
    if images is not None:
        passes = -(-(base.steps or 0) * base.batch_size // images)
        recipe = replace(recipe, max_train_samples=images, passes_per_epoch=passes)
    plain: dict[str, Any] = {k: v for k, v in recipe.flat().items() if k not in MACHINE | PLACES}
    plain |= {"model": config.to_dict(), "dataset": data, "teacher": recipe.distill.teacher}
    parts = [row.network, *([f"{images}"] if images else []), f"seed{seed}",
             _digest(json.dumps(plain, sort_keys=True))]
    return Run(recipe=recipe, directory=output / RUNS / "-".join(parts))


def train_run(run: Run, *, keep_weights: bool = False) -> None:
    """Train `run`, or resume it; a loss that diverges is a result too.

    Without `keep_weights` only recipe, metrics and report are kept. Raises InputError and
    StoppedError as `cvt.train.loop.train`.
    """
    home = run.directory
    try:
        train_or_resume(run.recipe, home, overwrite=True, quiet=True)
    except DivergedError as error:
        clear_run(home)  # except for the batch that it failed on
        home.mkdir(parents=True, exist_ok=True)
        write_mapping({"error": str(error)}, home / FAILURE)
        return
    if not keep_weights:
        shutil.rmtree(home / TENSORBOARD, ignore_errors=True)
        for name in (BEST, LAST):
            (home / name).unlink(missing_ok=True)
    shutil.rmtree(home / CHECKPOINTS)  # last, as a run with checkpoints is not done


def default_jobs(device: str) -> int:
    """Number of parallel runs: one per GPU, or one per core on a CPU."""
    if device in ("auto", "cuda") and torch.cuda.is_available():
        return torch.cuda.device_count()
    return available_cores() if pick_device(device).type == "cpu" else 1


def train_all(runs: Sequence[Run], *, jobs: int, keep_weights: bool = False) -> Iterator[Run]:
    """Train `runs`, `jobs` at a time; yield each when it is done.

    Several jobs are processes that divide the cores or the GPUs among them. Raises InputError if a
    run cannot be trained, and StoppedError after a signal, once all current runs are saved.
    """
    jobs = min(jobs, len(runs))
    if jobs <= 1:
        for run in runs:
            train_run(run, keep_weights=keep_weights)
            yield run
        return
    waiting = deque(runs)
    workers = [_Worker(i, jobs, keep_weights) for i in range(jobs)]
    try:
        with Stop() as stop:
            for worker in workers:
                worker.start_next(waiting)
            while active := {w.connection: w for w in workers if w.run}:
                for ready in wait(list(active), timeout=_POLL):
                    worker = active[ready]  # type: ignore[index]
                    yield worker.result()
                    worker.start_next(waiting)
                if stop.received:
                    raise StoppedError(STOPPED, 128 + stop.received)
    finally:
        for worker in workers:
            worker.close()


@dataclass
class _Worker:
    """A process that trains one run after another."""

    number: int
    jobs: int
    keep_weights: bool
    run: Run | None = None
    connection: Connection = field(init=False)
    process: SpawnProcess = field(init=False)

    def __post_init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, child = context.Pipe()
        self.process = context.Process(target=_work, args=(
            child, self.number, max(1, available_cores() // self.jobs), self.keep_weights))
        self.process.start()
        child.close()  # so that the connection ends with the process

    def start_next(self, waiting: deque[Run]) -> None:
        """Start the next run, if there is one."""
        self.run = waiting.popleft() if waiting else None
        if self.run:
            self.connection.send(self.run)

    def result(self) -> Run:
        """Return the run that is done, or raise its error."""
        assert self.run is not None
        try:
            error = self.connection.recv()
        except EOFError:
            self.process.join()
            code = self.process.exitcode or 0
            hint = ("most likely out of memory; give the command again with fewer --jobs"
                    if code == -9 else "and the same command continues from there")
            raise InputError(f"the process that trained {self.run.directory.name} ended with code "
                             f"{code}, {hint}") from None
        if error is not None:
            raise error
        return self.run

    def close(self) -> None:
        """End the process; its current run is saved first."""
        if self.run and self.process.is_alive():
            self.process.terminate()
        self.connection.close()
        self.process.join()


def _work(connection: Connection, number: int, threads: int, keep_weights: bool) -> None:
    """Train the runs that `connection` sends, until it is closed."""
    torch.set_num_threads(threads)
    while True:
        try:
            run: Run = connection.recv()
        except (EOFError, OSError):
            return
        if run.recipe.device in ("auto", "cuda") and torch.cuda.is_available():
            run = replace(run, recipe=replace(run.recipe, device=(
                f"cuda:{number % torch.cuda.device_count()}")))
        failure: Exception | None = None
        try:
            train_run(run, keep_weights=keep_weights)
        except (InputError, StoppedError, OSError) as error:
            failure = error
        try:
            connection.send(failure)
        except OSError:  # the parent has closed the connection
            return


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:10]
