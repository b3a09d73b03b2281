"""The Fashion-MNIST recipe, killed three times at random and resumed: the same weights?

    python benchmarks/killed_fashion_mnist.py [--epochs 10]

One run is undisturbed; the other is killed with SIGKILL at three random moments and resumed with
`--resume`. They run at the same time, each with one thread.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from cvt.weights.tensors import read_tensors
from timing import keep

ROOT = Path(__file__).parents[1]


def start(run: Path, epochs: int, *, resume: bool = False) -> subprocess.Popen[bytes]:
    how = ["--resume", str(run)] if resume else [
        "--config", str(ROOT / "recipes/cvt_nano_fashion_mnist.yaml"), f"--epochs={epochs}",
        "--save_every=50", "--device=cpu", f"--output={run}"]
    return subprocess.Popen([sys.executable, "-m", "cvt", "train", *how, "--quiet"],
                            env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)


def step(run: Path) -> int:
    """Of the newest checkpoint."""
    return max((int(p.name.removeprefix("step-")) for p in run.glob("checkpoints/step-*")),
               default=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--print", action="store_true", help="keep no file")
    args = parser.parse_args()
    rng, began, killed = random.Random(0), time.monotonic(), []
    steps = args.epochs * (60000 // 128)
    moments = sorted(rng.randrange(steps // 20, steps) for _ in range(3))
    with tempfile.TemporaryDirectory() as name:
        whole, cut = Path(name) / "whole", Path(name) / "cut"
        one, other = start(whole, args.epochs), start(cut, args.epochs)
        for moment in moments:
            while step(cut) < moment // 50 * 50:
                assert other.poll() is None
                time.sleep(0.5)
            time.sleep(rng.uniform(0, 5))
            other.send_signal(signal.SIGKILL)
            other.wait()
            killed.append(step(cut))
            other = start(cut, args.epochs, resume=True)
        codes = [one.wait(), other.wait()]
        equal = {}
        for file in ("last.safetensors", "best.safetensors"):
            ours, theirs = read_tensors(whole / file), read_tensors(cut / file)
            equal[file] = ours.keys() == theirs.keys() and all(
                torch.equal(ours[key], theirs[key]) for key in ours)
    result = {"epochs": args.epochs, "steps": steps, "killed_after_the_checkpoint_of_step": killed,
              "exit_codes": codes, "bit_equal": equal,
              "minutes": round((time.monotonic() - began) / 60, 1)}
    print(result)
    if not args.print:
        keep("killed_fashion_mnist", result)


if __name__ == "__main__":
    main()
