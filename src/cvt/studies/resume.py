"""Training that a study starts, or resumes if it was interrupted."""

from __future__ import annotations

from pathlib import Path

from cvt.evaluate.run import METRICS
from cvt.system.errors import StoppedError
from cvt.train import loop
from cvt.train.directory import CHECKPOINTS
from cvt.train.recipe import Recipe

STOPPED = "stopped; the progress is saved, and the same command continues from there"


def train_or_resume(recipe: Recipe, run: Path, *, overwrite: bool, quiet: bool) -> None:
    """Train `recipe` in the directory `run`, from its last checkpoint if there is one.

    A complete run stays as it is. overwrite: replace what is left of a run without a checkpoint.
    Raises as `cvt.train.loop.train`.
    """
    try:
        if (run / METRICS).is_file():
            return
        if (run / CHECKPOINTS).is_dir():
            loop.resume(run, quiet=quiet)
        else:
            loop.train(recipe, run, overwrite=overwrite, quiet=quiet)
    except StoppedError as error:
        raise StoppedError(STOPPED, error.code) from None
