"""What `cvt data check` prints."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from cvt.data.check import ClassCount, DatasetReport, Group, ImageSource, Sides
from cvt.system.text import printable

# Of longer lists the first are printed; --json has them all. Unreadable images are all printed.
_MOST = 10
_MOST_CLASSES = 30
_SAME = {"file": "same file", "pixels": "same pixels", "near": "look alike"}


def print_findings(report: DatasetReport) -> None:
    """Print a table of the classes, then a line or a short list for each finding."""
    console = Console()
    console.print(_table(report))
    for line in (*_facts(report), *_lists(report)):
        # Names may look like the console's markup, and a path is to be copied whole.
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _table(report: DatasetReport) -> Table:
    bad = bool(report.unreadable)
    table = Table(Column("class", overflow="fold"),
                  *(Column(name, justify="right") for name in
                    ("train", "val", *(("unreadable",) if bad else ()))))
    classes: Sequence[ClassCount | None] = report.classes
    if len(classes) > _MOST_CLASSES:
        ranked = sorted(report.classes, key=lambda c: (-c.train - c.val, c.name))
        classes = (*ranked[:_MOST], None, *ranked[-_MOST:])
    for c in classes:
        if c is None:
            table.add_row(f"... {len(report.classes) - 2 * _MOST:,} more", "", "")
        else:
            table.add_row(Text(printable(c.name)), f"{c.train:,}", f"{c.val:,}",
                          *((f"{c.unreadable:,}" if c.unreadable else "",) if bad else ()))
    table.add_section()
    table.add_row(f"{len(report.classes):,} classes", f"{report.train:,}", f"{report.val:,}",
                  *((f"{len(report.unreadable):,}",) if bad else ()))
    return table


def _facts(report: DatasetReport) -> Iterable[str]:
    yield f"balance: the largest class has {report.imbalance:.3g} times the smallest, in train"
    for split, what in (("train", "training"), ("val", "validation")):
        if names := report.without(split):  # type: ignore[arg-type]
            yield f"classes without {what} images: {_some(list(map(printable, names)))}"
    if report.width and report.height:
        yield f"width {_span(report.width)}, height {_span(report.height)}"
        yield (f"smaller than the network's input of {report.size} pixels, so enlarged: "
               f"{report.small:,}")
    stored = [_counts(report.formats), _counts(report.modes)]
    yield "stored as " + "; ".join(filter(None, stored))
    for count, what in ((report.frames, "of several frames, of which the first is used"),
                        (report.turned, "turned or mirrored, as their EXIF data says"),
                        (report.blank, "of one colour, or nearly")):
        if count:
            yield f"{what}: {count:,}"


def _lists(report: DatasetReport) -> Iterable[str]:
    yield f"unreadable: {len(report.unreadable):,}"
    for u in report.unreadable:
        yield f"  {u.split}: {printable(u.reason)}"
    for name, groups in (("exact", report.exact), ("near", report.near)):
        conflicts = sum(g.conflicting for g in groups)
        yield (f"groups of {name} duplicates: {len(groups):,}"
               + (f", {conflicts:,} of them with different labels" if conflicts else ""))
        # Those that contradict each other are the ones to look at first.
        ranked = sorted(groups, key=lambda g: not g.conflicting)
        yield from (f"  {_group(g)}" for g in ranked[:_MOST])
        yield from _rest(len(groups))
    yield f"validation images that training has too: {report.leaked:,}"
    for leak in report.leaks[:_MOST]:
        yield f"  {_SAME[leak.kind]}: {_name(leak.val)} and {_name(leak.train)}"
    yield from _rest(len(report.leaks))


def _rest(count: int) -> Iterable[str]:
    if count > _MOST:
        yield f"  and {count - _MOST:,} more; --json or --output has them all"


def _group(group: Group) -> str:
    labels = " DIFFERENT LABELS:" if group.conflicting else ""
    return (f"{_SAME[group.kind]}, {len(group.members):,} images:{labels} "
            f"{_some([_name(p, group.conflicting) for p in group.members], 4)}")


def _name(image: ImageSource, labelled: bool = False) -> str:
    return printable(image.name) + (f" ({printable(image.label)})" if labelled else "")


def _some(names: Sequence[str], most: int = _MOST) -> str:
    more = f", and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())


def _span(sides: Sides) -> str:
    return f"{sides.least:,} to {sides.largest:,} pixels (median {sides.median:,.0f})"
