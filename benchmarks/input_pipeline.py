"""Training batches from JPEG files, ours and timm's `create_loader`, without training.

    python benchmarks/input_pipeline.py [--rounds 15] [--only small large stages]

The paper's augmentation at 224 pixels: RandomResizedCrop with the bicubic filter, flips,
RandAugment rand-m9-mstd0.5-inc1, random erasing by noise. Two persistent worker processes each;
float32 batches, normalized, on the CPU. timm is measured with its prefetcher and without. The
loaders take turns; each turn starts with warm-up batches, until prefetched ones are used up and the
other loader's workers are idle. small: images of 500x375 pixels, as in ImageNet; large:
photographs of 3000x2000. stages: milliseconds per step and image, in one thread.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import create_dataset, create_loader, create_transform
from timm.data.auto_augment import RandAugment
from timm.data.loader import PrefetchLoader, fast_collate
from torch import Tensor
from torchvision.transforms import Compose

from cvt.config import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from cvt.data.augment import (
    RandomResizedCrop,
    decode_crop,
    fix_posterize,
    resize,
    training_transform,
)
from cvt.data.config import AugmentConfig
from cvt.data.loader import TrainLoader
from cvt.data.pipeline import Sample, pack
from cvt.data.preprocess import to_array
from cvt.data.randomness import seed_all
from cvt.data.sources.folder import folder
from streaming import photo
from timing import keep, ratio, summary

SIZE = 224
AUGMENT = AugmentConfig(crop="resized", hflip=0.5, rand_augment="rand-m9-mstd0.5-inc1",
                        erasing=0.25)
DRAWS = itertools.count()  # gives each image its own seed
PREPROCESS = Preprocess(size=SIZE, mean=IMAGENET_MEAN, std=IMAGENET_STD)
TIMM: dict[str, Any] = {
    "is_training": True, "interpolation": "bicubic", "scale": AUGMENT.scale, "hflip": AUGMENT.hflip,
    "color_jitter": 0.0, "auto_augment": AUGMENT.rand_augment, "re_prob": AUGMENT.erasing,
    "re_mode": "pixel", "mean": IMAGENET_MEAN, "std": IMAGENET_STD}


def write_images(home: Path, n: int, size: tuple[int, int], names: int) -> float:
    """Write `n` training files of two classes with `names` hard links each; returns mean bytes."""
    rng = np.random.default_rng(0)
    different = [photo(rng, *size) for _ in range(min(n, 40))]
    for half, label in itertools.product(("train", "val"), ("a", "b")):
        (home / half / label).mkdir(parents=True)
    for i in range(n):
        first = home / "train" / "ab"[i % 2] / f"{i:05}-0.jpg"
        base = different[i % len(different)]
        base.rotate(i // len(different)).save(first, quality=90, subsampling="4:2:0")
        # Hard links make an epoch long while the images fit in the page cache.
        for name in range(1, names):
            os.link(first, first.with_name(f"{i:05}-{name}.jpg"))
        if i < 2:
            os.link(first, home / "val" / "ab"[i] / first.name)
    return statistics.mean(path.stat().st_size for path in (home / "train").rglob("*-0.jpg"))


def our_batches(home: Path, batch: int, workers: int) -> Iterator[object]:
    loader = TrainLoader(folder(home, 0.2, 0).train, training_transform(PREPROCESS, AUGMENT),
                         batch_size=batch, seed=0, workers=workers)
    for epoch in itertools.count():
        yield from loader.epoch(epoch)


def timms_batches(home: Path, batch: int, workers: int, prefetcher: bool) -> Iterator[object]:
    loader = create_loader(create_dataset("", root=str(home), split="train"), (3, SIZE, SIZE),
                           batch, num_workers=workers, persistent_workers=True,
                           use_prefetcher=prefetcher, device=torch.device("cpu"), **TIMM)
    fix(loader.dataset.transform)
    while True:
        yield from loader


def processor_seconds() -> float:
    """CPU time of this process and its children."""
    ticks = 0
    for process in (os.getpid(), *(child.pid for child in multiprocessing.active_children())):
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def fix(transform: Compose) -> None:
    """Let timm's transform run with Pillow 12 and later."""
    for step in transform.transforms:
        if isinstance(step, RandAugment):
            fix_posterize(step)


def in_turns(home: Path, *, batch: int, workers: int, rounds: int, skip: int, count: int
             ) -> dict[str, Any]:
    """Seconds for `count` batches in every turn, after `skip` warm-up batches."""
    loaders = {"ours": our_batches(home, batch, workers),
               "timm, prefetcher": timms_batches(home, batch, workers, True),
               "timm, no prefetcher": timms_batches(home, batch, workers, False)}
    seconds: dict[str, list[float]] = {name: [] for name in loaders}
    processor: dict[str, list[float]] = {name: [] for name in loaders}
    for i in range(rounds + 1):
        names = list(loaders)
        for name in names[i % 3:] + names[:i % 3]:
            for _ in range(skip):
                next(loaders[name])
            start, before = time.perf_counter(), processor_seconds()
            for _ in range(count):
                images, _ = next(loaders[name])
                assert images.shape == (batch, 3, SIZE, SIZE)
                assert images.dtype == torch.float32
            if i:  # the first round starts the processes
                seconds[name].append(time.perf_counter() - start)
                processor[name].append(processor_seconds() - before)
    best = min((name for name in seconds if name != "ours"),
               key=lambda name: statistics.median(seconds[name]))
    rows = {name: {**summary(s), "img_per_s": batch * count / statistics.median(s),
                   "processor_ms_per_img":
                       1000 * statistics.median(processor[name]) / (batch * count)}
            for name, s in seconds.items()}
    against = {name: ratio(s, seconds["ours"]) for name, s in seconds.items() if name != "ours"}
    work = {name: ratio(s, processor["ours"]) for name, s in processor.items() if name != "ours"}
    for name, row in rows.items():
        print(f"{name:<20}{row['img_per_s']:7.1f} img/s "
              f"[{batch * count / row['quartile3_s']:.1f}, "
              f"{batch * count / row['quartile1_s']:.1f}], "
              f"{row['processor_ms_per_img']:.2f} ms of CPU time per image")
    for what, ratios in (("images/s", against), ("processor time", work)):
        print(f"{what}: ours is {ratios[best]['median']:.2f}x [{ratios[best]['quartile1']:.2f}, "
              f"{ratios[best]['quartile3']:.2f}] that of {best}")
    return {"rounds": rounds, "batch": batch, "workers": workers, "skipped_batches": skip,
            "counted_batches": count,
            "rows": rows, "timms_best": best, "ours_over_timm": against,
            "processor_time_timm_over_ours": work}


class Clock:
    """Adds up the time of each step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def __call__(self, name: str, step: Callable[..., Any], *args: Any) -> Any:
        start = time.perf_counter()
        result = step(*args)
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
        return result


def our_stages(paths: list[Path], clock: Clock) -> Tensor:
    pipeline = training_transform(PREPROCESS, AUGMENT)
    crop, erase = pipeline.read, pipeline.erase
    assert isinstance(crop, RandomResizedCrop)
    assert erase is not None
    flip, rand_augment = pipeline.steps
    samples = []
    for path in paths:
        data = clock("read", path.read_bytes)
        clock("seed", seed_all, 0, 0, next(DRAWS))
        part = clock("decode", decode_crop, data, path.name, crop.draw, SIZE)
        image = clock("crop, resize", resize, part, SIZE, "bicubic")
        image = clock("RandAugment", rand_augment, clock("flip", flip, image))
        pixels = clock("to bytes", lambda image=image: np.array(to_array(PREPROCESS, image)))
        patch = clock("erase", erase, 3, SIZE, SIZE)
        samples.append(Sample(torch.from_numpy(pixels), patch))
    return clock("normalise", clock("collate", pack, samples).normalize, PREPROCESS)


def timms_stages(paths: list[Path], clock: Clock) -> Tensor:
    transform = create_transform(SIZE, use_prefetcher=True, **TIMM)
    fix(transform)
    crop, flip, rand_augment, to_tensor = transform.transforms
    finish = PrefetchLoader([], IMAGENET_MEAN, IMAGENET_STD, device=torch.device("cpu"),
                            re_prob=AUGMENT.erasing, re_mode="pixel")
    samples = []
    for path in paths:
        with clock("read", path.open, "rb") as file:
            image = clock("decode", lambda file=file: Image.open(file).convert("RGB"))
        image = clock("crop, resize", crop, image)
        image = clock("RandAugment", rand_augment, clock("flip", flip, image))
        samples.append((clock("to bytes", to_tensor, image), 0))
    pixels, _ = clock("collate", fast_collate, samples)
    x = clock("normalise", lambda: pixels.float().sub_(finish.mean).div_(finish.std))
    return clock("erase", finish.random_erasing, x)


def stages(home: Path, rounds: int, n: int) -> dict[str, dict[str, float]]:
    """Median milliseconds of each step per image."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a worker
    paths = sorted((home / "train").rglob("*-0.jpg"))
    clocks_of: dict[str, list[Clock]] = {"ours": [], "timm": []}
    for i in range(rounds + 2):
        part = [paths[(i * n + j) % len(paths)] for j in range(n)]
        # Alternating, because the second finds the files in the processor's cache.
        for name, run in [("ours", our_stages), ("timm", timms_stages)][::(-1) ** i]:
            clock = Clock()
            run(part, clock)
            if i > 1:
                clocks_of[name].append(clock)
    torch.set_num_threads(threads)
    table = {name: {step: 1000 / n * statistics.median(clock.seconds[step] for clock in clocks)
                    for step in clocks[0].seconds} for name, clocks in clocks_of.items()}
    for name, row in table.items():
        print(f"{name:<6}" + ", ".join(f"{step} {ms:.3f}" for step, ms in row.items())
              + f"; together {sum(row.values()):.2f} ms per image")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--only", nargs="*", default=["small", "large", "stages"])
    args = parser.parse_args()
    result: dict[str, Any] = {"threads": torch.get_num_threads()}
    cases = {"small": ((500, 375), args.images, {"rounds": args.rounds, "batch": 64, "skip": 8,
                                                   "count": 12}),
             "large": ((3000, 2000), 40, {"rounds": args.rounds // 2, "batch": 16, "skip": 6,
                                          "count": 5})}
    for name, (size, n, turns) in cases.items():
        if name not in args.only:
            continue
        with tempfile.TemporaryDirectory() as directory:
            home = Path(directory)
            mean_bytes = write_images(home, n, size, names=8 if n > 100 else 50)
            print(f"{name}: {size[0]}x{size[1]}, {mean_bytes / 1000:.0f} kB an image")
            result[name] = {"size": size, "images": n, "bytes": mean_bytes, **in_turns(
                home, workers=args.workers, **turns)}
            if "stages" in args.only:
                result[name]["stages_ms"] = stages(home, args.rounds, 64 if n > 100 else 16)
    print(keep("input_pipeline", result))


if __name__ == "__main__":
    main()
