"""Charts as SVG in the colors of the page's CSS variables, light or dark."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cvt.evaluate.metrics import NUM_BINS, Bin, Proportion

# Placeholder colors; each is then replaced by a CSS variable.
INK, MUTED, LINE, ACCENT, WARM = "#010203", "#010204", "#010205", "#010206", "#010207"
VARIABLES = {INK: "--ink", MUTED: "--muted", LINE: "--line", ACCENT: "--accent", WARM: "--warm"}
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "cvt", "svg.fonttype": "none", "font.size": 9,
    "text.color": INK, "axes.edgecolor": LINE, "axes.labelcolor": MUTED,
    "xtick.color": LINE, "ytick.color": LINE, "xtick.labelcolor": MUTED, "ytick.labelcolor": MUTED,
    "xtick.major.size": 0, "ytick.major.size": 0, "xtick.major.pad": 5,
    "axes.spines.top": False, "axes.spines.right": False, "axes.spines.left": False,
    "axes.grid": True, "axes.grid.axis": "y", "grid.color": LINE, "grid.linewidth": 0.7,
    "axes.axisbelow": True, "lines.linewidth": 1.7, "lines.solid_capstyle": "round",
    "legend.frameon": False, "legend.fontsize": 9,
}
Row = Mapping[str, float]


def loss_chart(history: Sequence[Row]) -> str:
    """Training and validation loss (nats) by epoch, as SVG."""
    with mpl.rc_context(STYLE):
        figure, axes = _epochs(history, height=2.5)
        axes.plot(*_series(history, "train_loss"), color=MUTED, dashes=(3, 1.5), label="training",
                  marker=_marker(history))
        axes.plot(*_series(history, "val_loss"), color=ACCENT, label="validation",
                  marker=_marker(history))
        highest = max(max(row["train_loss"], row["val_loss"]) for row in history)
        axes.set_ylim(0, 1.06 * highest)
        axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=2, borderpad=0,
                    handlelength=2.2, columnspacing=1.5)
        return _svg(figure, "loss", "Training and validation loss by epoch")


def top1_chart(history: Sequence[Row]) -> str:
    """Validation top-1 accuracy by epoch, with the best epoch marked, as SVG."""
    with mpl.rc_context(STYLE):
        figure, axes = _epochs(history, height=2.5)
        axes.plot(*_series(history, "val_top1"), color=ACCENT)
        best = max(history, key=lambda row: row["val_top1"])
        axes.plot(best["epoch"], best["val_top1"], "o", color=WARM, markersize=5, label="best")
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g}%")
        axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), borderpad=0, handlelength=1)
        return _svg(figure, "top1", "Validation top-1 accuracy by epoch")


def lr_chart(history: Sequence[Row]) -> str:
    """Learning rate at the end of each epoch, as a small SVG."""
    with mpl.rc_context(STYLE):
        peak = max(row["lr"] for row in history)
        figure, axes = _epochs(history, height=1.4)
        axes.plot(*_series(history, "lr"), color=MUTED, marker=_marker(history))
        axes.set_ylim(bottom=0)
        axes.set_yticks((0, peak), ("0", f"{peak:.2g}"))
        return _svg(figure, "lr", "Learning rate by epoch")


def reliability_diagram(bins: Sequence[Bin]) -> str:
    """Accuracy by confidence with 95 % confidence intervals, and a histogram, as SVG."""
    filled = [b for b in bins if b.n]
    with mpl.rc_context(STYLE | {"axes.grid.axis": "both"}):
        figure = Figure(figsize=(4.6, 4.4), layout="constrained")
        top, low = figure.subplots(2, sharex=True, height_ratios=(4, 1))
        top.plot((0, 1), (0, 1), color=MUTED, linewidth=1, dashes=(3, 2))
        for b in filled:
            interval = Proportion.of(round(b.accuracy * b.n), b.n)
            top.plot((b.confidence,) * 2, (interval.low, interval.high), color=ACCENT,
                     linewidth=1.2)
            top.plot((b.confidence,) * 2, (b.confidence, b.accuracy), color=WARM, linewidth=2.6)
            top.plot(b.confidence, b.accuracy, "o", color=ACCENT, markersize=5, clip_on=False)
        top.set(xlim=(0, 1.015), ylim=(0, 1.015), ylabel="accuracy")
        low.bar([(i + 0.5) / NUM_BINS for i in range(NUM_BINS)], [b.n for b in bins],
                width=0.86 / NUM_BINS, color=ACCENT)
        low.set(xlabel="confidence", ylabel="images")
        low.grid(axis="x", visible=False)
        low.yaxis.set_major_locator(MaxNLocator(2, integer=True))
        for axis in (top.xaxis, top.yaxis):
            axis.set_major_formatter(lambda value, _: f"{100 * value:.3g}%")
        return _svg(figure, "reliability", "Reliability diagram: accuracy by confidence")


def _epochs(history: Sequence[Row], height: float) -> tuple[Figure, Axes]:
    """A figure of `height` inches whose x axis is the epoch."""
    figure = Figure(figsize=(4.6, height), layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel("epoch")
    first, last = history[0]["epoch"], history[-1]["epoch"]
    margin = max(0.3, (last - first) / 50) if last > first else 1
    axes.set_xlim(first - margin, last + margin)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    return figure, axes


def _series(history: Sequence[Row], key: str) -> tuple[list[float], list[float]]:
    return [row["epoch"] for row in history], [row[key] for row in history]


def _marker(history: Sequence[Row]) -> str | None:
    """A dot for a single epoch, which makes no line."""
    return "o" if len(history) == 1 else None


def _svg(figure: Figure, name: str, label: str) -> str:
    """`figure` as an SVG element for HTML, deterministic for the same data.

    `name` makes its ids unique on the page; `label` is for screen readers.
    """
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True,
                   metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = file.getvalue()
    text = text[text.index("<svg"):]
    # SVG in HTML needs no namespaces, and matplotlib's style element would affect the whole page.
    text = re.sub(r'\s+xmlns(:\w+)?="[^"]*"', "", text).replace("xlink:href", "href")
    text = re.sub(r'<style type="text/css">.*?</style>', "", text, flags=re.DOTALL)
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text)
    for color, variable in VARIABLES.items():
        text = text.replace(color, f"var({variable})")
    return text.replace("<svg", f'<svg class="chart" role="img" aria-label="{label}"', 1)
