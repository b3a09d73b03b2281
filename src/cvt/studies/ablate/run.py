"""Ablations from a recipe to tables, charts and verdicts; read top to bottom."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from cvt.data.dataset import Dataset
from cvt.data.fingerprint import digest
from cvt.data.load import load_dataset
from cvt.networks.build import build_network
from cvt.networks.complexity import network_multiply_adds
from cvt.studies.ablate.report import to_markdown
from cvt.studies.ablate.results import compare, mean_and_std, read_outcome
from cvt.studies.ablate.tables import SEEDS, SIZES, STUDIES, Row, Study
from cvt.studies.ablate.training import RUNS, Run, default_jobs, plan_run, train_all
from cvt.studies.charts import draw_ablation
from cvt.system.errors import InputError
from cvt.system.files import replace_file
from cvt.system.machine import describe_machine
from cvt.system.schema import read_mapping, write_mapping
from cvt.train.recipe import Recipe

RESULTS, VERSION = "ablation.json", 1

Cell = tuple[Row, int | None]  # a configuration and its number of training images


def ablate(names: Sequence[str], recipe: Recipe, output: Path, *,
           seeds: Sequence[int] = SEEDS, sizes: Sequence[int] = SIZES, jobs: int | None = None,
           keep_weights: bool = False, progress: Callable[[str], None] = lambda _: None
           ) -> dict[str, Any]:
    """Train the missing runs of the studies `names`; return the content of ablation.json.

    Writes below `output`: ablation.json, NAME.md and NAME.png for each study, models/ (the
    configurations) and runs/ (one directory each). Called again, it trains only what is missing.

    recipe: trains every configuration; its model is the CvT that is studied. seeds: of weights,
    order and augmentation; every configuration is trained once with each. sizes: numbers of
    training images, for the study `data`. jobs: number of parallel runs, by default one per core or
    GPU. progress: called with a line about each run. Raises InputError,
    before anything is trained, if a study cannot be carried out; StoppedError after a signal.
    """
    results = _read_results(output / RESULTS)
    dataset = load_dataset(recipe.data)
    _check(names, recipe, seeds, sizes, dataset)
    data = digest(dataset)
    planned = {name: {cell: [plan_run(recipe, cell[0], seed, output, data, cell[1])
                             for seed in seeds]
                      for cell in _cells(STUDIES[name], sizes)} for name in names}
    all_runs = {run.directory: run for cells in planned.values() for runs in cells.values()
             for run in runs}
    missing = [run for run in all_runs.values() if not run.done]
    if len(missing) < len(all_runs):
        progress(f"{len(all_runs) - len(missing)} of {len(all_runs)} runs are done already")
    if keep_weights and (lost := sum(run.without_weights for run in all_runs.values())):
        progress(f"--keep_weights comes too late for {lost} of them; to train those again, remove "
                 f"their directories in {output / RUNS}")
    jobs = jobs or default_jobs(recipe.device)
    for done, run in enumerate(train_all(missing, jobs=jobs, keep_weights=keep_weights), 1):
        outcome = read_outcome(run)
        progress(f"{done}/{len(missing)} {run.directory.name}: " + (
            "diverged" if outcome.top1 is None else
            f"{outcome.top1:.2f} % in {outcome.seconds:.0f} s"))

    facts = {**describe_machine(), "runs at a time": str(jobs)}
    for name, cells in planned.items():
        study = {**_study(STUDIES[name], cells, dataset), "seeds": list(seeds),
                 "recipe": recipe.to_dict(), "facts": facts,
                 "data": {"name": recipe.data.name, "train": _trained_on(recipe, dataset),
                          "val": len(dataset.val)}}
        results["studies"][name] = study
        replace_file(output / f"{name}.md", partial(
            Path.write_text, data=to_markdown(name, study), encoding="utf-8"))
        replace_file(output / f"{name}.png", partial(draw_ablation, study))
    write_mapping(results, output / RESULTS)
    return results


def _read_results(path: Path) -> dict[str, Any]:
    """Earlier results, if any. Raises InputError if another version wrote them."""
    if not path.is_file():
        return {"version": VERSION, "studies": {}}
    results = read_mapping(path)
    if results.get("version") != VERSION or not isinstance(results.get("studies"), dict):
        raise InputError(f"{path} has version {results.get('version')!r}, this package writes "
                         f"{VERSION}; give another --output, or move the file away: the runs "
                         "beside it are used again")
    return results


def _check(names: Sequence[str], recipe: Recipe, seeds: Sequence[int], sizes: Sequence[int],
           dataset: Dataset) -> None:
    for option, values, minimum in (("--seeds", seeds, 0), ("--sizes", sizes, 1)):
        given = f"{option} {' '.join(map(str, values))}"
        if len(set(values)) < len(values):
            raise InputError(f"{given} has a value twice; give each once")
        if not values or min(values) < minimum:
            raise InputError(f"{given} must be integers of at least {minimum}")
    if recipe.network != "cvt" or recipe.weights is not None:
        raise InputError("a study trains its own networks from random weights; leave out network "
                         "and weights")
    if recipe.patience:
        raise InputError(f"patience={recipe.patience} would stop runs early on the images "
                         "that they are scored on; leave it out")
    classes, images = len(dataset.train.classes), len(dataset.train)
    trained = [_trained_on(recipe, dataset)]
    if any(STUDIES[name].by_images for name in names):
        if recipe.steps is None or recipe.optim.warmup_steps is None:
            raise InputError("the study data trains every number of images for as many steps; "
                             "give --steps and --optim.warmup_steps")
        if recipe.max_train_samples:
            raise InputError("the study data has its own numbers of images; give them with "
                             "--sizes, and leave out max_train_samples")
        trained = list(sizes)
    for n in trained:
        if n < classes:
            raise InputError(f"{n} training images are too few for {classes} classes; a study "
                             "needs at least one of each")
        if n > images:
            raise InputError(f"{recipe.data.name} has {images:,} training images, not {n:,}; "
                             "take smaller --sizes")


def _trained_on(recipe: Recipe, dataset: Dataset) -> int:
    return min(recipe.max_train_samples or len(dataset.train), len(dataset.train))


def _cells(study: Study, sizes: Sequence[int]) -> list[Cell]:
    return [(row, size) for row in study.rows for size in (sizes if study.by_images else (None,))]


def _study(study: Study, cells: Mapping[Cell, Sequence[Run]], dataset: Dataset) -> dict[str, Any]:
    """The results of a study, as plain data."""
    rows, outcomes = [], {}
    for (row, images), runs in cells.items():
        results = outcomes[row.label, images] = [read_outcome(run) for run in runs]
        mean, std = mean_and_std(results)
        rows.append({
            "label": row.label, "network": row.network, "images": images,
            **_cost(runs[0].recipe, dataset), "paper_top1": row.paper_top1,
            "runs": [{**asdict(o), "run": run.directory.name}
                     for o, run in zip(results, runs, strict=True)],
            "mean": mean, "std": std})
    sizes = list(dict.fromkeys(images for _, images in cells))
    comparisons = [asdict(compare(claim, outcomes[claim.one, n], outcomes[claim.other, n], n))
                   for claim in study.claims for n in sizes]
    return {"title": study.title, "rows": rows, "comparisons": comparisons}


def _cost(recipe: Recipe, dataset: Dataset) -> dict[str, int]:
    """Parameters, and multiply-adds per image."""
    card = recipe.card(dataset.train.classes, dataset.preprocess)
    size = card.preprocess.size
    with torch.device("meta"):
        network = build_network(card)
        image = torch.empty(1, card.preprocess.channels, size, size)
    return {"parameters": sum(p.numel() for p in network.parameters()),
            "multiply_adds": network_multiply_adds(network, image)}
