"""Accuracy of the weights in the package on held-out images.

    python benchmarks/shipped.py

A test compares the result with `cvt.zoo`, the model cards and the docs, and the hashes of the
files. New weights for TAG come from the last epoch of a run, since the best one was selected on the
images that are evaluated here:

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
from cvt.weights.tensors import SAFETENSORS
from cvt.zoo import ZOO, shipped
from timing import keep


def main() -> None:
    rows = {}
    for tag in ZOO:
        if (home := shipped(tag)) is None:
            continue
        with tempfile.TemporaryDirectory() as output:
            result, _ = evaluate_model(tag, output=Path(output), device="cpu")
        rows[tag] = {"n": result.n, "top1": asdict(result.top1), "top5": asdict(result.top5),
                     "loss": result.loss, "ece": result.ece,
                     "sha256": hashlib.sha256((home / SAFETENSORS).read_bytes()).hexdigest()}
        print(f"{tag:<24}{result.summary()}", flush=True)
    print(keep("shipped", {"rows": rows}))


if __name__ == "__main__":
    main()
