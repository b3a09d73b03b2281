"""Whole-process time of `cvt predict --model EXPORTED image.jpg` and of `cvt explain`, beside
Python's own.

    python benchmarks/start_up.py [--model cvt_13] [--rounds 9]

The network has random weights. One process of each in turn; the file cache is warm.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from cvt import Preprocess, create_model, save_model
from cvt.deploy.export import export
from timing import interleaved, keep, summary

EXPORTS = (("openvino", "fp32"), ("openvino", "bf16"), ("onnx", "fp32"))


def run(*args: str) -> None:
    subprocess.run([sys.executable, *args], check=True, stdout=subprocess.DEVNULL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="cvt_13")
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        model = create_model(args.model).eval()
        size = model.config.image_size
        classes = tuple(f"class {i}" for i in range(model.config.num_classes))
        save_model(home / "trained", model, Preprocess(size=size), classes)
        pixels = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
        image = home / "image.jpg"
        Image.fromarray(pixels).resize((500, 375), Image.Resampling.BICUBIC).save(image)

        candidates = {
            "python": partial(run, "-c", "pass"),
            "import numpy": partial(run, "-c", "import numpy"),
            "import openvino": partial(run, "-c", "import openvino"),
            "import onnxruntime": partial(run, "-c", "import onnxruntime"),
            "import torch": partial(run, "-c", "import torch"),
        }
        for to, precision in EXPORTS:
            place = home / f"{to}-{precision}"
            export(home / "trained", place, to, precision)
            candidates[f"cvt predict, {to} {precision}"] = partial(
                run, "-m", "cvt", "predict", str(image), "--model", str(place))
        candidates["cvt predict, not exported"] = partial(
            run, "-m", "cvt", "predict", str(image), "--model", str(home / "trained"))
        candidates["cvt explain"] = partial(
            run, "-m", "cvt", "explain", str(image), "--model", str(home / "trained"),
            "--output", str(home / "explained"))
        seconds = interleaved(candidates, args.rounds, warmup=1)
    rows = {name: summary(times) for name, times in seconds.items()}
    for name, row in rows.items():
        print(f"{name:<32} {row['median_s']:.2f} s   quartiles {row['quartile1_s']:.2f} to "
              f"{row['quartile3_s']:.2f}")
    print(keep("start_up", {"model": args.model, "size": size, "processes": rows}))


if __name__ == "__main__":
    main()
