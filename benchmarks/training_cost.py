"""What the paper's trainings cost, by `cvt train --dry_run` here and by counting.

    python benchmarks/training_cost.py

Each recipe takes a few steps of a small batch; a picture's time then stands for all pictures of the
recipe. The count is three times a forward pass (forward, and backward twice as much), two
operations a multiply-add.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from cvt.complexity import multiply_adds
from cvt.train.recipe import Recipe
from cvt.zoo import config_of
from timing import keep

RECIPES = Path(__file__).parents[1] / "recipes"
IMAGENET_1K, IMAGENET_22K = 1_281_167, 14_197_122
# Recipe, network, pixels, pictures of an epoch, batch of the measurement.
RUNS = (("cvt_13_imagenet1k_224", "cvt_13", 224, IMAGENET_1K, 16),
        ("cvt_21_imagenet1k_224", "cvt_21", 224, IMAGENET_1K, 16),
        ("cvt_13_imagenet1k_384_finetune", "cvt_13", 384, IMAGENET_1K, 8),
        ("cvt_w24_imagenet22k_384", "cvt_w24", 384, IMAGENET_22K, 2),
        ("cvt_w24_imagenet1k_384_finetune", "cvt_w24", 384, IMAGENET_1K, 2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--print", action="store_true", help="keep no file")
    args = parser.parse_args()
    rows, seconds = {}, {}
    for name, network, size, pictures, batch in RUNS:
        recipe = Recipe.load(RECIPES / f"{name}.yaml")
        seen = recipe.batch_size * recipe.steps if recipe.steps else recipe.epochs * pictures
        if (network, size) not in seconds:
            plan = json.loads(subprocess.run(
                [sys.executable, "-m", "cvt", "train", f"--model={network}",
                 f"--image_size={size}", "--precision=bf16", f"--batch_size={batch}", "--dry_run",
                 "--json"], check=True, stdout=subprocess.PIPE, text=True).stdout)
            work = plan["step_seconds"] - plan["waiting_seconds"]
            seconds[network, size] = work / batch, plan["memory"], plan["checkpoint"]
        each, memory, checkpoint = seconds[network, size]
        operations = 6 * multiply_adds(config_of(network), (size, size)) * seen
        rows[name] = {
            "pictures": seen, "operations": float(operations),
            "hours_at_100_teraflops": round(operations / 1e14 / 3600, 1),
            "seconds_a_picture_here": round(each, 4), "days_here": round(seen * each / 86400, 1),
            "memory_bytes": memory, "batch": batch, "checkpoint_bytes": checkpoint}
        print(name, rows[name], flush=True)
    if not args.print:
        keep("training_cost", {"precision": "bf16", "runs": rows})


if __name__ == "__main__":
    main()
