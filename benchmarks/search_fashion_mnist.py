"""Is a searched network better than a random or a uniform one? On Fashion-MNIST.

    python benchmarks/search_fashion_mnist.py [--budget 20000000] [--work DIR]

Searches cvt_nano at 28 pixels under a budget, then trains from random weights, with every seed and
two at a time: the best networks of evolution and of random search, the uniform networks within the
budget, from the most expensive on, and cvt_nano itself, which exceeds it. The test images are used
only after the last step. With --work the same command resumes where it was interrupted.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import time
from functools import partial
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any

from cvt.config import VARIANTS, CvTConfig
from cvt.data.config import AugmentConfig, DataConfig
from cvt.data.fingerprint import digest
from cvt.data.load import load_dataset
from cvt.networks.complexity import multiply_adds, parameters
from cvt.networks.supernet import GENES, choice_of, chosen
from cvt.studies.ablate.results import interval, mean_and_std, read_outcome
from cvt.studies.ablate.tables import Row
from cvt.studies.ablate.training import plan_run, train_all
from cvt.studies.search.config import SearchConfig
from cvt.studies.search.result import Result
from cvt.studies.search.run import search
from cvt.train.config import OptimConfig
from cvt.train.recipe import Recipe
from timing import keep

SIZE = (28, 28)


def a_recipe(images: int, passes: int, **more: Any) -> Recipe:
    """One epoch of several passes: the test images are scored once, and choose nothing."""
    return Recipe(
        model="cvt_nano", data=DataConfig(name="fashion_mnist"), max_train_samples=images,
        epochs=1, passes_per_epoch=passes, batch_size=64, ema=0.99, device="cpu",
        augment=AugmentConfig(crop="shift", hflip=0.5),
        optim=OptimConfig(lr=1e-3, warmup_epochs=0.1, clip_grad=1.0), **more)


def candidates(result: Result, limit: int) -> dict[str, CvTConfig]:
    """The networks to train, by name; at most `limit` uniform ones."""
    uniform = [chosen(result.model, (gene,) * len(result.best.choice)) for gene in GENES]
    within = sorted((config for config in uniform if multiply_adds(config, SIZE) <= result.budget),
                    key=lambda config: -multiply_adds(config, SIZE))
    return {"evolution": result.config(result.best),
            "random search": result.config(result.best_random),
            **{f"uniform, stride {config.stages[0].stride_kv}, ratio "
               f"{config.stages[0].mlp_ratio:g}": config for config in within[:limit]},
            "cvt_nano, above the budget": VARIANTS["cvt_nano"]}


def trained(result: Result, args: argparse.Namespace, work: Path) -> list[dict[str, Any]]:
    """Every candidate's test top-1 in percent, a seed each."""
    base = a_recipe(args.images, args.passes)
    data = digest(load_dataset(base.data))
    planned = {name: [plan_run(base, Row(label=name, change=partial(_as, wanted)), seed, work, data)
                      for seed in range(args.seeds)]
               for name, wanted in candidates(result, args.uniform).items()}
    # Both methods may have the same best network, which is then trained once.
    every = {run.directory: run for runs in planned.values() for run in runs}
    for run in train_all([run for run in every.values() if not run.done], jobs=args.jobs):
        print(f"{run.directory.name}: {read_outcome(run).top1:.2f} %", flush=True)
    rows = []
    for name, wanted in candidates(result, args.uniform).items():
        outcomes = [read_outcome(run) for run in planned[name]]
        mean, deviation = mean_and_std(outcomes)
        rows.append({"network": name, "choice": choice_of(wanted),
                     "multiply_adds": multiply_adds(wanted, SIZE),
                     "parameters": parameters(wanted), "top1": [o.top1 for o in outcomes],
                     "mean": mean, "standard_deviation": deviation})
    return rows


def _as(wanted: CvTConfig, config: CvTConfig) -> CvTConfig:
    return dataclasses.replace(config, stages=wanted.stages)


def difference(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Points of test top-1, paired by seed, with Student's 95 % interval of their mean."""
    points = [a - b for a, b in zip(one["top1"], other["top1"], strict=True)]
    low, high = interval(points)
    return {"one": one["network"], "other": other["network"], "points": points,
            "mean": fmean(points), "low": low, "high": high}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--budget", type=int, default=20_000_000)
    parser.add_argument("--images", type=int, default=8000, help="to train on, in the search too")
    parser.add_argument("--supernet_passes", type=int, default=6)
    parser.add_argument("--held_out", type=int, default=2000)
    parser.add_argument("--population", type=int, default=15)
    parser.add_argument("--generations", type=int, default=4)
    parser.add_argument("--passes", type=int, default=4, help="of each network trained in the end")
    parser.add_argument("--uniform", type=int, default=3, help="uniform networks to train")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--work", type=Path, help="where search and runs go (default: nowhere)")
    parser.add_argument("--print", action="store_true", help="keep no file")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        work = args.work or Path(scratch)
        began = time.perf_counter()
        result = search(
            a_recipe(args.images, args.supernet_passes, network="supernet"),
            SearchConfig(budget=args.budget, population=args.population,
                         generations=args.generations, held_out=args.held_out),
            work / "search", progress=lambda line: print(line, flush=True))
        searched = time.perf_counter()
        rows = trained(result, args, work)
        ended = time.perf_counter()

    differences = [difference(one, other) for one, other in combinations(rows, 2)]
    for row in rows:
        print(f"{row['network']}: {row['mean']:.2f} %, {row['multiply_adds'] / 1e6:.2f} M "
              f"multiply-adds, each {', '.join(f'{top1:.2f}' for top1 in row['top1'])}")
    for d in differences:
        print(f"{d['one']} less {d['other']}: {d['mean']:+.2f} points"
              + (f" ({d['low']:+.2f} to {d['high']:+.2f})" if d["low"] is not None else ""))
    if not args.print:
        options = {k: v for k, v in vars(args).items() if k not in ("work", "print")}
        print(keep("search_fashion_mnist", {
            **options, "min_multiply_adds": result.min_multiply_adds,
            "max_multiply_adds": result.max_multiply_adds, "networks": result.networks,
            "search": {"evolution": [dataclasses.asdict(s) for s in result.evolution],
                       "random": [dataclasses.asdict(s) for s in result.random]},
            "search_minutes": round((searched - began) / 60, 1),
            "training_minutes": round((ended - searched) / 60, 1),
            "networks_trained": rows, "differences": differences}))


if __name__ == "__main__":
    main()
