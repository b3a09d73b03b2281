"""A study as an image: every run a dot, the mean and its interval beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cvt.studies.ablate.results import interval

_INK, _MUTED, _LINE = "#1f2328", "#6b7280", "#e5e7eb"
_COLOURS = ("#0b6bcb", "#c2410c", "#15803d", "#7c3aed")
_MARKERS = ("o", "s", "^", "D")  # so that colours are not needed
_STYLE: dict[Any, Any] = {
    "font.size": 10, "text.color": _INK, "axes.labelcolor": _INK, "axes.edgecolor": _LINE,
    "xtick.color": _MUTED, "ytick.color": _MUTED, "ytick.labelcolor": _INK,
    "axes.spines.top": False, "axes.spines.right": False, "axes.spines.left": False,
    "axes.grid": True, "grid.color": _LINE, "axes.axisbelow": True, "axes.titlelocation": "left",
    "axes.titlesize": 11, "xtick.major.size": 0, "ytick.major.size": 0, "legend.frameon": False,
}


def draw(study: Mapping[str, Any], path: Path) -> None:
    """Write the chart of a study of ablation.json as PNG."""
    by_images = any(row["images"] for row in study["rows"])
    with mpl.rc_context(_STYLE):
        figure = _against_images(study) if by_images else _rows(study)
        figure.savefig(path, dpi=150, format="png")


def _rows(study: Mapping[str, Any]) -> Figure:
    """A line a configuration, in the order of the paper's table."""
    rows = study["rows"]
    figure = Figure(figsize=(7.5, 1.5 + 0.42 * len(rows)), layout="constrained")
    axes: Axes = figure.subplots()
    left, right = _limits(rows)
    for y, row in enumerate(rows):
        found = _accuracies(row)
        axes.plot(found, [y] * len(found), "o", color=_COLOURS[0], alpha=0.35, markersize=5,
                  markeredgewidth=0, label="a run" if y == 0 else None)
        low, high = interval(found)
        if low is not None and high is not None:
            axes.plot([low, high], [y, y], color=_COLOURS[0], linewidth=1.5,
                      label="95 % interval of the mean" if y == 0 else None)
            cut = [(left, "<")] * (low < left) + [(right, ">")] * (high > right)
            for edge, arrow in cut:  # it goes on beyond the chart
                axes.plot(edge, y, arrow, color=_COLOURS[0], markersize=7, clip_on=False)
        if row["mean"] is not None:
            axes.plot(row["mean"], y, "D", color=_COLOURS[0], markersize=7,
                      label="mean" if y == 0 else None)
    axes.set_yticks(range(len(rows)), [row["label"] for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", pad=10)
    axes.set_xlim(left, right)
    axes.set_xlabel("top-1 on held-out images, %")
    axes.set_title(_title(study))
    figure.legend(loc="outside lower right", ncols=3, fontsize=9)
    return figure


def _limits(rows: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """What shows all runs; an interval of few seeds may reach far beyond them."""
    found = [top1 for row in rows for top1 in _accuracies(row)] or [0.0, 100.0]
    margin = 0.15 * max(max(found) - min(found), 2.0)
    return min(found) - margin, min(100.0, max(found) + margin)


def _against_images(study: Mapping[str, Any]) -> Figure:
    """A curve a network, over the number of training images."""
    rows = study["rows"]
    figure = Figure(figsize=(7.5, 4.6), layout="constrained")
    axes: Axes = figure.subplots()
    for i, label in enumerate(dict.fromkeys(row["label"] for row in rows)):
        mine = [row for row in rows if row["label"] == label and row["mean"] is not None]
        colour, marker = _COLOURS[i % len(_COLOURS)], _MARKERS[i % len(_MARKERS)]
        axes.plot([row["images"] for row in mine], [row["mean"] for row in mine], color=colour,
                  marker=marker, linewidth=1.8, label=label)
        for row in mine:
            found = _accuracies(row)
            axes.plot([row["images"]] * len(found), found, marker, color=colour, alpha=0.35,
                      markersize=4, markeredgewidth=0)
            low, high = interval(found)
            if low is not None and high is not None:
                axes.plot([row["images"]] * 2, [low, high], color=colour, linewidth=1.2)
    sizes = sorted({row["images"] for row in rows})
    axes.set_xscale("log")
    axes.set_xticks(sizes, [f"{n:,}" for n in sizes])
    axes.set_xticks([], minor=True)
    axes.set_ylim(top=min(100.0, axes.get_ylim()[1]))
    axes.set_xlabel("training images")
    axes.set_ylabel("top-1 on held-out images, %")
    axes.set_title(_title(study))
    axes.legend(loc="lower right", title="mean, 95 % interval, runs", title_fontsize=9)
    return figure


def _title(study: Mapping[str, Any]) -> str:
    return f"{study['title']}\n{study['data']['name']}, {len(study['seeds'])} seeds"


def _accuracies(row: Mapping[str, Any]) -> list[float]:
    return [run["top1"] for run in row["runs"] if run["top1"] is not None]
