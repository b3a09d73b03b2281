"""A folder of photos through `Predictor`, compared with the network's throughput on ready batches.

    python benchmarks/streaming.py [--model cvt_13] [--images 2000] [--rounds 8]

The folder is divided into one part per round. Each round classifies a part from files, and then as
many images from one ready batch. The network has random weights. Resident memory is sampled
throughout.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import tempfile
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image

from cvt import Preprocess, create_model, save_model
from cvt.data.images import read_image
from cvt.data.preprocess import prepare
from cvt.deploy.export import export
from cvt.deploy.manifest import Format, Precision
from cvt.predict.predictor import Predictor
from timing import interleaved, keep, ratio, summary


def photo(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Shapes of every size with noise: as costly to decode as a photo of its size."""
    total = np.zeros((height, width, 3), np.float32)
    for cells, weight in ((3, 0.5), (12, 0.3), (60, 0.2)):
        coarse = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        total += weight * np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))
    total += rng.normal(0, 6, total.shape)
    return Image.fromarray(total.clip(0, 255).astype(np.uint8))


def write_images(home: Path, n: int, width: int, height: int) -> list[Path]:
    rng = np.random.default_rng(0)
    different = [photo(rng, width, height) for _ in range(min(n, 40))]
    home.mkdir()
    paths = [home / f"{i:05}.jpg" for i in range(n)]
    for i, path in enumerate(paths):
        # A rotated image is another file to read and decode, and quick to make.
        base = different[i % len(different)]
        base.rotate(i // len(different)).save(path, quality=90)
    return paths


def write_model(home: Path, name: str, to: Format, precision: Precision) -> None:
    model = create_model(name).eval()
    save_model(home / "trained", model, Preprocess(size=model.config.image_size),
               tuple(f"class {i}" for i in range(model.config.num_classes)))
    export(home / "trained", home / "exported", to, precision)


def resident() -> float:
    """Resident memory of this process in MB."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines()
                if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="cvt_13")
    parser.add_argument("--to", default="openvino", choices=["openvino", "onnx", "torch"])
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--size", type=int, nargs=2, default=[500, 375], metavar=("W", "H"))
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--batch_size", type=int, default=32)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        paths = write_images(home / "images", args.images, *args.size)
        # In a process of its own, because an export keeps hundreds of megabytes.
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            pool.submit(write_model, home, args.model, args.to, args.precision).result()
        predictor = Predictor(home / "exported", batch_size=args.batch_size)
        preprocess = predictor.card.preprocess

        n = len(paths) // args.rounds
        parts = itertools.cycle([paths[i * n:(i + 1) * n] for i in range(args.rounds)])
        batch = np.stack([prepare(preprocess, read_image(path))
                          for path in paths[:args.batch_size]])
        memory: list[list[float]] = []

        def from_files() -> None:
            memory.append([])
            for prediction in predictor(next(parts)):
                assert prediction.classes, prediction.error

        def ready() -> None:
            for start in range(0, n, args.batch_size):
                predictor.logits(batch[:n - start])

        def read_only() -> None:
            for path in paths[:args.batch_size]:
                prepare(preprocess, read_image(path))

        read_only()
        start = time.perf_counter()
        read_only()
        reading = args.batch_size / (time.perf_counter() - start)
        for _ in predictor(paths[:2 * args.batch_size]):
            pass
        predictor.logits(batch)

        done = threading.Event()

        def sample() -> None:
            while not done.wait(0.2):
                if memory:
                    memory[-1].append(resident())

        sampler = threading.Thread(target=sample)
        sampler.start()
        try:
            seconds = interleaved({"files": from_files, "ready": ready}, args.rounds, warmup=0)
        finally:
            done.set()
            sampler.join()
    rates = {key: n / statistics.median(times) for key, times in seconds.items()}
    # Reading and the network share the cores, which limits the throughput to this fraction.
    possible = 1 / (1 + rates["ready"] / (reading * (os.cpu_count() or 1)))
    # The samples of a round include the ready batches that follow it.
    peaks = [max(samples) for samples in memory if samples]
    result = {
        "model": args.model, "format": args.to, "precision": args.precision,
        "images": n * args.rounds, "size": args.size, "batch_size": args.batch_size,
        "rounds": args.rounds, "img_per_s": rates, "reading_img_per_s_one_thread": reading,
        "of_ready_rate_possible": possible,
        "of_ready_rate": ratio(seconds["ready"], seconds["files"]),
        "seconds": {key: summary(times) for key, times in seconds.items()},
        "resident_mb_peak_by_round": peaks,
    }
    print(f"from files {rates['files']:.1f} img/s, ready batches {rates['ready']:.1f} img/s: "
          f"{result['of_ready_rate']['median']:.3f} of it (quartiles "
          f"{result['of_ready_rate']['quartile1']:.3f} to "
          f"{result['of_ready_rate']['quartile3']:.3f}; {possible:.3f} possible); "
          f"reading alone, one thread, {reading:.0f} img/s")
    print("resident MB, peak of each round:", *(f"{peak:.0f}" for peak in peaks))
    print(keep("streaming", result))


if __name__ == "__main__":
    main()
