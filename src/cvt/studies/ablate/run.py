"""Studies from their recipes to tables, charts and verdicts; read top to bottom."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from cvt.data.dataset import Dataset
from cvt.data.fingerprint import digest
from cvt.data.load import load_dataset
from cvt.networks.build import build_network
from cvt.networks.complexity import network_multiply_adds
from cvt.studies.ablate.chart import draw
from cvt.studies.ablate.plan import RUNS, Run, plan_run
from cvt.studies.ablate.pool import default_jobs, train_all
from cvt.studies.ablate.report import to_markdown
from cvt.studies.ablate.results import Outcome, compare, mean_of, outcome
from cvt.studies.ablate.studies import STUDIES, Row, Study
from cvt.system.errors import InputError
from cvt.system.files import replace_file
from cvt.system.machine import describe_machine
from cvt.system.schema import read_mapping, write_mapping
from cvt.train.recipe import Recipe

RESULTS, VERSION = "ablation.json", 1

Say = Callable[[str], None]
Cell = tuple[Row, int | None]  # a configuration, and how many images it is trained on


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Over what each configuration of a study is repeated."""

    seeds: tuple[int, ...] = (0, 1, 2)
    """Of weights, order and augmentation; each configuration is trained once with each."""
    sizes: tuple[int, ...] = (100, 300, 1000, 3000, 10000)
    """How many training images, for the study `data`."""

    def __post_init__(self) -> None:
        for name in ("seeds", "sizes"):
            values = getattr(self, name)
            twice = sorted({v for v in values if values.count(v) > 1})
            if twice:
                raise InputError(f"--{name} has {twice[0]} twice; name each once, for the second "
                                 "would be the same run")
            least = 0 if name == "seeds" else 1
            if not values or min(values) < least:
                raise InputError(f"--{name} {' '.join(map(str, values))} must be whole numbers "
                                 f"from {least}")


def ablate(names: Sequence[str], recipe: Recipe, output: Path, *,
           sampling: Sampling = Sampling(), jobs: int | None = None,
           keep_weights: bool = False, say: Say = lambda _: None) -> dict[str, Any]:
    """Train what the studies `names` need and is not there yet; what ablation.json then holds.

    recipe: under which every configuration is trained; its model is the CvT that is studied. Below
    `output`: ablation.json, NAME.md and NAME.png for each study, models/ (the configurations) and
    runs/ (a directory each). Given again it trains only what is missing. jobs: runs at a time, by
    default one a core or a GPU. Raises InputError for what cannot be carried out, before anything
    is trained; StoppedError after a signal.
    """
    found = _earlier(output / RESULTS)
    dataset = load_dataset(recipe.data)
    _check(names, recipe, sampling, dataset)
    data = digest(dataset)
    planned = {name: {cell: [plan_run(recipe, cell[0], seed, output, data, cell[1])
                             for seed in sampling.seeds]
                      for cell in _cells(STUDIES[name], sampling)} for name in names}
    every = {run.directory: run for cells in planned.values() for runs in cells.values()
             for run in runs}
    missing = [run for run in every.values() if not run.done]
    if len(missing) < len(every):
        say(f"{len(every) - len(missing)} of {len(every)} runs are done already")
    if keep_weights and (lost := sum(run.without_weights for run in every.values())):
        say(f"--keep_weights comes too late for {lost} of them; to train those again, remove their "
            f"directories in {output / RUNS}")
    jobs = jobs or default_jobs(recipe.device)
    for done, run in enumerate(train_all(missing, jobs=jobs, keep_weights=keep_weights), 1):
        result = outcome(run)
        figure = "diverged" if result.top1 is None else (
            f"{result.top1:.2f} % in {result.seconds:.0f} s")
        say(f"{done}/{len(missing)} {run.directory.name}: {figure}")

    facts = {**describe_machine(), "runs at a time": str(jobs)}
    for name, cells in planned.items():
        study = {**_study(STUDIES[name], cells, dataset), "seeds": list(sampling.seeds),
                 "recipe": recipe.to_dict(), "facts": facts,
                 "data": {"name": recipe.data.name, "train": _trained_on(recipe, dataset),
                          "val": len(dataset.val)}}
        found["studies"][name] = study
        replace_file(output / f"{name}.md", partial(Path.write_text, data=to_markdown(name, study)))
        replace_file(output / f"{name}.png", partial(draw, study))
    write_mapping(found, output / RESULTS)
    return found


def _earlier(path: Path) -> dict[str, Any]:
    """The results that are there. Raises InputError where another version wrote them."""
    if not path.is_file():
        return {"version": VERSION, "studies": {}}
    found = read_mapping(path)
    if found.get("version") != VERSION or not isinstance(found.get("studies"), dict):
        raise InputError(f"{path} has version {found.get('version')!r}, this package writes "
                         f"{VERSION}; give another --output, or move the file away: the runs "
                         "beside it are used again")
    return found


def _check(names: Sequence[str], recipe: Recipe, sampling: Sampling, dataset: Dataset) -> None:
    if recipe.network != "cvt" or recipe.weights is not None:
        raise InputError("a study trains its own networks from random weights; leave out network "
                         "and weights")
    if recipe.patience:
        raise InputError(f"patience={recipe.patience} would end runs by the very images "
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
        trained = list(sampling.sizes)
    for n in trained:
        if n < classes:
            raise InputError(f"{n} training images are too few for {classes} classes; a study "
                             "needs at least one of each")
        if n > images:
            raise InputError(f"{recipe.data.name} has {images:,} training images, not {n:,}; "
                             "take smaller --sizes")


def _trained_on(recipe: Recipe, dataset: Dataset) -> int:
    return min(recipe.max_train_samples or len(dataset.train), len(dataset.train))


def _cells(study: Study, sampling: Sampling) -> list[Cell]:
    sizes = sampling.sizes if study.by_images else (None,)
    return [(row, size) for row in study.rows for size in sizes]


def _study(study: Study, cells: Mapping[Cell, Sequence[Run]], dataset: Dataset) -> dict[str, Any]:
    """What the runs of a study came to, as plain data."""
    rows, outcomes = [], {}
    for (row, images), runs in cells.items():
        found: list[Outcome] = [outcome(run) for run in runs]
        outcomes[row.label, images] = found
        mean, sd = mean_of(found)
        rows.append({
            "label": row.label, "network": row.network, "images": images,
            **_cost(runs[0].recipe, dataset), "paper_top1": row.paper_top1,
            "runs": [{**asdict(o), "run": run.directory.name}
                     for o, run in zip(found, runs, strict=True)],
            "mean": mean, "sd": sd})
    sizes = list(dict.fromkeys(images for _, images in cells))
    comparisons = [asdict(compare(claim, outcomes[claim.one, n], outcomes[claim.other, n], n))
                   for claim in study.claims for n in sizes]
    return {"title": study.title, "rows": rows, "comparisons": comparisons}


def _cost(recipe: Recipe, dataset: Dataset) -> dict[str, int]:
    """Parameters, and multiply-adds of one image."""
    card = recipe.card(dataset.train.classes, dataset.preprocess)
    size = card.preprocess.size
    with torch.device("meta"):
        network = build_network(card)
        image = torch.empty(1, card.preprocess.channels, size, size)
    return {"parameters": sum(p.numel() for p in network.parameters()),
            "multiply_adds": network_multiply_adds(network, image)}
