"""`cvt train`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cvt.cli.parser import Parser
from cvt.train.recipe import Recipe

_DESCRIPTION = """Train a CvT. Without options: cvt_nano on scikit-learn's digits. Every option can
stand in a YAML file, --config recipes/x.yaml, and options after it change its values;
--print_config shows the result."""


def main(args: Sequence[str]) -> int:
    """Train or resume; prints where the report is."""
    parser = Parser(prog="cvt train", description=_DESCRIPTION)
    parser.add_argument("--config", action="config", help="a YAML file with any of the options")
    parser.add_class_arguments(Recipe)
    parser.add_argument("--output", metavar="DIR", help="where the run goes "
                        "(default: runs/MODEL_DATASET)")
    parser.add_argument("--overwrite", action="store_true", help="replace a run that is there")
    parser.add_argument("--resume", metavar="DIR", help="go on with the run in DIR from its newest "
                        "checkpoint, with its saved configuration; takes no other option but "
                        "--quiet")
    parser.add_argument("--quiet", action="store_true", help="no progress on the standard error")
    chosen = parser.read(args)
    if chosen.resume:
        others = [a for a in args if a.startswith("--") and a.split("=")[0] not in ("--resume",
                                                                                   "--quiet")]
        if others:
            parser.error(f"--resume goes on with the saved configuration, so {others[0]} would be "
                         "ignored; leave it out, or start a new run without --resume")
    recipe = parser.build(Recipe, chosen)

    from cvt.train import loop

    if chosen.resume:
        run = Path(chosen.resume)
        evaluation = loop.resume(run, quiet=chosen.quiet)
    else:
        run = Path(chosen.output or f"runs/{Path(recipe.model).stem}_{recipe.data.name}")
        evaluation = loop.train(recipe, run, overwrite=chosen.overwrite, quiet=chosen.quiet)
    if evaluation:  # else this is not the main process
        print(f"{evaluation.headline()}\nreport: {run / 'report.html'}")
    return 0
