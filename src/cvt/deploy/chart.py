"""The bar chart of a benchmark."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from cvt.deploy.bench import Comparison
from cvt.deploy.timing import summary


def draw(comparison: Comparison, path: str | Path) -> None:
    """Write a bar chart of images per second with quartiles as PNG; one panel per batch size."""
    batches = list(dict.fromkeys(row.batch for row in comparison.rows))
    groups = [[row for row in comparison.rows if row.batch == batch] for batch in batches]
    lengths = [len(group) for group in groups]
    figure = Figure(figsize=(8, 1.3 + 0.7 * len(groups) + 0.3 * sum(lengths)), dpi=150,
                    layout="constrained", facecolor="white")
    panels = figure.subplots(len(groups), squeeze=False, height_ratios=[n + 1 for n in lengths])
    for axes, batch, group in zip(panels[:, 0], batches, groups, strict=True):
        places = range(len(group))
        rates = [row.images_per_s for row in group]
        low = [row.batch / summary(row.seconds)["quartile3_s"] for row in group]
        high = [row.batch / summary(row.seconds)["quartile1_s"] for row in group]
        whiskers = [[m - v for m, v in zip(rates, low, strict=True)],
                    [v - m for m, v in zip(rates, high, strict=True)]]
        colors = ["#b9bdc6" if ":" in row.network else "#3465a4" for row in group]
        axes.barh(places, rates, height=0.68, color=colors, xerr=whiskers,
                  error_kw={"ecolor": "#30333a", "elinewidth": 1.1, "capsize": 2.5})
        for place, row, end in zip(places, group, high, strict=True):
            axes.annotate(f"{row.images_per_s:.3g}   {row.speedup['median']:.2f}x", (end, place),
                          xytext=(6, 0), textcoords="offset points", va="center", fontsize=8,
                          color="#30333a")
        labels = [f"{row.network.rpartition(':')[2]}  ({row.backend} {row.precision})"
                  for row in group]
        axes.set_yticks(places, labels, fontsize=8)
        axes.set_ylim(len(group) - 0.4, -0.6)
        axes.set_xlim(0, 1.2 * max(high))
        axes.tick_params(axis="y", length=0)
        axes.tick_params(axis="x", labelsize=8, color="#c9ccd2", labelcolor="#5b606b")
        axes.grid(axis="x", color="#e4e6ea", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.spines["bottom"].set_color("#c9ccd2")
        axes.set_title(f"batch {batch}", loc="left", fontsize=9, color="#30333a")
    panels[-1, 0].set_xlabel("images per second, median and quartiles of "
                             f"{comparison.rounds} rounds; ratio to {comparison.base}",
                             fontsize=8, color="#5b606b")
    what = "Training steps" if comparison.train else "Inference"
    figure.suptitle(f"{what} at {comparison.size} pixels on {comparison.hardware}", fontsize=10,
                    x=0.01, ha="left")
    figure.savefig(path, format="png")
