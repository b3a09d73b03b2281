"""`cvt zoo`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from rich import box
from rich.console import Console
from rich.table import Column, Table

from cvt.cli.parser import Parser


def main(args: Sequence[str]) -> int:
    """Print every published checkpoint, where it is and what it reaches."""
    parser = Parser(prog="cvt zoo", description="The published weights: the names that every "
                    "command takes as a model, where they are, how pictures are prepared, and "
                    "ImageNet accuracy as the paper says and as others measured.")
    parser.add_argument("pattern", nargs="?", default="*", help="only names that match, such as "
                        "'cvt_13*'")
    parser.add_argument("--json", action="store_true", help="print JSON")
    chosen = parser.read(args)

    from cvt.zoo import ZOO, list_models

    rows = {tag: ZOO[tag] for tag in list_models(chosen.pattern) if tag in ZOO}
    if chosen.json:
        print(json.dumps([{"tag": tag, **asdict(row), "preprocess": asdict(row.preprocess)}
                          for tag, row in rows.items()]))
        return 0
    if not rows:
        parser.error(f"no name matches {chosen.pattern!r}; cvt zoo prints them all")
    # Narrow enough for 80 columns with every name whole; what all rows share stands below.
    table = Table(Column("name", no_wrap=True), Column("microsoft/", no_wrap=True), "pixels",
                  "paper", "measured", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for tag, row in rows.items():
        table.add_row(tag, row.repo.removeprefix("microsoft/"), str(row.size),
                      f"{row.paper_top1:.1f}", f"{row.measured_top1:.2f} / {row.measured_top5:.2f}")
    console = Console()
    console.print(table)
    shared = sorted({f"{row.act}, revision {row.revision}, {row.licence}" for row in rows.values()})
    console.print(f"{'; '.join(shared)}. ImageNet top-1 as in Table 3 of the paper, top-1 / top-5 "
                  "as measured by others; pictures of 224 pixels are cut from the centre (0.875), "
                  "of 384 squashed. --json prints every column.", highlight=False)
    return 0
