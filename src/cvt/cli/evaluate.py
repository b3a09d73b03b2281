"""`cvt evaluate`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from cvt.cli.options import add_act, add_config, add_device, add_images, add_model, model_of
from cvt.cli.parser import Parser
from cvt.data.config import DataConfig
from cvt.system.text import printable

_DESCRIPTION = """Score a trained model on labelled images: top-1 and top-5 with a 95 % interval,
precision, recall and F1 of every class, confusion matrix and calibration. Writes metrics.json and
report.html."""


def main(args: Sequence[str]) -> int:
    """Evaluate; prints the summary and where the report is, or all figures with --json."""
    parser = Parser(prog="cvt evaluate", description=_DESCRIPTION)
    add_model(parser, default=None)
    add_images(parser)
    add_config(parser)
    add_act(parser)
    parser.add_argument("--output", metavar="DIR", help="where metrics.json and report.html go "
                        "(default: evaluation/ in the model's directory)")
    parser.add_argument("--data", type=DataConfig | None, default=None,
                        help="the images, by --data.name, --data.root and the other "
                        "data options of `cvt train` (default: those of the training)")
    parser.add_argument("--split", choices=["val", "train", "all"], default=None,
                        help="the held-out images, those for training, or both (default: val; of "
                        "--data without a split of its own, all)")
    parser.add_argument("--batch_size", type=int, default=64, help="images at a time")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32",
                        help="bf16 runs under autocast")
    add_device(parser)
    parser.add_argument("--json", action="store_true", help="print all figures as JSON")
    chosen = parser.read(args)
    parser.at_least_one(chosen, "batch_size")
    model = model_of(chosen, parser, default=None)

    from cvt.evaluate.run import evaluate_model

    evaluation, output = evaluate_model(
        model, output=Path(chosen.output) if chosen.output else None, data=chosen.data,
        split=chosen.split, batch_size=chosen.batch_size, precision=chosen.precision,
        device=chosen.device, act=chosen.act,
        report=lambda text: print(f"cvt evaluate: {printable(text)}", file=sys.stderr))
    if chosen.json:
        print(json.dumps(evaluation.to_dict()))
    else:
        print(f"{evaluation.summary()}\nreport: {output / 'report.html'}")
    return 0
