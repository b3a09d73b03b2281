"""Soak test: does the memory of a training run grow over half an hour?

    python benchmarks/soak.py [--minutes 30]

`cvt train` on Fashion-MNIST with worker processes, a checkpoint every 50 steps, moving average,
validation and TensorBoard. The resident memory of its processes is sampled every five seconds; the
drift is that of the last quarter relative to the second.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from timing import keep


def resident(pid: int) -> int:
    """Resident memory of a process and its children in megabytes."""
    total = 0
    for number in [pid, *children(pid)]:
        try:
            match = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{number}/status").read_text())
        except OSError:  # it has ended
            continue
        total += int(match[1]) // 1024 if match else 0
    return total


def children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(number) for number in text.split()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--print", action="store_true", help="keep no file")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        run = Path(name) / "run"
        trained = subprocess.Popen(
            [sys.executable, "-m", "cvt", "train", "--data.name=fashion_mnist", "--data.workers=1",
             "--max_train_samples=6400", "--augment.hflip=0.5", "--augment.mixup=0.2",
             "--batch_size=64", "--save_every=50", "--ema=0.999", "--epochs=10000", "--quiet",
             f"--output={run}"], env={**os.environ, "OMP_NUM_THREADS": "1"})
        seen: list[tuple[float, int]] = []
        start = time.monotonic()
        try:
            while (now := time.monotonic() - start) < 60 * args.minutes:
                if trained.poll() is not None:
                    raise SystemExit(f"the run ended with {trained.returncode}")
                seen.append((now, resident(trained.pid)))
                time.sleep(5)
        finally:
            trained.send_signal(signal.SIGTERM)
            code = trained.wait(timeout=120)
        epochs = len((run / "metrics.jsonl").read_text().splitlines())
        steps = max(int(p.name.removeprefix("step-")) for p in run.glob("checkpoints/step-*"))
    quarter = len(seen) // 4
    second, last = (median(mb for _, mb in part)
                    for part in (seen[quarter:2 * quarter], seen[-quarter:]))
    result = {"minutes": args.minutes, "epochs": epochs, "steps": steps, "exit_code": code,
              "second_quarter_mb": second, "last_quarter_mb": last,
              "drift_percent": round(100 * (last / second - 1), 2),
              "least_mb": min(mb for _, mb in seen[quarter:]), "most_mb": max(mb for _, mb in seen)}
    print(result)
    if not args.print:
        keep("soak", {**result, "megabytes_by_second": [(round(t), mb) for t, mb in seen[::12]]})


if __name__ == "__main__":
    main()
