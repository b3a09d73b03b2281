"""Comparison of stems for images of 28 pixels: the reason for the first embedding of cvt_nano.

    python benchmarks/nano_stem.py [--images 12000] [--epochs 4] [--seeds 2] [--work DIR]

Trains cvt_nano with each stem (kernel/stride/padding) on training images of Fashion-MNIST, and
prints top-1 on the 10,000 test images after the last epoch, multiply-adds and time. With --work, an
interrupted comparison resumes with the same command.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from functools import partial
from pathlib import Path
from statistics import fmean

from cvt.config import VARIANTS, CvTConfig
from cvt.data.config import AugmentConfig, DataConfig
from cvt.data.fingerprint import digest
from cvt.data.load import load_dataset
from cvt.networks.complexity import multiply_adds
from cvt.studies.ablate.results import read_outcome
from cvt.studies.ablate.tables import Row
from cvt.studies.ablate.training import plan_run, train_all
from cvt.train.config import OptimConfig
from cvt.train.recipe import Recipe
from timing import keep


def with_stem(stem: str, config: CvTConfig) -> CvTConfig:
    kernel, stride, padding = map(int, stem.split("/"))
    first = dataclasses.replace(config.stages[0], embed_kernel=kernel, embed_stride=stride,
                                embed_padding=padding)
    return dataclasses.replace(config, stages=(first, *config.stages[1:]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=12_000)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--stems", nargs="+", default=["7/4/2", "7/2/3", "3/2/1"])
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--work", type=Path, help="directory of the runs (default: temporary)")
    args = parser.parse_args()
    recipe = Recipe(
        model="cvt_nano", data=DataConfig(name="fashion_mnist"), device="cpu",
        max_train_samples=args.images, epochs=1, passes_per_epoch=args.epochs, batch_size=128,
        augment=AugmentConfig(hflip=0.5),
        optim=OptimConfig(lr=2e-3, warmup_epochs=0.25, clip_grad=1.0))
    with tempfile.TemporaryDirectory() as scratch:
        data = digest(load_dataset(recipe.data))
        planned = {stem: [plan_run(recipe, Row(label=stem, change=partial(with_stem, stem)), seed,
                                   args.work or Path(scratch), data)
                          for seed in range(args.seeds)]
                   for stem in args.stems}
        left = [run for runs in planned.values() for run in runs if not run.done]
        for run in train_all(left, jobs=args.jobs):
            print(f"{run.directory.name}: {read_outcome(run).top1:.2f} %", flush=True)
        rows = [{"stem": stem,
                 "multiply_adds": multiply_adds(with_stem(stem, VARIANTS["cvt_nano"]), (28, 28)),
                 "top1": [read_outcome(run).top1 for run in runs],
                 "seconds": fmean(read_outcome(run).seconds for run in runs)}
                for stem, runs in planned.items()]
    for row in rows:
        print(f"{row['stem']}: {', '.join(f'{top1:.2f}' for top1 in row['top1'])} %, "
              f"{row['multiply_adds'] / 1e6:.1f} M multiply-adds, {row['seconds']:.0f} s")
    print(keep("nano_stem", {**{k: v for k, v in vars(args).items() if k != "work"},
                             "rows": rows}))


if __name__ == "__main__":
    main()
