"""`cvt predict`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cvt.cli.parser import Parser


def main(args: Sequence[str]) -> int:
    """Classify and print a table, or a line of JSON a picture; 1 where a picture failed."""
    parser = Parser(prog="cvt predict", description="Classify pictures with a trained model. An "
                    "unreadable picture is reported, the others are classified, and the exit code "
                    "is 1.")
    parser.add_argument("images", nargs="+", help="picture files, folders (searched with their "
                        "sub-folders), patterns such as 'photos/*.jpg', or - for one picture on "
                        "the standard input")
    parser.add_argument("--model", required=True, metavar="MODEL", help="the directory of a model "
                        "in any format, a file of weights, a tag of `cvt zoo`, or hf-hub:org/name")
    parser.add_argument("--act", choices=["quick_gelu", "gelu"], help="the activation, where the "
                        "weights do not say theirs")
    parser.add_argument("--top_k", type=int, default=3, help="how many classes to name")
    parser.add_argument("--batch_size", type=int, default=32, help="pictures at a time")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ...")
    parser.add_argument("--json", action="store_true", help="print one JSON object a line")
    chosen = parser.read(args)
    parser.at_least_one(chosen, "top_k", "batch_size")

    from cvt.predict import find_images, predict

    sources = find_images(chosen.images)
    failed = 0
    table = Table("picture", "class", "probability", "then")
    for prediction in predict(chosen.model, sources, top_k=chosen.top_k,
                              batch_size=chosen.batch_size, device=chosen.device, act=chosen.act,
                              stdin=getattr(sys.stdin, "buffer", None)):
        if prediction.error is not None:
            failed += 1
            print(f"cvt predict: {prediction.error}", file=sys.stderr)
        if chosen.json:
            print(json.dumps({k: v for k, v in asdict(prediction).items() if v is not None}),
                  flush=True)
        elif prediction.error is None:
            (label, probability), *rest = prediction.classes
            # As Text, for names may look like the console's markup.
            table.add_row(Text(_printable(prediction.picture)), Text(label), f"{probability:.1%}",
                          Text(", ".join(f"{name} {p:.1%}" for name, p in rest)))
    if table.row_count:
        Console().print(table)
    if failed:
        print(f"cvt predict: {failed} of {len(sources)} pictures could not be read",
              file=sys.stderr)
    return 1 if failed else 0


def _printable(name: str) -> str:
    """A file's name as characters, where its bytes are not of the system's encoding."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
