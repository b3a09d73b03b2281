"""Overhead of logging, checkpoints and metrics in training.

    python benchmarks/train_overhead.py [--epochs 3]

`cvt_nano` on Fashion-MNIST, whose steps are short, so that the overhead is largest: with a moving
average, TensorBoard, and a checkpoint every 50 steps. The overhead is the time of an epoch without
forward and backward passes, the wait for images, the moving average and the validation.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import torch
from timm.utils import ModelEmaV3

from cvt.data.config import AugmentConfig, DataConfig
from cvt.data.loader import TrainLoader
from cvt.train import loop
from cvt.train.config import OptimConfig
from cvt.train.engine import Engine
from cvt.train.log import Log
from cvt.train.recipe import Recipe
from timing import keep

spent: Counter[str] = Counter()


def timed(owner: object, name: str, what: str) -> None:
    call: Callable[..., object] = getattr(owner, name)

    def measured(*args: object, **kwargs: object) -> object:
        start = time.perf_counter()
        try:
            return call(*args, **kwargs)
        finally:
            spent[what] += time.perf_counter() - start

    setattr(owner, name, measured)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--print", action="store_true", help="keep no file")
    args = parser.parse_args()
    timed(Engine, "step", "step")
    timed(ModelEmaV3, "update", "moving average")
    timed(loop, "validate", "validation")
    timed(loop, "_save", "checkpoints")
    timed(loop, "_write_weights", "weights of the epoch")
    timed(Log, "step", "log")
    timed(Log, "epoch", "log")
    epoch = TrainLoader.epoch

    def waited(self: TrainLoader, *which: object) -> Iterator[object]:
        batches = epoch(self, *which)  # type: ignore[arg-type]
        while True:
            before = time.perf_counter()
            batch = next(batches, None)
            spent["wait for images"] += time.perf_counter() - before
            if batch is None:
                return
            yield batch

    TrainLoader.epoch = waited  # type: ignore[assignment, method-assign]
    timed(loop, "_epoch", "epoch")
    rows = []
    train_epoch = loop._epoch

    def counted(*given: object) -> None:
        spent.clear()
        train_epoch(*given)  # type: ignore[arg-type]
        rows.append(dict(spent))

    loop._epoch = counted  # type: ignore[assignment]
    recipe = Recipe(data=DataConfig(name="fashion_mnist"), augment=AugmentConfig(hflip=0.5),
                    optim=OptimConfig(warmup_epochs=0), epochs=args.epochs, batch_size=64,
                    ema=0.999, save_every=50, max_train_samples=6400)
    with tempfile.TemporaryDirectory() as name:
        loop.train(recipe, Path(name) / "run", quiet=True)
    training = ("step", "moving average", "wait for images")
    shares = [1 - sum(row[what] for what in training) / (row["epoch"] - row["validation"])
              for row in rows]
    result = {
        "threads": torch.get_num_threads(), "steps_an_epoch": 100,
        "overhead_percent": round(100 * median(shares), 2),
        "overhead_percent_by_epoch": [round(100 * share, 2) for share in shares],
        "seconds_of_an_epoch": {what: round(median(row[what] for row in rows), 3)
                                for what in rows[0]}}
    print(result)
    if not args.print:
        keep("train_overhead", result)


if __name__ == "__main__":
    main()
