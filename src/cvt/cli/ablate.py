"""`cvt ablate`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cvt.cli.options import add_config, add_quiet
from cvt.cli.parser import Parser
from cvt.cli.train import GROUPS
from cvt.studies.ablate.tables import SEEDS, SIZES, STUDIES, TABLES
from cvt.train.recipe import Recipe

_DESCRIPTION = """Put claims of the paper to the test on data at hand: position (Table 5), embedding
(Table 6), stride (Table 7), projection (Table 8), and data, accuracy against the number of training
images for CvT, ViT and ResNet. Every configuration is trained with every seed under one recipe,
whose options are those of cvt train. The same command again trains only what is missing."""


def main(args: Sequence[str]) -> int:
    """Run studies; prints their tables and verdicts."""
    parser = Parser(prog="cvt ablate", description=_DESCRIPTION, groups=GROUPS)
    parser.add_argument("studies", nargs="+", choices=[*STUDIES, "tables"], metavar="STUDY",
                        help=f"{', '.join(STUDIES)}, or tables for all but data")
    add_config(parser)
    parser.add_class_arguments(Recipe)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS),
                        help="one run each, of every configuration")
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES),
                        help="numbers of training images, for data")
    parser.add_argument("--jobs", type=int, help="runs at a time (default: one a core, or a GPU)")
    parser.add_argument("--output", metavar="DIR", help="where results and runs go (default: "
                        "ablations/MODEL_DATASET)")
    parser.add_argument("--keep_weights", action="store_true", help="keep every run's weights")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    add_quiet(parser)
    chosen = parser.read(args)
    recipe = parser.build(Recipe, chosen)
    if recipe.seed:
        parser.error(f"--seed {recipe.seed} would be one of --seeds; name it there")
    if chosen.sizes != list(SIZES) and "data" not in chosen.studies:
        parser.error("--sizes is for the study data, which is not among those to do")
    if chosen.jobs is not None:
        parser.at_least_one(chosen, "jobs")

    from cvt.studies.ablate.run import ablate

    names = list(dict.fromkeys(n for study in chosen.studies
                               for n in (TABLES if study == "tables" else (study,))))
    output = Path(chosen.output or f"ablations/{recipe.label}_{recipe.data.name}")
    results = ablate(names, recipe, output, seeds=chosen.seeds, sizes=chosen.sizes,
                     jobs=chosen.jobs, keep_weights=chosen.keep_weights,
                     progress=(lambda _: None) if chosen.quiet else lambda what: print(
                       what, file=sys.stderr, flush=True))
    if chosen.json:
        print(json.dumps({name: results["studies"][name] for name in names}))
        return 0
    for name in names:
        _print(results["studies"][name])
    print(f"tables and charts: {output}")
    return 0


def _print(study: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from cvt.studies.ablate.report import verdict_of

    console = Console()
    table = Table(title=study["title"], title_justify="left")
    for name in ("configuration", "top-1 here", "paper"):
        table.add_column(name, justify="left" if name == "configuration" else "right")
    for row in study["rows"]:
        label = row["label"] + (f", {row['images']:,} images" if row["images"] else "")
        here = "diverged" if row["mean"] is None else f"{row['mean']:.2f}" + (
            "" if row["std"] is None else f" +- {row['std']:.2f}")
        table.add_row(label, here, "" if row["paper_top1"] is None else f"{row['paper_top1']:.1f}")
    console.print(table)
    for c in study["comparisons"]:
        size = f", {c['images']:,} images" if c["images"] else ""
        figure = "no two runs" if c["low"] is None else (
            f"{c['mean']:+.2f} [{c['low']:+.2f}, {c['high']:+.2f}]")
        console.print(f"{c['claim']} ({c['one']}, {c['other']}{size}): {figure}, {verdict_of(c)}",
                      highlight=False, markup=False, soft_wrap=True)
    console.print()
