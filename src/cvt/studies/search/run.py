"""A search from its recipe to its files; read top to bottom."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from cvt.data.dataset import Dataset, LabeledImages, relabel, rest, subset
from cvt.data.fingerprint import digest
from cvt.data.load import load_dataset
from cvt.data.loader import Batch, evaluation_batches
from cvt.data.unreadable import UnreadableImages
from cvt.evaluate.run import RECIPE, classify
from cvt.networks.build import build_network
from cvt.networks.supernet import GENES, Choice, Supernet, choice_of
from cvt.studies.charts import draw_search
from cvt.studies.resume import train_or_resume
from cvt.studies.search.config import SearchConfig
from cvt.studies.search.evolve import Score, Scored, evolve, random_search
from cvt.studies.search.result import Result
from cvt.studies.search.space import Space
from cvt.system.device import pick_device
from cvt.system.errors import InputError
from cvt.train.directory import LAST
from cvt.train.recipe import Recipe
from cvt.train.setup import resolve_model
from cvt.weights.card import ModelCard
from cvt.weights.tensors import read_tensors

RESULT, BEST, BEST_RANDOM, CHART, SUPERNET = (
    "search.json", "model.yaml", "random.yaml", "search.png", "supernet")

Progress = Callable[[str], None]


def search(recipe: Recipe, config: SearchConfig, output: str | Path, *, quiet: bool = False,
           progress: Progress = lambda _: None) -> Result:
    """Train the supernet of `recipe`, whose network is "supernet", and search its networks.

    Networks are scored on training images that the supernet is not trained on; validation images
    are not used. Writes to the directory `output`: supernet/ (a training run), search.json,
    model.yaml and random.yaml (the best networks of evolution and random search), search.png.
    Called again with the same arguments, it resumes the training exactly where it stopped, and
    reads a complete search. progress: called with a line about every scored network.

    Raises InputError if no network meets the budget or `output` holds another search; otherwise as
    `cvt.train.loop.train`.
    """
    home = Path(output)
    if recipe.network != "supernet":
        raise InputError(f"a search trains network=supernet, not {recipe.network}")
    if recipe.patience:
        raise InputError(f"patience={recipe.patience} would stop the training early on the "
                         "validation images, which a search does not use; leave it out")
    if home.is_file():
        raise InputError(f"--output {home} is a file; give a directory")
    dataset = load_dataset(recipe.data)
    card, _ = resolve_model(recipe, dataset)
    space = Space(card.model, (card.preprocess.size, card.preprocess.size))
    space.check(config.budget)
    recipe, held_out = _hold_out(recipe, config, dataset)
    options = {"search": dataclasses.asdict(config), "recipe": recipe.to_dict(),
               "data": digest(dataset)}
    if (home / RESULT).exists():
        return _read_result(home / RESULT, options)

    supernet = _train_supernet(recipe, home / SUPERNET, quiet)
    train = subset(dataset.train, recipe.max_train_samples or 0, recipe.data.split_seed)
    calibration = subset(train, config.calibration, recipe.data.split_seed)
    # The supernet may have been trained with the classes in another order.
    held_out = relabel(held_out, ModelCard.load(home / SUPERNET).classes)
    score = cache(scorer(supernet, _batches(calibration, card, recipe),
                         _batches(held_out, card, recipe)))  # both methods start with the same
    base = choice_of(card.model)
    result = Result(
        options=options, model=card.model, budget=config.budget, size=space.size,
        min_multiply_adds=space.min_cost, max_multiply_adds=space.max_cost,
        networks=space.count(config.budget), trained=len(train), held_out=len(held_out),
        base=Scored(choice=base, multiply_adds=space.multiply_adds(base), top1=score(base))
        if set(base) <= set(GENES) else None,
        evolution=tuple(evolve(
            space, config.budget, _reported(score, "evolution", progress), seed=recipe.seed,
            evaluations=config.evaluations, population=config.population)),
        random=tuple(random_search(
            space, config.budget, _reported(score, "random search", progress), seed=recipe.seed,
            evaluations=config.evaluations)))
    result.config(result.best).save(home / BEST)
    result.config(result.best_random).save(home / BEST_RANDOM)
    draw_search(result, home / CHART)
    result.save(home / RESULT)  # written last: a search without it is not complete
    return result


def scorer(supernet: Supernet, calibration: Sequence[Batch], held_out: Sequence[Batch]) -> Score:
    """Return the function from a choice to its top-1 in [0, 1] on `held_out`.

    The weights are those of `supernet`. Its BatchNorm statistics mix those of all networks, so they
    are recomputed for each network from `calibration`, which are training images.
    """
    supernet.eval()

    def score(choice: Choice) -> float:
        network = supernet.extract(choice)
        recompute_statistics(network, [images for images, _ in calibration])
        logits, labels = classify(network, held_out)
        return (logits.argmax(1) == labels).double().mean().item()

    return score


@torch.no_grad()
def recompute_statistics(network: nn.Module, batches: Sequence[Tensor]) -> None:
    """Set the statistics of every BatchNorm to their mean over `batches` (B, C, H, W).

    Everything else computes as in evaluation mode, in which `network` is left.
    """
    network.eval()
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a cumulative mean
        norm.train()
    device = next(network.parameters()).device
    for images in batches:
        network(images.to(device))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    network.eval()


def _hold_out(recipe: Recipe, config: SearchConfig, dataset: Dataset
              ) -> tuple[Recipe, LabeledImages]:
    """The recipe with its training images limited, and the held-out ones among the others."""
    n = len(dataset.train)
    held_out = config.held_out or min(2000, n // 5)
    trained = recipe.max_train_samples or n - held_out
    if trained < 1 or trained + held_out > n:
        raise InputError(f"max_train_samples={trained} and held_out={held_out} exceed the {n:,} "
                         "training images; make one of them smaller")
    others = rest(dataset.train, trained, recipe.data.split_seed)
    return (dataclasses.replace(recipe, max_train_samples=trained),
            subset(others, held_out, recipe.data.split_seed))


def _read_result(path: Path, options: Mapping[str, Any]) -> Result:
    result = Result.load(path)
    if json.loads(json.dumps(options)) != result.options:
        what = "data" if options["data"] != result.options.get("data") else "options"
        raise InputError(f"{path} is a search with other {what}; repeat those, or give another "
                         "--output")
    return result


def _train_supernet(recipe: Recipe, run: Path, quiet: bool) -> Supernet:
    """The supernet of the last epoch: the best epoch is selected on the validation images."""
    started = (run / RECIPE).is_file()
    if started and Recipe.load(run / RECIPE) != recipe.with_absolute_paths():
        raise InputError(f"{run} was trained with other options; repeat those, or give another "
                         "--output")
    train_or_resume(recipe, run, overwrite=started, quiet=quiet)
    supernet = cast("Supernet", build_network(ModelCard.load(run)))
    supernet.load_state_dict(read_tensors(run / LAST))
    return supernet.to(pick_device(recipe.device))


def _reported(score: Score, method: str, progress: Progress) -> Score:
    number = count(1)

    def call(choice: Choice) -> float:
        top1 = score(choice)
        progress(f"{method}, network {next(number)}: {top1:.2%}")
        return top1

    return call


def _batches(images: LabeledImages, card: ModelCard, recipe: Recipe) -> list[Batch]:
    return list(evaluation_batches(
        images, card.preprocess, batch_size=recipe.batch_size, workers=recipe.data.workers,
        unreadable=UnreadableImages(images, recipe.data.max_unreadable)))
