"""`cvt predict`."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import Namespace

from cvt.cli.options import RULE, add_model, add_runtime, is_model, model_of
from cvt.cli.parser import Parser
from cvt.system.text import printable
from cvt.zoo import ZOO

if TYPE_CHECKING:
    from cvt.data.sources.archives import Member
    from cvt.predict.bulk import Progress
    from cvt.predict.predictor import Prediction, Predictor

_EVERY = 0.5  # seconds from one progress line to the next
_TABLE, _PART = "csv", 10_000  # of --output


def main(args: Sequence[str]) -> int:
    """Classify and print a table, or a line of JSON an image; 1 where an image failed."""
    parser = Parser(prog="cvt predict", description="Classify images with a trained or an "
                    "exported model. An unreadable image is reported, the others are "
                    "classified, and the exit code is 1. With --output results go to files, part "
                    "by part: a job that was killed goes on when it is started again, and torchrun "
                    "shares it among processes.")
    add_model(parser, also="the directory that `cvt export` wrote, ", accepts=is_model(parser),
              rule=RULE)
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="image files, folders "
                        "(searched with their sub-folders), tar archives, patterns such as "
                        "'photos/*.jpg', or - for one image on the standard input")
    parser.add_argument("--list", metavar="FILE", help="a text file with a path on each line")
    add_runtime(parser, "eager")
    parser.add_argument("--top_k", type=int, default=3, help="how many classes to name")
    parser.add_argument("--batch_size", type=int, default=32, help="images at a time")
    parser.add_argument("--json", action="store_true", help="print one JSON object a line")
    parser.add_argument("--output", metavar="DIR", help="write files of --part_size images each "
                        "here, and unreadable.csv; exit code 0 though some could not be read")
    parser.add_argument("--table", default=_TABLE, choices=["csv", "jsonl", "parquet"],
                        help="what --output writes")
    parser.add_argument("--part_size", type=int, default=_PART, help="images in a file of "
                        "--output")
    chosen = parser.read(args)
    world = int(os.environ.get("WORLD_SIZE", "1"))
    parser.at_least_one(chosen, "top_k", "batch_size", "part_size")
    for name in chosen.images:
        if name in ZOO and not Path(name).exists():
            parser.error(f"{name} is a model; give it first, or with --model alone")
    if not chosen.images and chosen.list is None:
        after = f" after the model {chosen.model}" if chosen.model else ""
        parser.error(f"give images, folders or --list FILE{after}")
    if chosen.json and chosen.output is not None:
        parser.error("--json prints; for files of JSON say --output DIR --table jsonl")
    if chosen.output is None and (chosen.table, chosen.part_size) != (_TABLE, _PART):
        parser.error("--table and --part_size say what --output writes, which is not given")
    if chosen.output is None and world > 1:
        parser.error(f"{world} processes would all print the same; to share the work they need "
                     "--output DIR")

    from cvt.data.listing import LeftOut
    from cvt.predict.predictor import Predictor, find_images, read_list
    from cvt.system.machine import available_cores

    left_out = LeftOut()
    sources = find_images(chosen.images, strict=chosen.output is not None, left_out=left_out)
    sources += find_images(read_list(chosen.list), left_out=left_out) if chosen.list else []
    if left_out and os.environ.get("RANK", "0") == "0":
        print(f"cvt predict: left out: {left_out}", file=sys.stderr)
    predictor = Predictor(model_of(chosen, parser), backend=chosen.backend,
                          precision=chosen.precision, device=chosen.device, act=chosen.act,
                          trusted=chosen.trusted,
                          threads=available_cores() if world > 1 else None,
                          batch_size=min(chosen.batch_size, len(sources)))
    if chosen.output is not None:
        return _job(chosen, predictor, sources, world)
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
            print(json.dumps(prediction.to_dict()), flush=True)
        elif prediction.error is None:
            rows.append(prediction)
        if live and (now := time.perf_counter()) - shown >= _EVERY:
            shown = now
            print(f"{_erased(live)}{done} of {len(sources)} images, {done / (now - start):.3g} "
                  "img/s", end="", file=sys.stderr, flush=True)
    seconds = time.perf_counter() - start
    if len(sources) > 1:
        print(f"{_erased(live)}{len(sources)} images, {len(sources) / seconds:.3g} img/s",
              file=sys.stderr)
    if rows:
        _print(rows)
    if failed:
        print(f"cvt predict: {failed} of {len(sources)} images could not be read",
              file=sys.stderr)
    return 1 if failed else 0


def _job(chosen: Namespace, predictor: Predictor, sources: Sequence[str | Member], world: int
         ) -> int:
    from cvt.data.unreadable import UNREADABLE
    from cvt.predict.bulk import classify_into

    rank = int(os.environ.get("RANK", "0"))
    who = f"process {rank}: " if world > 1 else ""

    def report(now: Progress) -> None:
        pace = now.done / now.seconds
        print(f"{who}part {now.part + 1} of {now.parts}: {now.images:,} images, "
              f"{now.unreadable:,} unreadable; {pace:.3g} img/s, "
              f"{timedelta(seconds=round(now.remaining / pace))} left", file=sys.stderr, flush=True)

    outcome = classify_into(chosen.output, predictor, sources, table=chosen.table,
                            top_k=chosen.top_k, part_size=chosen.part_size, rank=rank, world=world,
                            progress=report)
    print(f"{who}{outcome.images:,} images in {chosen.output}"
          + (f", {outcome.skipped:,} were there" if outcome.skipped else "")
          + ("; other processes are not done" if outcome.unreadable is None else
             f"; {outcome.unreadable:,} could not be read, see {UNREADABLE}" if outcome.unreadable
             else "; all could be read"), file=sys.stderr)
    return 0


def _print(rows: Sequence[Prediction]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("image", "class", "probability", "then")
    for prediction in rows:
        (label, probability), *rest = prediction.classes
        # As Text, for names may look like the console's markup.
        table.add_row(Text(printable(prediction.image)), Text(printable(label)),
                      f"{probability:.1%}",
                      Text(", ".join(f"{printable(name)} {p:.1%}" for name, p in rest)))
    Console().print(table)


def _erased(live: bool) -> str:
    """What takes the progress line away again."""
    return "\r\x1b[K" if live else ""
