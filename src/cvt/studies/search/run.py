"""A search from its recipe to its files; read top to bottom."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any, cast

from cvt.data.dataset import Dataset, LabeledImages, relabel, rest, subset
from cvt.data.fingerprint import digest
from cvt.data.load import load_dataset
from cvt.data.loader import Batch, evaluation_batches
from cvt.data.unreadable import UnreadableImages
from cvt.evaluate.run import METRICS, RECIPE
from cvt.networks.build import build_network
from cvt.networks.supernet import GENES, Choice, Supernet, choice_of
from cvt.studies.search.chart import draw
from cvt.studies.search.config import SearchConfig
from cvt.studies.search.evolve import Score, Scored, evolve, random_search
from cvt.studies.search.result import Result
from cvt.studies.search.score import Scorer
from cvt.studies.search.space import Space
from cvt.system.device import pick_device
from cvt.system.errors import InputError, StoppedError
from cvt.train import loop
from cvt.train.directory import LAST
from cvt.train.recipe import Recipe
from cvt.train.setup import resolve_model
from cvt.weights.card import ModelCard
from cvt.weights.tensors import read_tensors

RESULT, FOUND, AT_RANDOM, CHART, SUPERNET = (
    "search.json", "model.yaml", "random.yaml", "search.png", "supernet")

Say = Callable[[str], None]


def search(recipe: Recipe, config: SearchConfig, output: str | Path, *, quiet: bool = False,
           say: Say = lambda _: None) -> Result:
    """Train a supernet as `recipe` says, whose network is "supernet", and search its networks.

    The images that networks are scored on are training images, kept from the supernet; those
    for validation play no part. The directory `output` gets supernet/ (a run of training), then
    search.json, model.yaml and random.yaml (what evolution and random search found), search.png.
    Called again with the same arguments, training goes on where it stopped, exactly, and a search
    that is done is read. Raises InputError where no network meets the budget, or `output` holds
    another search; else as `cvt.train.loop.train`. `say` hears of every network that is scored.
    """
    home = Path(output)
    if recipe.network != "supernet":
        raise InputError(f"a search trains network=supernet, not {recipe.network}")
    if recipe.patience:
        raise InputError(f"patience={recipe.patience} would end the training by the images for "
                         "validation, which play no part in a search; leave it out")
    if home.is_file():
        raise InputError(f"--output {home} is a file; give a directory")
    dataset = load_dataset(recipe.data)
    card, _ = resolve_model(recipe, dataset)
    space = Space(card.model, (card.preprocess.size, card.preprocess.size))
    space.check(config.budget)
    recipe, held_out = _kept_apart(recipe, config, dataset)
    settings = {"search": dataclasses.asdict(config), "recipe": recipe.to_dict(),
                "data": digest(dataset)}
    if (home / RESULT).exists():
        return _earlier(home / RESULT, settings)

    supernet = _trained(recipe, home / SUPERNET, quiet)
    seen = subset(dataset.train, recipe.max_train_samples or 0, recipe.data.split_seed)
    calibration = subset(seen, config.calibration, recipe.data.split_seed)
    # The supernet may have been trained when the classes stood in another order.
    held_out = relabel(held_out, ModelCard.load(home / SUPERNET).classes)
    score = cache(Scorer(supernet, _batches(calibration, card, recipe),
                         _batches(held_out, card, recipe)))  # both methods begin alike
    base = choice_of(card.model)
    result = Result(
        settings=settings, model=card.model, budget=config.budget, size=space.size,
        least=space.least, most=space.most, networks=space.count(config.budget),
        trained=len(seen), held_out=len(held_out),
        base=Scored(choice=base, multiply_adds=space.multiply_adds(base), top1=score(base))
        if set(base) <= set(GENES) else None,
        evolution=tuple(evolve(
            space, config.budget, _told(score, "evolution", say), seed=recipe.seed,
            evaluations=config.evaluations, population=config.population)),
        random=tuple(random_search(
            space, config.budget, _told(score, "random search", say), seed=recipe.seed,
            evaluations=config.evaluations)))
    result.config(result.found).save(home / FOUND)
    result.config(result.found_at_random).save(home / AT_RANDOM)
    draw(result, home / CHART)
    result.save(home / RESULT)  # the last file to be written: a search without it is not complete
    return result


def _kept_apart(recipe: Recipe, config: SearchConfig, dataset: Dataset
                ) -> tuple[Recipe, LabeledImages]:
    """The recipe with its training images limited, and as many others as are held out."""
    n = len(dataset.train)
    held = config.held_out or min(2000, n // 5)
    trained = recipe.max_train_samples or n - held
    if trained < 1 or trained + held > n:
        raise InputError(f"max_train_samples={trained} and held_out={held} are more than the {n:,} "
                         "training images; make one of them smaller")
    others = rest(dataset.train, trained, recipe.data.split_seed)
    return (dataclasses.replace(recipe, max_train_samples=trained),
            subset(others, held, recipe.data.split_seed))


def _earlier(path: Path, settings: Mapping[str, Any]) -> Result:
    result = Result.load(path)
    if json.loads(json.dumps(settings)) != result.settings:
        what = "data" if settings["data"] != result.settings.get("data") else "options"
        raise InputError(f"{path} is of a search with other {what}; repeat those, or give another "
                         "--output")
    return result


def _trained(recipe: Recipe, run: Path, quiet: bool) -> Supernet:
    """The supernet of the last epoch: the best epoch would be that on the validation images."""
    begun = (run / RECIPE).is_file()
    if begun and Recipe.load(run / RECIPE) != recipe.with_absolute_paths():
        raise InputError(f"{run} was trained with other options; repeat those, or give another "
                         "--output")
    try:
        if not begun:
            loop.train(recipe, run, quiet=quiet)
        elif not (run / METRICS).is_file():
            loop.resume(run, quiet=quiet)
    except StoppedError as error:
        raise StoppedError("stopped; what was trained is saved, and the same command goes on from "
                           "there", error.code) from None
    supernet = cast("Supernet", build_network(ModelCard.load(run)))
    supernet.load_state_dict(read_tensors(run / LAST))
    return supernet.to(pick_device(recipe.device))


def _told(score: Score, method: str, say: Say) -> Score:
    done = count(1)

    def call(choice: Choice) -> float:
        top1 = score(choice)
        say(f"{method}, network {next(done)}: {top1:.2%}")
        return top1

    return call


def _batches(images: LabeledImages, card: ModelCard, recipe: Recipe) -> list[Batch]:
    return list(evaluation_batches(
        images, card.preprocess, batch_size=recipe.batch_size, workers=recipe.data.workers,
        unreadable=UnreadableImages(images, recipe.data.max_unreadable)))
