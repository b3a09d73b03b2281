"""`cvt data`: check and copy."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from jsonargparse import Namespace
from rich import progress as bars
from rich.console import Console

from cvt.cli.options import add_quiet
from cvt.cli.parser import Parser
from cvt.data.config import DataConfig, guess_source
from cvt.system.errors import did_you_mean

_ROOT = ("location of the images: a directory with train/ and val/ or with one sub-directory per "
         "class, a table (.csv, .tsv, .parquet), or a directory of .tar archives; with --data.name "
         "anything that data.root accepts")


def main(args: Sequence[str]) -> int:
    """Run `check` or `copy` and return the exit code."""
    actions = {"check": _check, "copy": _copy}
    if not args or args[0] in ("-h", "--help"):
        print("usage: cvt data ACTION [OPTIONS]\n\n"
              "  check     check a dataset: unreadable images, duplicates, leaks\n"
              "  copy      copy a dataset with smaller images, which later epochs read faster\n\n"
              "cvt data ACTION --help lists the options of an action.",
              file=sys.stdout if args else sys.stderr)
        return 0 if args else 2
    if args[0] not in actions:
        print(f"cvt data: there is no action {args[0]!r}; {did_you_mean(args[0], actions)}",
              file=sys.stderr)
        return 2
    return actions[args[0]](args[1:])


def _check(args: Sequence[str]) -> int:
    parser = Parser(prog="cvt data check", description="Check every image of a dataset. Reports "
                    "class counts, unreadable files, image sizes, exact and near duplicates, and "
                    "leaks: validation images with a duplicate in train. The exit code is 1 if "
                    "there are unreadable images or leaks.")
    parser.add_argument("root", nargs="?", metavar="ROOT", help=_ROOT)
    _add_data(parser)
    parser.add_argument("--image_size", type=int, help="side of the network's input in pixels "
                        "(default: the dataset's own, 224 for your images)")
    parser.add_argument("--output", metavar="DIR", help="directory for check.json, "
                        "contact_sheet.png and, if the images are files, manifest.csv")
    parser.add_argument("--json", action="store_true", help="print the complete report as JSON")
    add_quiet(parser)
    data, options = _read(parser, args)
    if options.image_size is not None:
        parser.at_least_one(options, "image_size")

    from cvt.cli.check_output import print_report
    from cvt.data.check.run import MANIFEST, check, check_output, save_report
    from cvt.data.load import load_dataset

    output = Path(options.output) if options.output else None
    if output:
        check_output(output, data.path)
    dataset = load_dataset(data)
    for note in dataset.notes:
        print(f"cvt data: {note}", file=sys.stderr)
    preprocess = dataset.preprocess
    if options.image_size:
        preprocess = replace(preprocess, size=options.image_size)
    with _progress(options.quiet) as advance:
        report = check(dataset, preprocess, advance)
    if options.json:
        print(json.dumps(report.to_dict()))
    else:
        print_report(report)
    if output:
        written = save_report(report, dataset, output, data.root or data.name)
        print("cvt data: wrote " + ", ".join(map(str, written)), file=sys.stderr)
        if output / MANIFEST not in written:
            print(f"cvt data: no {MANIFEST}, because the images of {data.name} are not files of "
                  "their own", file=sys.stderr)
    return 1 if report.has_errors else 0


def _copy(args: Sequence[str]) -> int:
    parser = Parser(prog="cvt data copy", description="Copy a dataset with large images resized, "
                    "as files in directories or in tar archives; classes, labels and split are "
                    "kept. Called again, it resumes a copy that was stopped. The exit code is 1 if "
                    "there are unreadable images.")
    parser.add_argument("root", nargs="?", metavar="ROOT", help=_ROOT)
    parser.add_argument("out", metavar="OUT", help="directory to write to")
    _add_data(parser)
    parser.add_argument("--short_side", type=int, default=320, help="maximum short side of an "
                        "image in pixels")
    parser.add_argument("--to", choices=["folder", "shards"], default="folder",
                        help="layout: OUT/train/CLASS/ and OUT/val/CLASS/, or WebDataset's "
                        "archives")
    parser.add_argument("--quality", type=int, default=92, help="quality of JPEG files, 1 to 95")
    parser.add_argument("--shard_size", type=int, default=10_000, help="images per archive")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing copy")
    add_quiet(parser)
    data, options = _read(parser, args)
    parser.at_least_one(options, "short_side", "shard_size")
    if not 1 <= options.quality <= 95:
        parser.error(f"--quality {options.quality} must be from 1 to 95")

    from cvt.data.copy.run import copy
    from cvt.data.unreadable import UNREADABLE

    out = Path(options.out)
    with _progress(options.quiet) as advance:
        report = copy(data, out, to=options.to, short_side=options.short_side,
                      quality=options.quality, shard_size=options.shard_size,
                      overwrite=options.overwrite, progress=advance)
    print(f"{out}: {report.train:,} training and {report.val:,} validation images"
          + (f", {report.existing:,} of them existed before" if report.existing else ""))
    if report.unreadable:
        print(f"cvt data: {len(report.unreadable):,} images could not be read: left out of train, "
              f"copied unchanged to val; {out / UNREADABLE} lists them", file=sys.stderr)
    return 1 if report.unreadable else 0


def _add_data(parser: Parser) -> None:
    parser.add_argument("--data", type=DataConfig | None, default=None,
                        help="the dataset; these options override what is guessed from ROOT")


def _read(parser: Parser, args: Sequence[str]) -> tuple[DataConfig, Namespace]:
    """The dataset that ROOT and --data name, and all options."""
    parsed = parser.parse(args)
    if parsed.root is not None:
        if parsed.data and parsed.data.root is not None:
            parser.error(f"ROOT is {parsed.root} and --data.root {parsed.data.root}; give one")
        # Guessed options come first, so that later ones override them.
        args = ["--data.name", guess_source(parsed.root), "--data.root", parsed.root, *args]
    elif parsed.data is None:
        parser.error("give ROOT, or a built-in dataset with --data.name")
    options = parser.read(args)
    for name in ("workers", "max_unreadable"):
        if getattr(options.data, name) != getattr(DataConfig(), name):
            parser.error(f"--data.{name} would be ignored: it is for training; here threads read "
                         "every image")
    return options.data, options


@contextlib.contextmanager
def _progress(quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on a terminal; yields a function of the images done and in total."""
    console = Console(stderr=True, quiet=quiet)
    bar = bars.Progress(bars.TextColumn("images"), bars.BarColumn(), bars.MofNCompleteColumn(),
                        bars.TimeRemainingColumn(), console=console, transient=True,
                        disable=quiet or not console.is_terminal)
    task = bar.add_task("", total=None)
    with bar:
        yield lambda done, total: bar.update(task, completed=done, total=total)
