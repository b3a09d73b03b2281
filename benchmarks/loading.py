"""Cost of loading and converting weights: time and peak memory.

    python benchmarks/loading.py [--rounds 15] [--only time load convert]

Random weights. Time: CvT-13 from a safetensors file into a ready model, against the minimum of any
loader, `safetensors.torch.load_file` and building the network on the meta device; interleaved
in one process. Memory: CvT-W24 (1.1 GB), each measurement in a process of its own, as the growth of
its resident set, mapped pages counted.
"""

from __future__ import annotations

import argparse
import multiprocessing
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file

import cvt
from timing import interleaved, keep, ratio, summary


def saved(name: str, directory: Path) -> Path:
    """Save an untrained model; returns its directory."""
    model = cvt.CvT(cvt.VARIANTS[name])
    size = model.config.image_size
    preprocess = cvt.Preprocess(size=size, crop=1.0, mode="squash") if size == 384 else (
        cvt.Preprocess(size=size))
    cvt.save_model(directory / name, model, preprocess, tuple(map(str, range(1000))))
    return directory / name


def in_a_process(call: Callable[..., None], *args: object) -> dict[str, float]:
    """Peak resident set of a process in MB: before the call, and after."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_measured, args=(queue, call, args))
    process.start()
    before, after = queue.get()
    process.join()
    return {"before_mb": before, "peak_mb": after, "growth_mb": after - before}


def _measured(queue: multiprocessing.Queue[tuple[float, float]], call: Callable[..., None],
              args: tuple[object, ...]) -> None:
    cvt.create_model("cvt_nano")  # imports before the measured call
    before = peak_mb()
    call(*args)
    queue.put((before, peak_mb()))


def peak_mb() -> float:
    """Peak resident set of this process; rusage would include its parent's memory."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def load(path: Path) -> None:
    cvt.load_model(path)


def load_and_run(path: Path) -> None:
    model, _ = cvt.load_model(path)
    with torch.inference_mode():
        model(torch.randn(1, 3, 64, 64))


def convert(source: Path, destination: Path, to: str) -> None:
    cvt.convert(source, destination, to)  # type: ignore[arg-type]


def time_of_loading(path: Path, rounds: int) -> dict[str, object]:
    def least() -> None:
        load_file(path / "best.safetensors")
        with torch.device("meta"):
            cvt.CvT(cvt.VARIANTS["cvt_13"])

    seconds = interleaved({"least": least, "cvt": lambda: cvt.load_model(path)}, rounds)
    slower = ratio(seconds["cvt"], seconds["least"])
    print(f"CvT-13, safetensors to a ready model: {summary(seconds['cvt'])['median_s'] * 1e3:.0f} "
          f"ms, {slower['median']:.2f}x [{slower['quartile1']:.2f}, {slower['quartile3']:.2f}] of "
          f"load_file and a meta build, {summary(seconds['least'])['median_s'] * 1e3:.0f} ms")
    return {**{name: summary(s) for name, s in seconds.items()}, "cvt_over_least": slower}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", nargs="+", default=["time", "load", "convert"])
    args = parser.parse_args()
    result: dict[str, object] = {"threads": torch.get_num_threads()}
    home = Path(tempfile.mkdtemp(prefix="cvt-loading-"))
    try:
        if "time" in args.only:
            result["time"] = time_of_loading(saved("cvt_13", home), args.rounds)
        if "load" in args.only or "convert" in args.only:
            place = saved("cvt_w24", home)
            size = (place / "best.safetensors").stat().st_size / 2**20
            result["w24_weights_mb"] = size
        if "load" in args.only:
            for name, call in (("load", load), ("load_and_run", load_and_run)):
                memory = in_a_process(call, place)
                result[f"w24_{name}"] = {**memory, "of_weights": memory["growth_mb"] / size}
                print(f"CvT-W24, {name}: {memory['growth_mb']:.0f} MB, "
                      f"{memory['growth_mb'] / size:.2f}x of its {size:.0f} MB of weights")
        if "convert" in args.only:
            source, rows = place, {}
            for to in ("official", "huggingface", "timm", "native"):
                target = home / ("w24.pth" if to == "official" else f"w24_{to}")
                rows[to] = in_a_process(convert, source, target, to)
                print(f"CvT-W24 to {to}: peak {rows[to]['peak_mb']:.0f} MB", flush=True)
                if source != place:
                    shutil.rmtree(source) if source.is_dir() else source.unlink()
                source = target
            same = all(torch.equal(a, b) for a, b in zip(
                load_file(place / "best.safetensors").values(),
                load_file(source / "best.safetensors").values(), strict=True))
            print(f"bit-equal after all four: {same}")
            result["w24_convert"] = {**rows, "bit_equal_after_all": same}
    finally:
        shutil.rmtree(home)
    print(keep("loading", result))


if __name__ == "__main__":
    main()
