"""Charts of ablations and searches, as PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cvt.studies.ablate.results import interval
from cvt.studies.search.result import Result

_INK, _MUTED, _LINE = "#1f2328", "#6b7280", "#e5e7eb"
_COLORS = ("#0b6bcb", "#c2410c", "#15803d", "#7c3aed")
_MARKERS = ("o", "s", "^", "D")  # readable without colors
_STYLE: dict[Any, Any] = {
    "font.size": 10, "text.color": _INK, "axes.labelcolor": _INK, "axes.edgecolor": _LINE,
    "xtick.color": _MUTED, "ytick.color": _MUTED, "ytick.labelcolor": _INK,
    "axes.spines.top": False, "axes.spines.right": False, "axes.spines.left": False,
    "axes.grid": True, "grid.color": _LINE, "axes.axisbelow": True, "axes.titlelocation": "left",
    "axes.titlesize": 11, "xtick.major.size": 0, "ytick.major.size": 0, "legend.frameon": False,
    "savefig.dpi": 150,
}


def draw_ablation(study: Mapping[str, Any], path: Path) -> None:
    """Chart a study of ablation.json: every run, the means and their intervals."""
    by_images = any(row["images"] for row in study["rows"])
    with mpl.rc_context(_STYLE):
        (_against_images if by_images else _by_row)(study).savefig(path, format="png")


def draw_search(result: Result, path: Path) -> None:
    """Chart the top-1 of every network over its multiply-adds; crosses mark the best ones."""
    with mpl.rc_context({**_STYLE, "axes.spines.left": True}):
        figure, axes = _figure(7, 4.4)
        # Rings around dots, since both methods share the first generation.
        for name, scored, best, color, style in (
                ("random search", result.random, result.best_random, _MUTED,
                 {"markersize": 8, "markerfacecolor": "none"}),
                ("evolution", result.evolution, result.best, _COLORS[0],
                 {"markersize": 4.5, "markeredgewidth": 0})):
            axes.plot([s.multiply_adds / 1e6 for s in scored], [100 * s.top1 for s in scored], "o",
                      color=color, label=name, **style)
            axes.plot(best.multiply_adds / 1e6, 100 * best.top1, "+", color=color, markersize=18,
                      zorder=3, label=f"its best, {100 * best.top1:.1f} %")
        if result.base:
            axes.plot(result.base.multiply_adds / 1e6, 100 * result.base.top1, "D",
                      color=_COLORS[1], markersize=6, label="the recipe's network")
        if result.budget <= result.max_multiply_adds:
            axes.axvline(result.budget / 1e6, color=_MUTED, linewidth=1, dashes=(4, 3),
                         label="budget")
        axes.set_xlabel(f"million multiply-adds at {result.size[0]}x{result.size[1]}")
        axes.set_ylabel("top-1 with the supernet's weights, %,\n"
                        f"on {result.held_out:,} held-out training images")
        figure.legend(loc="outside upper left", ncols=3, fontsize=9)
        figure.savefig(path, format="png")


def _by_row(study: Mapping[str, Any]) -> Figure:
    """One line per configuration, in the order of the paper's table."""
    rows = study["rows"]
    figure, axes = _figure(7.5, 1.5 + 0.42 * len(rows))
    left, right = _limits(rows)
    for y, row in enumerate(rows):
        top1 = _accuracies(row)
        axes.plot(top1, [y] * len(top1), "o", color=_COLORS[0], alpha=0.35, markersize=5,
                  markeredgewidth=0, label="a run" if y == 0 else None)
        low, high = interval(top1)
        if low is not None and high is not None:
            axes.plot([low, high], [y, y], color=_COLORS[0], linewidth=1.5,
                      label="95 % interval of the mean" if y == 0 else None)
            cut = [(left, "<")] * (low < left) + [(right, ">")] * (high > right)
            for edge, arrow in cut:  # the interval continues beyond the chart
                axes.plot(edge, y, arrow, color=_COLORS[0], markersize=7, clip_on=False)
        if row["mean"] is not None:
            axes.plot(row["mean"], y, "D", color=_COLORS[0], markersize=7,
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
    """Limits that show all runs; an interval of few seeds may reach far beyond them."""
    top1 = [value for row in rows for value in _accuracies(row)] or [0.0, 100.0]
    margin = 0.15 * max(max(top1) - min(top1), 2.0)
    return min(top1) - margin, min(100.0, max(top1) + margin)


def _against_images(study: Mapping[str, Any]) -> Figure:
    """One curve per network, over the number of training images."""
    rows = study["rows"]
    figure, axes = _figure(7.5, 4.6)
    for i, label in enumerate(dict.fromkeys(row["label"] for row in rows)):
        curve = [row for row in rows if row["label"] == label and row["mean"] is not None]
        color, marker = _COLORS[i % len(_COLORS)], _MARKERS[i % len(_MARKERS)]
        axes.plot([row["images"] for row in curve], [row["mean"] for row in curve], color=color,
                  marker=marker, linewidth=1.8, label=label)
        for row in curve:
            top1 = _accuracies(row)
            axes.plot([row["images"]] * len(top1), top1, marker, color=color, alpha=0.35,
                      markersize=4, markeredgewidth=0)
            low, high = interval(top1)
            if low is not None and high is not None:
                axes.plot([row["images"]] * 2, [low, high], color=color, linewidth=1.2)
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


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _title(study: Mapping[str, Any]) -> str:
    return f"{study['title']}\n{study['data']['name']}, {len(study['seeds'])} seeds"


def _accuracies(row: Mapping[str, Any]) -> list[float]:
    return [run["top1"] for run in row["runs"] if run["top1"] is not None]
