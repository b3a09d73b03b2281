"""Output of `cvt data check`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from rich.table import Column, Table
from rich.text import Text

from cvt.cli.console import console
from cvt.data.check.report import ClassCount, DatasetReport, DuplicateGroup, ImageSource, Range
from cvt.data.listing import LeftOut
from cvt.system.text import printable

# Longer lists are truncated, --json has all entries; unreadable images are all printed.
_MAX_ROWS = 10
_MAX_CLASSES = 30
_KIND = {"file": "same file", "pixels": "same pixels", "near": "look alike"}


def print_report(report: DatasetReport) -> None:
    """Print a table of the classes, statistics, and lists of what is wrong."""
    out = console()
    out.print(_table(report))
    for line in (*_statistics(report), *_lists(report)):
        # Names may look like the console's markup, and a path is copied whole.
        out.print(line, markup=False, highlight=False, soft_wrap=True)


def _table(report: DatasetReport) -> Table:
    bad = bool(report.unreadable)
    table = Table(Column("class", overflow="fold"),
                  *(Column(name, justify="right") for name in
                    ("train", "val", *(("unreadable",) if bad else ()))))
    classes: Sequence[ClassCount | None] = report.classes
    if len(classes) > _MAX_CLASSES:
        ranked = sorted(report.classes, key=lambda c: (-c.train - c.val, c.name))
        classes = (*ranked[:_MAX_ROWS], None, *ranked[-_MAX_ROWS:])
    for c in classes:
        if c is None:
            table.add_row(f"... {len(report.classes) - 2 * _MAX_ROWS:,} more", "", "")
        else:
            table.add_row(Text(printable(c.name)), f"{c.train:,}", f"{c.val:,}",
                          *((f"{c.unreadable:,}" if c.unreadable else "",) if bad else ()))
    table.add_section()
    table.add_row(f"{len(report.classes):,} classes", f"{report.train:,}", f"{report.val:,}",
                  *((f"{len(report.unreadable):,}",) if bad else ()))
    return table


def _statistics(report: DatasetReport) -> Iterable[str]:
    yield f"class imbalance in train, largest to smallest: {report.imbalance:.3g}"
    for what, names in (("training", report.classes_without("train")),
                        ("validation", report.classes_without("val"))):
        if names:
            yield f"classes without {what} images: {_join(list(map(printable, names)))}"
    if report.width and report.height:
        yield f"width {_range(report.width)}, height {_range(report.height)}"
        yield (f"smaller than the network's input of {report.image_size} pixels, so enlarged: "
               f"{report.smaller_than_input:,}")
    stored = [_counts(report.formats), _counts(report.modes)]
    yield "stored as " + "; ".join(filter(None, stored))
    for count, what in ((report.multi_frame, "with several frames, of which the first is used"),
                        (report.exif_rotated, "rotated or mirrored by their EXIF data"),
                        (report.blank, "blank, of (nearly) a single colour")):
        if count:
            yield f"{what}: {count:,}"


def _lists(report: DatasetReport) -> Iterable[str]:
    if left_out := LeftOut({(reason, suffix): count for reason, counts in report.left_out.items()
                            for suffix, count in counts.items()}):
        yield f"left out: {left_out}"
    yield f"unreadable: {len(report.unreadable):,}"
    for u in report.unreadable:
        yield f"  {u.split}: {printable(u.reason)}"
    for name, groups in (("exact", report.exact_duplicates), ("near", report.near_duplicates)):
        conflicts = sum(g.conflicting_labels for g in groups)
        yield (f"groups of {name} duplicates: {len(groups):,}"
               + (f", {conflicts:,} of them with different labels" if conflicts else ""))
        # Groups with conflicting labels first.
        ranked = sorted(groups, key=lambda g: not g.conflicting_labels)
        yield from (f"  {_group(g)}" for g in ranked[:_MAX_ROWS])
        yield from _more(len(groups))
    yield f"validation images with a duplicate in train: {report.leaked:,}"
    for leak in report.leaks[:_MAX_ROWS]:
        yield f"  {_KIND[leak.kind]}: {_name(leak.val)} and {_name(leak.train)}"
    yield from _more(len(report.leaks))


def _more(count: int) -> Iterable[str]:
    if count > _MAX_ROWS:
        yield f"  and {count - _MAX_ROWS:,} more; --json or --output has them all"


def _group(group: DuplicateGroup) -> str:
    labels = " DIFFERENT LABELS:" if group.conflicting_labels else ""
    return (f"{_KIND[group.kind]}, {len(group.images):,} images:{labels} "
            f"{_join([_name(i, group.conflicting_labels) for i in group.images], 4)}")


def _name(image: ImageSource, with_label: bool = False) -> str:
    return printable(image.name) + (f" ({printable(image.label)})" if with_label else "")


def _join(names: Sequence[str], limit: int = _MAX_ROWS) -> str:
    more = f", and {len(names) - limit:,} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())


def _range(values: Range) -> str:
    return f"{values.min:,} to {values.max:,} pixels (median {values.median:,.0f})"
