"""What the weights in the package reach on the images that their training never saw.

    python benchmarks/shipped.py

The figures in `cvt.zoo`, in the model cards and in the docs are these; a test compares them, and
the files' hashes. New weights for TAG come from a run's last epoch, for its best one was chosen on
the very images that are scored here:

    cvt convert RUN/last.safetensors out --to native --dtype fp16
    cp out/config.json RUN/recipe.yaml src/cvt/weights/shipped/TAG/
    cp out/best.safetensors src/cvt/weights/shipped/TAG/model.safetensors
"""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import asdict
from pathlib import Path

from cvt.evaluate.run import evaluate_model
from cvt.weights.timm import WEIGHTS
from cvt.zoo import ZOO, shipped
from timing import keep


def main() -> None:
    rows = {}
    for tag in ZOO:
        if (home := shipped(tag)) is None:
            continue
        with tempfile.TemporaryDirectory() as output:
            found, _ = evaluate_model(tag, output=Path(output), device="cpu")
        rows[tag] = {"n": found.n, "top1": asdict(found.top1), "top5": asdict(found.top5),
                     "loss": found.loss, "ece": found.ece,
                     "sha256": hashlib.sha256((home / WEIGHTS).read_bytes()).hexdigest()}
        print(f"{tag:<24}{found.summary()}", flush=True)
    print(keep("shipped", {"rows": rows}))


if __name__ == "__main__":
    main()
