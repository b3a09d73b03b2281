"""`cvt search`."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cvt.cli.options import add_config, add_quiet
from cvt.cli.parser import Parser
from cvt.cli.train import GROUPS
from cvt.studies.search.config import SearchConfig
from cvt.train.recipe import Recipe

if TYPE_CHECKING:
    from cvt.studies.search.result import Result

_DESCRIPTION = """Search the best CvT under a budget of multiply-adds, as for CvT-13-NAS of the
paper: key and value stride 1 or 2 and MLP ratio 2 or 4 in each block. All other options are those
of `cvt train`, and train the supernet. The same command goes on with a search that was stopped."""
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}


def main(args: Sequence[str]) -> int:
    """Search; prints the best networks and where they are."""
    parser = Parser(prog="cvt search", description=_DESCRIPTION, groups=GROUPS)
    add_config(parser)
    parser.add_argument("--budget", required=True, metavar="N", help="multiply-adds of one image "
                        "that a network may take at most, such as 22M or 4.1G")
    parser.add_class_arguments(SearchConfig, skip={"budget"})
    parser.add_class_arguments(Recipe, skip={"network"})
    parser.add_argument("--output", metavar="DIR", required=True, help="where the search goes")
    add_quiet(parser)
    chosen = parser.read(args)
    chosen.budget, chosen.network = _count(parser, chosen.budget), "supernet"
    config, recipe = parser.build(SearchConfig, chosen), parser.build(Recipe, chosen)

    from cvt.studies.search import run

    output = Path(chosen.output)
    result = run.search(recipe, config, output, quiet=chosen.quiet,
                        progress=(lambda _: None) if chosen.quiet else lambda what: print(
                            what, file=sys.stderr, flush=True))
    _print(result)
    print(f"the best of evolution: {output / run.BEST}, of random search: "
          f"{output / run.BEST_RANDOM}, all: {output / run.CHART}\n"
          f"train it: cvt train --model {output / run.BEST}")
    return 0


def _print(result: Result) -> None:
    table = Table("", "top-1", "multiply-adds", "stride/ratio of each block, stages apart",
                  title=Text(f"{result.networks:,} networks of at most {result.budget:,} "
                             "multiply-adds"),
                  caption=f"top-1 with the supernet's weights on {result.held_out:,} training "
                          "images that it was not trained on")
    for name, scored in (("evolution", result.best), ("random search", result.best_random),
                         ("as the recipe has it", result.base)):
        if scored:
            genes = (f"{stride}/{ratio:g}" for stride, ratio in scored.choice)
            stages = (" ".join(next(genes) for _ in range(stage.depth))
                      for stage in result.model.stages)
            table.add_row(name, f"{scored.top1:.2%}", f"{scored.multiply_adds:,}",
                          " | ".join(stages))
    Console().print(table)
    if result.budget >= result.max_multiply_adds:
        print("Every network meets the budget: the most that any takes is "
              f"{result.max_multiply_adds:,}.")


def _count(parser: Parser, text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMG]?)", text.upper())
    if not match:
        parser.error(f"--budget {text} is not a number of multiply-adds; write 22M or 4.1G")
    return round(float(match[1]) * _UNITS[match[2]])
