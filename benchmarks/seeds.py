"""Variance over seeds: top-1 accuracy of the last epoch of finished runs.

    torchrun ... -m cvt train --config recipes/cvt_nano_fashion_mnist.yaml --seed 0 --output runs/a
    torchrun ... -m cvt train --config recipes/cvt_nano_fashion_mnist.yaml --seed 1 --output runs/b
    python benchmarks/seeds.py runs/a runs/b

The runs have the same recipe except for the seed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from statistics import fmean, stdev

from cvt.train.recipe import Recipe
from timing import keep


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path)
    args = parser.parse_args()
    recipes = [Recipe.load(run / "recipe.yaml") for run in args.runs]
    if len({dataclasses.replace(recipe, seed=0) for recipe in recipes}) > 1 or len(
            {recipe.seed for recipe in recipes}) < len(recipes):
        parser.error("the runs differ in more than their seed, or not in it; give runs of one "
                     "recipe with different seeds")
    rows = []
    for run, recipe in zip(args.runs, recipes, strict=True):
        history = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        rows.append({"seed": recipe.seed, "epochs": len(history),
                     "top1": 100 * history[-1]["val_top1"], "val_loss": history[-1]["val_loss"],
                     "seconds": sum(row["seconds"] for row in history)})
        print(f"seed {recipe.seed}: {rows[-1]['top1']:.2f} % after {len(history)} epochs, "
              f"{rows[-1]['seconds'] / 60:.0f} minutes")
    top1 = [row["top1"] for row in rows]
    deviation = stdev(top1) if len(top1) > 1 else None
    print(f"mean {fmean(top1):.2f}" + ("" if deviation is None else
                                       f", standard deviation {deviation:.2f}"))
    name = f"seeds_{recipes[0].label}_{recipes[0].data.name}"
    print(keep(name, {"rows": rows, "mean": fmean(top1), "standard_deviation": deviation}))


if __name__ == "__main__":
    main()
