"""A search as an image."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from cvt.studies.search.result import Result

_INK, _MUTED, _LINE = "#30333a", "#5b606b", "#c9ccd2"
_EVOLUTION, _RANDOM = "#3465a4", "#8d93a0"


def draw(result: Result, path: Path) -> None:
    """Write every network's top-1 over its multiply-adds, as PNG; the best of each are crossed."""
    figure = Figure(figsize=(7, 4.4), dpi=150, layout="constrained", facecolor="white")
    axes = figure.subplots()
    # Rings around dots, for the first generation is both methods'.
    for name, scored, best, colour, style in (
            ("random search", result.random, result.found_at_random, _RANDOM,
             {"markersize": 8, "markerfacecolor": "none"}),
            ("evolution", result.evolution, result.found, _EVOLUTION,
             {"markersize": 4.5, "markeredgewidth": 0})):
        axes.plot([s.multiply_adds / 1e6 for s in scored], [100 * s.top1 for s in scored], "o",
                  color=colour, label=name, **style)
        axes.plot(best.multiply_adds / 1e6, 100 * best.top1, "+", color=colour, markersize=18,
                  zorder=3, label=f"its best, {100 * best.top1:.1f} %")
    if result.base:
        axes.plot(result.base.multiply_adds / 1e6, 100 * result.base.top1, "D", color="#c4662a",
                  markersize=6, label="as the recipe has it")
    if result.budget <= result.most:
        axes.axvline(result.budget / 1e6, color=_MUTED, linewidth=1, dashes=(4, 3),
                     label="budget")
    axes.set_xlabel(f"million multiply-adds at {result.size[0]}x{result.size[1]}", color=_MUTED,
                    fontsize=8)
    axes.set_ylabel(f"top-1 in %, supernet's weights,\n{result.held_out:,} held-out training "
                    "images", color=_MUTED, fontsize=8)
    axes.tick_params(labelsize=8, color=_LINE, labelcolor=_MUTED)
    axes.grid(color="#e4e6ea", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["bottom", "left"]].set_color(_LINE)
    figure.legend(loc="outside upper left", ncols=3, frameon=False, fontsize=8, labelcolor=_INK)
    figure.savefig(path, format="png")
