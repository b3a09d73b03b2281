"""Training speed of two processes over gloo relative to one process with two threads.

    python benchmarks/scaling.py [--rounds 3]

CvT-13 at 224 on two cores with a global batch of 8, measured alternately by `cvt train --dry_run`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys

from timing import keep, ratio, summary

BATCH = 8


def seconds(processes: int) -> float:
    """Duration of a training step, without the wait for images."""
    launcher = [] if processes == 1 else [
        "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    done = subprocess.run(
        [sys.executable, *launcher, "-m", "cvt", "train", "--model=cvt_13", "--image_size=224",
         f"--batch_size={BATCH}", "--device=cpu", "--dry_run", "--json"], check=True, text=True,
        stdout=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": str(2 // processes)})
    plan = json.loads(done.stdout)
    return plan["step_seconds"] - plan["waiting_seconds"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--print", action="store_true", help="keep no file")
    args = parser.parse_args()
    steps: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(args.rounds):
        for processes, seen in steps.items():
            seen.append(seconds(processes))
            print(processes, round(seen[-1], 3), flush=True)
    result = {"two_processes_against_one": ratio(steps[1], steps[2]), "batch": BATCH,
              "step": {f"{n} process{'es' * (n > 1)}": summary(seen) for n, seen in steps.items()}}
    print(result)
    if not args.print:
        keep("scaling", result)


if __name__ == "__main__":
    main()
