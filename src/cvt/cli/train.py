"""`cvt train`."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import Namespace
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cvt.cli.options import add_config, add_images, add_quiet
from cvt.cli.parser import Parser
from cvt.train.recipe import LENGTH, MACHINE, PLACES, Recipe

if TYPE_CHECKING:
    from cvt.evaluate.metrics import Evaluation

_DESCRIPTION = """Train a CvT on your images: `cvt train photos`. Without arguments it trains
cvt_nano on scikit-learn's digits. Any option can be set in a YAML file (--config recipes/x.yaml);
options on the command line override it, and --print_config shows the result."""

GROUPS = {
    "data": ("data.name", "data.root", "data.val_fraction", "data.workers", "data.", "data",
             "max_train_samples", "sampling", "class_weights"),
    "model": ("model", "weights", "image_size", "in_chans", "drop_path_rate", "network"),
    "training": ("epochs", "batch_size", "passes_per_epoch", "steps", "patience", "best_by", "ema",
                 "seed", "skip_nonfinite"),
    "optimizer": ("optim.lr", "optim.weight_decay", "optim.", "optim"),
    "augmentation": ("augment.", "augment"),
    "fine-tuning": ("freeze.", "freeze"),
    "distillation": ("distill.", "distill"),
    "computation": ("device", "precision", "compile", "grad_checkpointing", "sync_batchnorm",
                    "timeout"),
    "checkpoints and trackers": ("save_every", "keep_checkpoints", "trackers", "project"),
}
"""The options of `Recipe` by the headings of the help: names, or prefixes that end in a dot."""
_RUN = ("output", "overwrite", "resume", "accept_data_changes", "dry_run", "find_lr", "json",
        "quiet")
_COMMON = frozenset((
    "data.name", "data.root", "data.val_fraction", "data.workers", "model", "weights", "image_size",
    "epochs", "batch_size", "patience", "seed", "optim.lr", "optim.weight_decay", "augment.crop",
    "augment.hflip", "augment.rand_augment", "augment.mixup", "device", "precision", "output",
    "overwrite", "resume", "dry_run", "quiet"))


def main(args: Sequence[str]) -> int:
    """Train or resume; prints where the report is."""
    parser = Parser(prog="cvt train", description=_DESCRIPTION,
                    groups={**GROUPS, "the run": _RUN}, common=_COMMON)
    add_images(parser)
    add_config(parser)
    parser.add_class_arguments(Recipe)
    parser.add_argument("--output", metavar="DIR", help="where the run goes "
                        "(default: runs/MODEL_DATASET)")
    parser.add_argument("--overwrite", action="store_true", help="replace a run that is there")
    parser.add_argument("--resume", metavar="DIR", help="go on with the run in DIR from its newest "
                        "checkpoint, with its saved configuration; with --epochs, --steps or "
                        "--patience to another end, also if it is complete")
    parser.add_argument("--accept_data_changes", action="store_true", help="with --resume: go on "
                        "although images, labels or split are not those that the run was begun "
                        "with; the epoch in hand begins anew")
    parser.add_argument("--dry_run", action="store_true", help="take a few steps, print what the "
                        "run would take (time, memory, disk, the batch that fits), write nothing")
    parser.add_argument("--find_lr", action="store_true", help="let the learning rate rise from "
                        "step to step, and plot the loss into --output, instead of training")
    parser.add_argument("--json", action="store_true", help="print the plan of --dry_run as JSON")
    add_quiet(parser)
    chosen = parser.parse(args)
    changes = _changes(parser, chosen) if chosen.resume else {}
    if chosen.accept_data_changes and not chosen.resume:
        parser.error("--accept_data_changes is for --resume")
    if chosen.dry_run and chosen.find_lr:
        parser.error("--dry_run and --find_lr are two things to do; give one")
    if chosen.json and not chosen.dry_run:
        parser.error("--json is for --dry_run; a run writes metrics.json")
    for option in ("dry_run", "find_lr"):
        if getattr(chosen, option) and (chosen.overwrite or chosen.quiet):
            parser.error(f"--{option} replaces nothing and shows no progress, so --overwrite and "
                         "--quiet would be ignored; leave them out")
    if chosen.resume:
        from cvt.train import loop

        run = Path(chosen.resume)
        return _print_result(run, loop.resume(
            run, changes=changes, accept_data_changes=chosen.accept_data_changes,
            quiet=chosen.quiet))
    recipe = parser.build(Recipe, parser.read(args))

    run = Path(chosen.output or f"runs/{recipe.label}_{recipe.data.name}")
    if chosen.dry_run:
        _print_plan(recipe, run, chosen.json)
        return 0
    if chosen.find_lr:
        _print_rate(recipe, run)
        return 0
    from cvt.train import loop

    return _print_result(run, loop.train(recipe, run, overwrite=chosen.overwrite,
                                         quiet=chosen.quiet))


def _changes(parser: Parser, chosen: Namespace) -> dict[str, Any]:
    """The options beside --resume, which are few; exits with 2 for another."""
    names = parser.given - {"resume", "quiet", "accept_data_changes"}
    for name in sorted(names - (LENGTH | MACHINE | PLACES)):
        parser.error(f"--resume goes on with the saved configuration, so --{name} would be "
                     "ignored; leave it out, or start a new run without --resume")
    return {name: attrgetter(name)(chosen) for name in names}


def _print_result(run: Path, evaluation: Evaluation | None) -> int:
    if evaluation:  # else this is not the main process
        print(f"{evaluation.summary()}\nreport: {run / 'report.html'}")
    return 0


def _print_plan(recipe: Recipe, run: Path, as_json: bool) -> None:
    from cvt.train.plan import plan

    p = plan(recipe, run)
    if os.environ.get("RANK", "0") != "0":  # one of torchrun's processes speaks
        return
    if as_json:
        print(json.dumps(p.to_dict()))
        return
    rows = {
        "device": f"{p.device}, {p.processes} process{'es' * (p.processes > 1)}",
        "network": f"{recipe.name}, {p.parameters:,} parameters"
                   + (f", {p.trainable_parameters:,} trainable"
                      if p.trainable_parameters < p.parameters else ""),
        "images": f"{p.train_images:,} to train, {p.val_images:,} to validate",
        "steps": f"{p.steps:,}: {p.epochs} epochs of {p.steps_per_epoch:,}",
        "a step": f"{p.step_seconds:.3g} s, of which {p.waiting_seconds:.2g} s wait for images"
                  + (f" and at most {p.exchange_seconds:.2g} s exchange gradients"
                     if p.exchange_seconds else ""),
        "an epoch": f"{_duration(p.epoch_seconds)}, of which {_duration(p.validation_seconds)} "
                    "validate",
        "the run": _duration(p.total_seconds),
        "memory": f"{p.memory / 1e9:.2f} GB at its peak with a micro-batch of "
                  f"{p.micro_batch_size}, of {p.memory_limit / 1e9:.1f} GB",
        "fits": "could not be determined" if p.max_micro_batch_size is None else
                     f"a micro-batch of {p.max_micro_batch_size}: "
                     f"--optim.grad_accum_steps {p.grad_accum_steps}",
        "disk": f"at most {p.disk / 1e9:.2f} GB ({p.checkpoint / 1e9:.2f} a checkpoint), of "
                f"{p.disk_free / 1e9:.0f} GB free",
        **{f"on {s.processes} device{'s' * (s.processes > 1)}": f"{_duration(s.seconds)}, "
           f"{_duration(s.seconds * s.processes)} of device time" for s in p.scaling},
    }
    table = Table(show_header=False, box=None)
    for name, value in rows.items():
        table.add_row(name, Text(value))
    Console().print(table)
    if p.exchange_seconds is None:
        print("On several devices the exchange of gradients comes on top; a dry run under torchrun "
              "measures it.")


def _print_rate(recipe: Recipe, run: Path) -> None:
    from cvt.train.lr_finder import PLOT, find_learning_rate

    if result := find_learning_rate(recipe, run):
        print(f"try --optim.lr {result.steepest:g}, where the loss falls fastest; its minimum is "
              f"at {result.min_loss:g}\nplot: {run / PLOT}")


def _duration(seconds: float) -> str:
    """In the unit that suits it."""
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.3g} s"
