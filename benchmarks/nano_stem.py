"""Which stem serves images of 28 pixels best? What cvt_nano's first token embedding rests on.

    python benchmarks/nano_stem.py [--pictures 12000] [--epochs 4] [--stems 7/4/2 3/2/1 ...]

Trains cvt_nano with each stem (kernel/stride/padding) from the same seed on the first training
pictures of Fashion-MNIST, and prints test accuracy, multiply-adds and time.
"""

from __future__ import annotations

import argparse
import dataclasses
import time

import torch

from cvt.complexity import multiply_adds
from cvt.config import VARIANTS, CvTConfig
from cvt.data.augment import training_transform
from cvt.data.builtin import fashion_mnist
from cvt.data.config import AugmentConfig
from cvt.data.loader import TrainLoader, evaluation_batches
from cvt.data.randomness import seed_all
from cvt.evaluate.run import classify
from cvt.model import CvT
from cvt.train.config import OptimConfig
from cvt.train.engine import Engine
from cvt.train.optim import build_optimizer, learning_rate
from cvt.train.recipe import Recipe
from timing import keep

AUGMENT = AugmentConfig(hflip=0.5)
OPTIM = OptimConfig(lr=2e-3, warmup_epochs=1, clip_grad=1.0)


def with_stem(stem: str) -> CvTConfig:
    kernel, stride, padding = map(int, stem.split("/"))
    nano = VARIANTS["cvt_nano"]
    first = dataclasses.replace(nano.stages[0], embed_kernel=kernel, embed_stride=stride,
                                embed_padding=padding)
    return dataclasses.replace(nano, stages=(first, *nano.stages[1:]))


def accuracy(config: CvTConfig, pictures: int, epochs: int, seed: int) -> tuple[float, float]:
    """Test top-1 and seconds of training."""
    data = fashion_mnist()
    some = dataclasses.replace(data.train, labels=data.train.labels[:pictures],
                               names=data.train.names[:pictures])
    recipe = Recipe(optim=OPTIM, augment=AUGMENT, batch_size=128, epochs=epochs, seed=seed)
    loader = TrainLoader(some, training_transform(data.preprocess, AUGMENT), batch_size=128,
                         seed=seed)
    seed_all(seed)
    model = CvT(config).train()
    engine = Engine(recipe, model, build_optimizer(model, OPTIM))
    start, steps = time.perf_counter(), epochs * len(loader)
    for epoch in range(epochs):
        for step, batch in enumerate(loader.epoch(epoch), epoch * len(loader)):
            seed_all(seed, step)
            engine.step(batch, learning_rate(OPTIM, step, steps, len(loader)))
    seconds = time.perf_counter() - start
    logits, labels = classify(model, evaluation_batches(data.val, data.preprocess, batch_size=256))
    return (logits.argmax(1) == labels).double().mean().item(), seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=12_000)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--stems", nargs="+", default=["7/4/2", "7/2/3", "3/2/1"])
    args = parser.parse_args()
    rows = []
    for stem in args.stems:
        config = with_stem(stem)
        runs = [accuracy(config, args.pictures, args.epochs, seed) for seed in range(args.seeds)]
        rows.append({"stem": stem, "multiply_adds": multiply_adds(config, (28, 28)),
                     "top1": [top1 for top1, _ in runs], "seconds": [s for _, s in runs]})
        print(f"{stem}: top-1 {', '.join(f'{top1:.2%}' for top1, _ in runs)}, "
              f"{rows[-1]['multiply_adds'] / 1e6:.1f} M multiply-adds, "
              f"{sum(s for _, s in runs) / len(runs):.0f} s", flush=True)
    print(keep("nano_stem", {**vars(args), "threads": torch.get_num_threads(), "rows": rows}))


if __name__ == "__main__":
    main()
