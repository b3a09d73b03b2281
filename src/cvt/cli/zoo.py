"""`cvt zoo`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Column, Table

from cvt.cli.parser import Parser

if TYPE_CHECKING:
    from cvt.zoo import Pretrained


def main(args: Sequence[str]) -> int:
    """Print all weights that have a name, where they are and what they reach."""
    parser = Parser(prog="cvt zoo", description="The published weights: the names that every "
                    "command takes as a model, where they are, how images are prepared, and "
                    "their accuracy; microsoft's as the paper says and as others measured.")
    parser.add_argument("pattern", nargs="?", default="*", help="only names that match, such as "
                        "'cvt_13*'")
    parser.add_argument("--json", action="store_true", help="print JSON")
    chosen = parser.read(args)

    from cvt.zoo import ZOO, list_models

    rows = {tag: ZOO[tag] for tag in list_models(chosen.pattern) if tag in ZOO}
    if chosen.json:
        print(json.dumps([{"tag": tag, **asdict(row), "size": row.size}
                          for tag, row in rows.items()]))
        return 0
    if not rows:
        parser.error(f"no name matches {chosen.pattern!r}; cvt zoo prints them all")
    console = Console()
    hub = {tag: row for tag, row in rows.items() if row.repo}
    for part, show in ((hub, _on_the_hub),
                       ({tag: row for tag, row in rows.items() if tag not in hub}, _in_here)):
        if part:
            table, note = show(part)
            console.print(table)
            console.print(note, highlight=False)
    console.print("--json prints every column.", highlight=False)
    return 0


# Both are narrow enough for 80 columns with every name whole; what all rows share stands below.

def _on_the_hub(rows: Mapping[str, Pretrained]) -> tuple[Table, str]:
    table = _table("microsoft/", "pixels", "paper", "measured")
    for tag, row in rows.items():
        table.add_row(tag, (row.repo or "").removeprefix("microsoft/"), str(row.size),
                      f"{row.paper_top1:.1f}", f"{row.measured_top1:.2f} / {row.measured_top5:.2f}")
    shared = sorted({f"{row.act}, revision {row.revision}, {row.license}" for row in rows.values()})
    return table, (f"{'; '.join(shared)}. ImageNet top-1 as in Table 3 of the paper, top-1 / top-5 "
                   "as measured by others; images of 224 pixels are cut from the centre (0.875), "
                   "of 384 squashed.")


def _in_here(rows: Mapping[str, Pretrained]) -> tuple[Table, str]:
    table = _table("tested on", "images", "pixels", "measured")
    for tag, row in rows.items():
        table.add_row(tag, row.tested_on, f"{row.n:,}", str(row.size),
                      f"{row.measured_top1:.2f} / {row.measured_top5:.2f}")
    return table, ("In this package, nothing is downloaded; trained by its recipes. Top-1 / top-5 "
                   "as benchmarks/shipped.py measured them.")


def _table(*columns: str) -> Table:
    return Table(Column("name", no_wrap=True), *(Column(name, no_wrap=True) for name in columns),
                 box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
