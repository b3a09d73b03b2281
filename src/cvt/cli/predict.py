"""`cvt predict`."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from cvt.cli.model import add_model, model_of
from cvt.cli.parser import Parser
from cvt.cli.printable import printable

if TYPE_CHECKING:
    from cvt.predict import Prediction

_EVERY = 0.5  # seconds from one progress line to the next


def main(args: Sequence[str]) -> int:
    """Classify and print a table, or a line of JSON a picture; 1 where a picture failed."""
    parser = Parser(prog="cvt predict", description="Classify pictures with a trained or an "
                    "exported model. An unreadable picture is reported, the others are "
                    "classified, and the exit code is 1.")
    parser.add_argument("images", nargs="+", help="picture files, folders (searched with their "
                        "sub-folders), patterns such as 'photos/*.jpg', or - for one picture on "
                        "the standard input")
    add_model(parser, also="the directory that `cvt export` wrote, ")
    parser.add_argument("--backend", default="auto", choices=[
        "auto", "eager", "compile", "openvino", "onnxruntime"], help="what computes it (auto: what "
        "the model was exported for, else eager)")
    parser.add_argument("--precision", choices=["fp32", "bf16", "int8"], help="what it computes in "
                        "(default: what it was exported in, else fp32)")
    parser.add_argument("--act", choices=["quick_gelu", "gelu"], help="the activation, where the "
                        "weights do not say theirs")
    parser.add_argument("--top_k", type=int, default=3, help="how many classes to name")
    parser.add_argument("--batch_size", type=int, default=32, help="pictures at a time")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ...")
    parser.add_argument("--json", action="store_true", help="print one JSON object a line")
    chosen = parser.read(args)
    parser.at_least_one(chosen, "top_k", "batch_size")

    from cvt.predict import Predictor, find_images

    sources = find_images(chosen.images)
    predictor = Predictor(model_of(chosen, parser), backend=chosen.backend,
                          precision=chosen.precision, device=chosen.device, act=chosen.act,
                          batch_size=min(chosen.batch_size, len(sources)))
    # On a terminal, the results are a progress of their own where they come line by line.
    live = (len(sources) > predictor.batch_size and sys.stderr.isatty()
            and not (chosen.json and sys.stdout.isatty()))
    failed, rows = 0, []
    start = shown = time.perf_counter()
    for done, prediction in enumerate(predictor(sources, chosen.top_k,
                                                stdin=getattr(sys.stdin, "buffer", None)), 1):
        if prediction.error is not None:
            failed += 1
            print(f"{_erased(live)}cvt predict: {printable(prediction.error)}", file=sys.stderr)
        if chosen.json:
            print(json.dumps({k: v for k, v in asdict(prediction).items() if v is not None}),
                  flush=True)
        elif prediction.error is None:
            rows.append(prediction)
        if live and (now := time.perf_counter()) - shown >= _EVERY:
            shown = now
            print(f"{_erased(live)}{done} of {len(sources)} pictures, {done / (now - start):.3g} "
                  "img/s", end="", file=sys.stderr, flush=True)
    seconds = time.perf_counter() - start
    if len(sources) > 1:
        print(f"{_erased(live)}{len(sources)} pictures, {len(sources) / seconds:.3g} img/s",
              file=sys.stderr)
    if rows:
        _print(rows)
    if failed:
        print(f"cvt predict: {failed} of {len(sources)} pictures could not be read",
              file=sys.stderr)
    return 1 if failed else 0


def _print(rows: Sequence[Prediction]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("picture", "class", "probability", "then")
    for prediction in rows:
        (label, probability), *rest = prediction.classes
        # As Text, for names may look like the console's markup.
        table.add_row(Text(printable(prediction.picture)), Text(printable(label)),
                      f"{probability:.1%}",
                      Text(", ".join(f"{printable(name)} {p:.1%}" for name, p in rest)))
    Console().print(table)


def _erased(live: bool) -> str:
    """What takes the progress line away again."""
    return "\r\x1b[K" if live else ""
