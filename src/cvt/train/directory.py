"""The directory of a run: file names, and how it is created, locked and cleared."""

from __future__ import annotations

import shutil
from pathlib import Path

from filelock import FileLock, Timeout

from cvt.data.unreadable import UNREADABLE
from cvt.evaluate.run import EVALUATION, METRICS, RECIPE, REPORT
from cvt.system.errors import InputError
from cvt.weights.card import CONFIG
from cvt.weights.tensors import BEST

LAST = "last.safetensors"
CHECKPOINTS = "checkpoints"
CSV = "metrics.csv"
JSONL = "metrics.jsonl"
TENSORBOARD = "tensorboard"
DIVERGED = "diverged"
LOCK = ".lock"


def create_run(run: Path, overwrite: bool) -> FileLock:
    """Create and lock the directory of a new run. Raises InputError if it already holds a run."""
    if run.exists() and not run.is_dir():
        raise InputError(f"--output {run} is a file; give a directory")
    existing = _files(run)
    if existing and not overwrite:
        raise InputError(f"{run} already holds a run ({existing[0].name}); continue it with "
                         f"--resume {run}, replace it with --overwrite, or give another --output")
    run.mkdir(parents=True, exist_ok=True)
    lock = lock_run(run)
    for path in (*existing, run / DIVERGED):
        _remove(path)
    return lock


def lock_run(run: Path) -> FileLock:
    """Lock the run until this process ends. Raises InputError if another process holds the lock."""
    lock = FileLock(run / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise InputError(f"another process trains in {run}; wait for it or end it, or give another "
                         "--output") from None
    return lock


def clear_run(run: Path) -> None:
    """Remove the files of a run, except a dumped batch, and then the directory if it is empty."""
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
