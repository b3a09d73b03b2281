"""Muon against AdamW: `cvt_nano` on Fashion-MNIST, equally many steps at several learning rates.

    python benchmarks/optimizers.py [--images 10000] [--epochs 4] [--seeds 2] [--work DIR]

Top-1 accuracy is that of the last epoch, on the 10,000 test images. With --work the same command
continues where it was interrupted.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from statistics import fmean

from cvt.data.config import AugmentConfig, DataConfig
from cvt.data.fingerprint import digest
from cvt.data.load import load_dataset
from cvt.studies.ablate.results import read_outcome
from cvt.studies.ablate.tables import Row
from cvt.studies.ablate.training import plan_run, train_all
from cvt.train.config import OptimConfig
from cvt.train.recipe import Recipe
from timing import keep

RATES = (1e-3, 2e-3, 4e-3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--work", type=Path, help="directory of the runs (default: temporary)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        work = args.work or Path(scratch)
        planned = {}
        for name, momentum in (("adamw", 0.9), ("muon", 0.95)):
            for rate in RATES:
                recipe = Recipe(
                    model="cvt_nano", data=DataConfig(name="fashion_mnist"), device="cpu",
                    max_train_samples=args.images, epochs=1, passes_per_epoch=args.epochs,
                    batch_size=128, ema=0.99, augment=AugmentConfig(hflip=0.5), optim=OptimConfig(
                        name=name, lr=rate, momentum=momentum, warmup_epochs=0.1, clip_grad=1.0))
                row = Row(label=f"{name} {rate:g}")
                data = digest(load_dataset(recipe.data))
                planned[name, rate] = [plan_run(recipe, row, seed, work, data)
                                       for seed in range(args.seeds)]
        left = [run for runs in planned.values() for run in runs if not run.done]
        for run in train_all(left, jobs=args.jobs):
            print(f"{run.directory.name}: {read_outcome(run).top1:.2f} %", flush=True)
        rows = [{"optimizer": name, "lr": rate, "top1": [read_outcome(run).top1 for run in runs],
                 "mean": fmean(read_outcome(run).top1 for run in runs),
                 "seconds": fmean(read_outcome(run).seconds for run in runs)}
                for (name, rate), runs in planned.items()]
    for row in rows:
        print(f"{row['optimizer']:<6} {row['lr']:g}: {row['mean']:.2f} %, {row['seconds']:.0f} s")
    print(keep("optimizers", {**{k: v for k, v in vars(args).items() if k != "work"},
                              "rows": rows}))


if __name__ == "__main__":
    main()
