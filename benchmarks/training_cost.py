"""Cost of the paper's trainings, by counting operations and by `cvt train --dry_run`.

    python benchmarks/training_cost.py [--measure]

A training step counts as three forward passes (the backward pass costs two), with two operations
per multiply-add. With --measure each network also takes a few steps of a small batch here, and the
time per image is extrapolated to all images of the recipe.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from cvt.networks.complexity import multiply_adds
from cvt.train.recipe import Recipe
from cvt.weights.models import config_of
from timing import keep

RECIPES = Path(__file__).parents[1] / "recipes"
IMAGENET_1K, IMAGENET_22K = 1_281_167, 14_197_122
# Recipe, network, image size, images per epoch, batch size of the measurement.
RUNS = (("cvt_13_imagenet1k_224", "cvt_13", 224, IMAGENET_1K, 16),
        ("cvt_21_imagenet1k_224", "cvt_21", 224, IMAGENET_1K, 16),
        ("cvt_13_imagenet1k_384_finetune", "cvt_13", 384, IMAGENET_1K, 8),
        ("cvt_w24_imagenet22k_384", "cvt_w24", 384, IMAGENET_22K, 2),
        ("cvt_w24_imagenet1k_384_finetune", "cvt_w24", 384, IMAGENET_1K, 2))


def measure(network: str, size: int, batch: int, images: int) -> dict[str, float]:
    """Seconds per image, days for all `images`, and memory."""
    plan = json.loads(subprocess.run(
        [sys.executable, "-m", "cvt", "train", f"--model={network}", f"--image_size={size}",
         "--precision=bf16", f"--batch_size={batch}", "--dry_run", "--json"], check=True,
        stdout=subprocess.PIPE, text=True).stdout)
    each = (plan["step_seconds"] - plan["waiting_seconds"]) / batch
    return {"seconds_an_image": round(each, 4), "days": round(images * each / 86400, 1),
            "batch": batch, "memory_bytes": plan["memory"], "checkpoint_bytes": plan["checkpoint"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--measure", action="store_true", help="time some steps of each network")
    parser.add_argument("--print", action="store_true", help="keep no file")
    args = parser.parse_args()
    rows = {}
    for name, network, size, images, batch in RUNS:
        recipe = Recipe.load(RECIPES / f"{name}.yaml")
        seen = recipe.batch_size * recipe.steps if recipe.steps else recipe.epochs * images
        operations = 6 * multiply_adds(config_of(network), (size, size)) * seen
        rows[name] = {"images": seen, "operations": float(operations),
                      "hours_at_100_teraflops": round(operations / 1e14 / 3600, 1)}
        if args.measure:
            rows[name] |= measure(network, size, batch, seen)
        print(name, rows[name], flush=True)
    if not args.print:
        keep("training_cost", {"runs": rows})


if __name__ == "__main__":
    main()
