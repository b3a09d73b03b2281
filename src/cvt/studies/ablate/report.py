"""The page of a study, as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any


def to_markdown(name: str, study: Mapping[str, Any]) -> str:
    """The study `name` of ablation.json: its table, claims, runs and environment."""
    data, seeds = study["data"], study["seeds"]
    by_images = any(row["images"] for row in study["rows"])
    trained = "as many images as the table says" if by_images else f"{data['train']:,} images"
    parts = [
        f"# {study['title']}",
        f"![{study['title']}]({name}.png)",
        f"Trained on {trained} of {data['name']}, {_count(seeds, 'seed')} "
        f"({', '.join(map(str, seeds))}), scored on the {data['val']:,} held-out images at the "
        "last epoch; mean and standard deviation over the seeds, in percent."
        + ("" if by_images else " The paper's column is ImageNet with CvT-13 or DeiT-S, 300 "
           "epochs: compare the order, not the figures."),
        table_of(study),
        "## Claims",
        "Differences are in points of top-1 between runs of the same seed, with Student's 95 % "
        "interval of their mean. \"Not behind\" is judged with a margin of half a point.",
        claims_of(study),
        "## Every run",
        _runs(study["rows"]),
        "## How",
        "; ".join(f"{key}: {value}" for key, value in study["facts"].items()) + ".",
    ]
    return "\n\n".join(parts) + "\n"


def table_of(study: Mapping[str, Any]) -> str:
    """The results beside those of the paper."""
    rows = study["rows"]
    if any(row["images"] for row in rows):
        return _by_images(rows)
    return _table(("", "parameters", "multiply-adds", "top-1 here", "runs", "paper"), (
        (row["label"], f"{row['parameters'] / 1e6:.2f} M", _operations(row["multiply_adds"]),
         _accuracy(row), _finished(row),
         "" if row["paper_top1"] is None else f"{row['paper_top1']:.1f}") for row in rows))


def claims_of(study: Mapping[str, Any]) -> str:
    """Every claim with its differences and verdict."""
    by_images = any(c["images"] for c in study["comparisons"])
    head = ["claim", *(["images"] if by_images else []), "difference", "95 % interval", "runs",
            "verdict"]
    return _table(head, (
        (f"{c['claim']}: {c['one']} {c['kind']} {'of ' * (c['kind'] == 'ahead')}{c['other']}",
         *([f"{c['images']:,}"] if by_images else []),
         "none" if c["mean"] is None else f"{c['mean']:+.2f}",
         "none" if c["low"] is None else f"{c['low']:+.2f} to {c['high']:+.2f}",
         str(len(c["differences"])),
         verdict_of(c)) for c in study["comparisons"]))


def verdict_of(comparison: Mapping[str, Any]) -> str:
    """The verdict; an inconclusive one with the number of pairs."""
    n, verdict = len(comparison["differences"]), comparison["verdict"]
    return f"inconclusive with n = {n}" if verdict == "inconclusive" else verdict


def _by_images(rows: Sequence[Mapping[str, Any]]) -> str:
    """One line per number of images, one column per network."""
    labels = list(dict.fromkeys(row["label"] for row in rows))
    cells = {(row["label"], row["images"]): row for row in rows}
    first = {label: next(row for row in rows if row["label"] == label) for label in labels}
    head = ["images", *(f"{label} ({first[label]['parameters'] / 1e6:.2f} M, "
                          f"{_operations(first[label]['multiply_adds'])})" for label in labels)]
    sizes = list(dict.fromkeys(row["images"] for row in rows))
    return _table(head, ((f"{n:,}", *(f"{_accuracy(cells[label, n])} "
                                      f"({_finished(cells[label, n])})" for label in labels))
                         for n in sizes))


def _runs(rows: Sequence[Mapping[str, Any]]) -> str:
    def figures(row: Mapping[str, Any]) -> str:
        return ", ".join("diverged" if run["top1"] is None else f"{run['top1']:.2f}"
                         for run in row["runs"])

    return _table(("", "top-1 of each seed", "seconds of training, mean"), (
        (row["label"] + (f", {row['images']:,} images" if row["images"] else ""),
         figures(row), _seconds(row["runs"])) for row in rows))


def _seconds(runs: Sequence[Mapping[str, Any]]) -> str:
    seconds = [run["seconds"] for run in runs if run["seconds"] is not None]
    return f"{fmean(seconds):.0f}" if seconds else "none"


def _accuracy(row: Mapping[str, Any]) -> str:
    if row["mean"] is None:
        return "none"
    return f"{row['mean']:.2f}" + ("" if row["std"] is None else f" &plusmn; {row['std']:.2f}")


def _finished(row: Mapping[str, Any]) -> str:
    done, all_ = sum(run["top1"] is not None for run in row["runs"]), len(row["runs"])
    return str(done) if done == all_ else f"{done} of {all_}, the others diverged"


def _operations(count: int) -> str:
    return f"{count / 1e9:.2f} G" if count >= 1e9 else f"{count / 1e6:.1f} M"


def _count(values: Sequence[Any], word: str) -> str:
    return f"{len(values)} {word}{'s' * (len(values) != 1)}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
