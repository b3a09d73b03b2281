"""Accuracy of every export of a trained model on its test set: the cost of bfloat16 and int8.

    python benchmarks/precision.py [--model cvt_nano.fashion_mnist] [--data fashion_mnist]

int8 is calibrated on 300 training images; accuracy is measured by the exported graph in its own
runtime.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from cvt.data.config import DataConfig
from cvt.deploy.export import export
from cvt.deploy.graphs import PRECISIONS
from timing import keep


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="cvt_nano.fashion_mnist")
    parser.add_argument("--data", default="fashion_mnist")
    args = parser.parse_args()
    rows = {}
    for to, precisions in PRECISIONS.items():
        for precision in precisions:
            with tempfile.TemporaryDirectory() as home:
                manifest = export(args.model, Path(home) / "exported", to, precision,
                                  data=DataConfig(name=args.data), max_drop=100)
                graph = sum(p.stat().st_size for p in (Path(home) / "exported").iterdir())
            parity = manifest.parity
            rows[f"{to} {precision}"] = {**parity, "bytes": graph}
            print(f"{to:<10}{precision:<6}{parity['accuracy_before']:6.2f} to "
                  f"{parity['accuracy_after']:6.2f} %  largest difference "
                  f"{parity['difference']:.1e}  agreement {100 * parity['agreement']:.2f} %  "
                  f"{graph / 1e6:.1f} MB", flush=True)
    print(keep(f"precision_{args.data}", {"rows": rows}))


if __name__ == "__main__":
    main()
