"""Runs beside each other: processes that train one run after the other, and hear when to stop."""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess

import torch

from cvt.studies.ablate.plan import STOPPED, Run, train_run
from cvt.system.device import pick_device
from cvt.system.errors import InputError, StoppedError
from cvt.system.machine import available_cores
from cvt.train.stop import Stop

_WATCH = 0.5  # seconds from one look at the signals to the next


def default_jobs(device: str) -> int:
    """As many runs at a time as there are GPUs, or cores where a CPU trains."""
    if device in ("auto", "cuda") and torch.cuda.is_available():
        return torch.cuda.device_count()
    return available_cores() if pick_device(device).type == "cpu" else 1


def train_all(runs: Sequence[Run], *, jobs: int, keep_weights: bool = False) -> Iterator[Run]:
    """Train `runs`, `jobs` at a time; each as it ends.

    With several, each is a process of its own with its share of the cores; GPUs are taken in turns.
    Raises InputError where a run cannot be carried out, StoppedError after a signal, once every run
    in hand has saved where it is.
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
                worker.give(waiting)
            while busy := {w.connection: w for w in workers if w.run}:
                for ready in wait(list(busy), timeout=_WATCH):
                    worker = busy[ready]  # type: ignore[index]
                    yield worker.result()
                    worker.give(waiting)
                if stop.asked:
                    raise StoppedError(STOPPED, 128 + stop.asked)
    finally:
        for worker in workers:
            worker.end()


@dataclass
class _Worker:
    """A process that trains what it is given."""

    number: int
    of: int
    keep_weights: bool
    run: Run | None = None
    connection: Connection = field(init=False)
    process: SpawnProcess = field(init=False)

    def __post_init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(
            theirs, self.number, max(1, available_cores() // self.of), self.keep_weights))
        self.process.start()
        theirs.close()  # so that the end of the process ends the connection

    def give(self, waiting: deque[Run]) -> None:
        """The next run, if there is one."""
        self.run = waiting.popleft() if waiting else None
        if self.run:
            self.connection.send(self.run)

    def result(self) -> Run:
        """The run that is done. Raises what it raised."""
        assert self.run is not None
        try:
            error = self.connection.recv()
        except EOFError:
            self.process.join()
            code = self.process.exitcode or 0
            told = ("most likely for want of memory; give the command again with fewer --jobs"
                    if code == -9 else "and the same command goes on from there")
            raise InputError(f"the process that trained {self.run.directory.name} ended with code "
                             f"{code}, {told}") from None
        if error is not None:
            raise error
        return self.run

    def end(self) -> None:
        """Stop the run in hand, which saves first."""
        if self.run and self.process.is_alive():
            self.process.terminate()
        self.connection.close()
        self.process.join()


def _serve(connection: Connection, number: int, threads: int, keep_weights: bool) -> None:
    """Train what comes through `connection` until it is closed."""
    torch.set_num_threads(threads)
    while True:
        try:
            run: Run = connection.recv()
        except (EOFError, OSError):
            return
        if run.recipe.device in ("auto", "cuda") and torch.cuda.is_available():
            run = replace(run, recipe=replace(run.recipe, device=(
                f"cuda:{number % torch.cuda.device_count()}")))
        error: Exception | None = None
        try:
            train_run(run, keep_weights=keep_weights)
        except (InputError, StoppedError, OSError) as raised:
            error = raised
        try:
            connection.send(error)
        except OSError:  # the study has ended, and nobody listens
            return
