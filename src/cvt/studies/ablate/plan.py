"""A study's runs: which there are, where each goes, and training those that are not done."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cvt.evaluate.run import METRICS
from cvt.studies.ablate.studies import Row
from cvt.system.errors import DivergedError, StoppedError
from cvt.system.schema import write_mapping
from cvt.train import loop
from cvt.train.directory import CHECKPOINTS, LAST, TENSORBOARD, clear_run
from cvt.train.recipe import MACHINE, PLACES, Recipe
from cvt.weights.tensors import BEST

RUNS, MODELS, FAILURE = "runs", "models", "diverged.json"
STOPPED = "stopped; what was done is saved, and the same command goes on from there"


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training: a row of a study, with a seed."""

    recipe: Recipe
    directory: Path

    @property
    def done(self) -> bool:
        """Whether it was trained to its end and tidied up, or diverged."""
        return (not (self.directory / CHECKPOINTS).is_dir()
                and any((self.directory / name).is_file() for name in (METRICS, FAILURE)))

    @property
    def without_weights(self) -> bool:
        """Whether it was trained to its end, and its weights were not kept."""
        return (self.done and (self.directory / METRICS).is_file()
                and not (self.directory / LAST).is_file())


def plan_run(base: Recipe, row: Row, seed: int, output: Path, data: str,
             images: int | None = None) -> Run:
    """The run of `row` with `seed` under the recipe `base`, below `output`; writes its model file.

    Its directory is named after what decides its result, so that studies share runs. data: the
    digest of the dataset. images: how many to train on, with the recipe's number of steps, in one
    epoch.
    """
    own = base.card(("",)).model
    config = row.change(replace(own, num_classes=1000))
    model = base.model
    if config.stages != own.stages:
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
    """Train `run`, from where it was interrupted if it was; a loss that diverges is its result.

    Without `keep_weights` only the recipe, the figures and the report stay. Raises InputError and
    StoppedError as `cvt.train.loop.train`.
    """
    home = run.directory
    try:
        if not (home / CHECKPOINTS).is_dir():
            loop.train(run.recipe, home, overwrite=True, quiet=True)
        elif not (home / METRICS).is_file():
            loop.resume(home, quiet=True)
    except StoppedError as error:
        raise StoppedError(STOPPED, error.code) from None
    except DivergedError as error:
        clear_run(home)  # but for the batch that it failed on
        home.mkdir(parents=True, exist_ok=True)
        write_mapping({"error": str(error)}, home / FAILURE)
        return
    if not keep_weights:
        shutil.rmtree(home / TENSORBOARD, ignore_errors=True)
        for name in (BEST, LAST):
            (home / name).unlink(missing_ok=True)
    shutil.rmtree(home / CHECKPOINTS)  # last, for while it is there the run is not done


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:10]
