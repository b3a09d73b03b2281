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
from cvt.data.config import DataConfig
from cvt.data.sources import guess_source
from cvt.system.errors import did_you_mean

_ROOT = ("the images: a directory with train/ and val/ or with one sub-directory for each class, "
         "a table (.csv, .tsv, .parquet), or a directory of .tar archives; with --data.name also "
         "what that takes")


def main(args: Sequence[str]) -> int:
    """Run `check` or `copy`; its exit code."""
    actions = {"check": _check, "copy": _copy}
    if not args or args[0] in ("-h", "--help"):
        print("usage: cvt data ACTION [OPTIONS]\n\n"
              "  check     what is wrong with a dataset: unreadable images, duplicates, leaks\n"
              "  copy      a dataset made small, which later epochs read faster\n\n"
              "cvt data ACTION --help tells an action's options.",
              file=sys.stdout if args else sys.stderr)
        return 0 if args else 2
    if args[0] not in actions:
        print(f"cvt data: there is no action {args[0]!r}; {did_you_mean(args[0], actions)}",
              file=sys.stderr)
        return 2
    return actions[args[0]](args[1:])


def _check(args: Sequence[str]) -> int:
    parser = Parser(prog="cvt data check", description="Read every image of a dataset: counts, "
                    "unreadable files, sizes, exact and near duplicates, and validation images "
                    "that training has too. The exit code is 1 where an image cannot be read or "
                    "training has a validation image.")
    parser.add_argument("root", nargs="?", metavar="ROOT", help=_ROOT)
    _add_data(parser)
    parser.add_argument("--image_size", type=int, help="pixels, side of the network's input "
                        "(default: the dataset's own, 224 for your images)")
    parser.add_argument("--output", metavar="DIR", help="write check.json, contact_sheet.png and, "
                        "for images that are files, manifest.csv there")
    parser.add_argument("--json", action="store_true", help="print all that was found as JSON")
    add_quiet(parser)
    data, chosen = _read(parser, args)
    if chosen.image_size is not None:
        parser.at_least_one(chosen, "image_size")

    from cvt.cli.findings import print_findings
    from cvt.data.check import check
    from cvt.data.datasets import load_dataset
    from cvt.data.findings import MANIFEST, check_output, save_findings

    output = Path(chosen.output) if chosen.output else None
    if output:
        check_output(output, data.path)
    dataset = load_dataset(data)
    seen = dataset.preprocess
    if chosen.image_size:
        seen = replace(seen, size=chosen.image_size)
    with _progress(chosen.quiet) as advance:
        report = check(dataset, seen, advance)
    if chosen.json:
        print(json.dumps(report.to_dict()))
    else:
        print_findings(report)
    if output:
        written = save_findings(report, dataset, output, data.root or data.name)
        print("cvt data: wrote " + ", ".join(map(str, written)), file=sys.stderr)
        if output / MANIFEST not in written:
            print(f"cvt data: no {MANIFEST}, for the images of {data.name} are not files of "
                  "their own", file=sys.stderr)
    return 1 if report.faulty else 0


def _copy(args: Sequence[str]) -> int:
    parser = Parser(prog="cvt data copy", description="Copy a dataset with every image made "
                    "small enough, as JPEG files in folders or in tar archives; with its classes, "
                    "labels and split. Called again it goes on where it was stopped. The exit code "
                    "is 1 where an image cannot be read.")
    parser.add_argument("root", nargs="?", metavar="ROOT", help=_ROOT)
    parser.add_argument("out", metavar="OUT", help="the directory to write")
    _add_data(parser)
    parser.add_argument("--short", type=int, default=320, help="pixels, the short side of an "
                        "image at most (default: 320)")
    parser.add_argument("--to", choices=["folder", "shards"], default="folder",
                        help="OUT/train/CLASS/ and OUT/val/CLASS/, or WebDataset's archives")
    parser.add_argument("--quality", type=int, default=92, help="of JPEG, 1 to 95 (default: 92)")
    parser.add_argument("--shard_size", type=int, default=10_000, help="images in an archive")
    parser.add_argument("--overwrite", action="store_true", help="replace a copy that is there")
    add_quiet(parser)
    data, chosen = _read(parser, args)
    parser.at_least_one(chosen, "short", "shard_size")
    if not 1 <= chosen.quality <= 95:
        parser.error(f"--quality {chosen.quality} must be from 1 to 95")

    from cvt.data.copy import copy
    from cvt.data.unreadable import UNREADABLE

    with _progress(chosen.quiet) as advance:
        done = copy(data, Path(chosen.out), to=chosen.to, short=chosen.short,
                    quality=chosen.quality, shard_size=chosen.shard_size,
                    overwrite=chosen.overwrite, progress=advance)
    print(f"{chosen.out}: {done.train:,} training and {done.val:,} validation images"
          + (f", {done.before:,} of them there before" if done.before else ""))
    if done.unreadable:
        print(f"cvt data: {len(done.unreadable):,} images could not be read: left out of train, "
              f"kept as they are in val; {Path(chosen.out) / UNREADABLE} lists them",
              file=sys.stderr)
    return 1 if done.unreadable else 0


def _add_data(parser: Parser) -> None:
    parser.add_argument("--data", type=DataConfig | None, default=None,
                        help="the images; with ROOT its kind is guessed, and these say otherwise")


def _read(parser: Parser, args: Sequence[str]) -> tuple[DataConfig, Namespace]:
    """The dataset that ROOT and --data name, and all options."""
    parsed = parser.parse(args)
    if parsed.root is not None:
        if parsed.data and parsed.data.root is not None:
            parser.error(f"ROOT is {parsed.root} and --data.root {parsed.data.root}; give one")
        # What is guessed stands first, so that options after it say otherwise.
        args = ["--data.name", guess_source(parsed.root), "--data.root", parsed.root, *args]
    elif parsed.data is None:
        parser.error("give ROOT, or a dataset of a package with --data.name")
    chosen = parser.read(args)
    for name in ("workers", "max_unreadable"):
        if getattr(chosen.data, name) != getattr(DataConfig(), name):
            parser.error(f"--data.{name} would be ignored: it is for training; here threads read "
                         "every image")
    return chosen.data, chosen


@contextlib.contextmanager
def _progress(quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """What shows how many images of how many are done, on a terminal."""
    console = Console(stderr=True, quiet=quiet)
    bar = bars.Progress(bars.TextColumn("images"), bars.BarColumn(), bars.MofNCompleteColumn(),
                        bars.TimeRemainingColumn(), console=console, transient=True,
                        disable=quiet or not console.is_terminal)
    task = bar.add_task("", total=None)
    with bar:
        yield lambda done, total: bar.update(task, completed=done, total=total)
