"""An evaluation as a page to look at: one HTML file that needs nothing else."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from PIL import Image

from cvt.evaluate.charts import loss_chart, lr_chart, reliability_chart, top1_chart
from cvt.evaluate.metrics import Evaluation, Mistake
from cvt.evaluate.thumbnails import heat_image, thumbnail
from cvt.system.errors import InputError
from cvt.system.files import replace_file

TABLE_CLASSES = 20  # with more, the confusion matrix is an image and the class table folds
TINY = 64  # pixels; smaller images are enlarged with hard edges
BLUE, ORANGE = (47, 111, 176), (222, 104, 48)  # seen on white and on near-black


def write_report(path: str | Path, *, title: str, evaluation: Evaluation,
                 read: Callable[[int], Image.Image], history: Sequence[Mapping[str, float]] = (),
                 facts: Mapping[str, str] = {}, config: Mapping[str, Any] = {}) -> None:
    """Write `evaluation` to `path` as one HTML file without external references.

    `read` gives the image at an index of the dataset; where it raises InputError or OSError, the
    message stands in the image's place. `history` has a row an epoch with epoch, train_loss and
    val_loss (nats), val_top1 in [0, 1], lr and seconds; `facts` are lines on machine and time,
    `config` is whatever made the model. What is empty is left out. Whoever reads `path` sees the
    old file or the whole new one.
    """
    html = _environment().get_template("report.html.j2").render(
        title=title, e=evaluation, facts=facts, config=_yaml(config), curves=_curves(history),
        pairs=_pairs(evaluation), matrix=_matrix(evaluation), calibration=_calibration(evaluation),
        mistakes=[_mistake(m, evaluation.classes, read) for m in evaluation.mistakes],
        wrong=_read(evaluation) - _hits(evaluation), rows=_rows(evaluation),
        many=len(evaluation.classes) > TABLE_CLASSES)
    # A file name need not be UTF-8; Python then holds its odd bytes as surrogates.
    replace_file(path, lambda part: part.write_text(html, encoding="utf-8", errors="replace"))


@dataclass(frozen=True, kw_only=True)
class _Pair:
    """A true class, the class it was taken for, how often, and in what share of its images."""

    label: str
    predicted: str
    count: int
    share: float


def _environment() -> Environment:
    env = Environment(loader=PackageLoader("cvt", "evaluate"), autoescape=True, trim_blocks=True,
                      lstrip_blocks=True, undefined=StrictUndefined)
    env.filters.update(percent=percent, short=short, heat=_heat)
    return env


def percent(fraction: float, digits: int = 1) -> Markup:
    """A fraction in [0, 1] in percent; only 1 itself is rounded to 100.

    >>> percent(0.9723)
    Markup('97.2&nbsp;%')
    """
    value = 100 * fraction
    if fraction < 1 and round(value, digits) == 100:
        return Markup("&gt;{:.{}f}&nbsp;%").format(100 - 10.0**-digits, digits)
    return Markup("{:.{}f}&nbsp;%").format(value, 0 if fraction == 1 else digits)


def short(name: str) -> Markup:
    """The end of a long path, which may break after a slash.

    >>> short("/a/long/way/to/the/images/cat/0001.jpeg")
    Markup('&hellip;/<wbr>cat/<wbr>0001.jpeg')
    """
    parts = Path(name).parts
    if len(name) <= 32 or len(parts) < 3:
        return escape(name)
    return Markup("/<wbr>").join((Markup("&hellip;"), *parts[-2:]))


def _heat(share: float) -> str:
    """The shade for a share of a row; its square root, so that single mistakes show."""
    return f"{math.sqrt(share):.2f}"


def _read(e: Evaluation) -> int:
    return e.n - len(e.unreadable)


def _hits(e: Evaluation) -> int:
    return sum(e.confusion[i][i] for i in range(len(e.classes)))


def _curves(history: Sequence[Mapping[str, float]]) -> dict[str, Any] | None:
    if not history:
        return None
    return {
        "loss": Markup(loss_chart(history)),
        "top1": Markup(top1_chart(history)),
        "lr": Markup(lr_chart(history)),
        "epochs": len(history),
        "best": max(history, key=lambda row: row["val_top1"]),
        "lowest": min(history, key=lambda row: row["val_loss"]),
        "seconds": sum(row["seconds"] for row in history),
    }


def _matrix(e: Evaluation) -> dict[str, Any]:
    """The confusion matrix as rows of (count, share of the row), or for many classes an image."""
    shares = [[count / max(1, sum(row)) for count in row] for row in e.confusion]
    if len(e.classes) > TABLE_CLASSES:
        shades = [[math.sqrt(share) for share in row] for row in shares]
        return {"image": heat_image(shades, right=BLUE, wrong=ORANGE)}
    across = len(e.classes) * max(map(len, e.classes))  # characters of one line of column heads
    return {"turned": across > 60,
            "rows": [list(zip(row, share, strict=True))
                     for row, share in zip(e.confusion, shares, strict=True)]}


def _pairs(e: Evaluation) -> list[_Pair]:
    """Classes taken for others, the most frequent first."""
    most = 10 if len(e.classes) <= TABLE_CLASSES else 20
    pairs = [_Pair(label=e.classes[i], predicted=e.classes[j], count=count, share=count / sum(row))
             for i, row in enumerate(e.confusion)
             for j, count in enumerate(row) if count and i != j]
    return sorted(pairs, key=lambda pair: (-pair.count, -pair.share))[:most]


def _calibration(e: Evaluation) -> dict[str, Any]:
    confidence = sum(b.n * b.confidence for b in e.reliability) / _read(e)
    return {"chart": Markup(reliability_chart(e.reliability)), "confidence": confidence,
            "gap": confidence - _hits(e) / _read(e)}


def _rows(e: Evaluation) -> list[dict[str, Any]]:
    """The class table; None where there is nothing to divide by."""
    said = [sum(column) for column in zip(*e.confusion, strict=True)]
    return [{"name": c.name, "n": c.n, "precision": c.precision if times else None,
             "recall": c.recall if c.n else None, "f1": c.f1 if c.n else None}
            for c, times in zip(e.per_class, said, strict=True)]


def _mistake(mistake: Mistake, classes: Sequence[str], read: Callable[[int], Image.Image]
             ) -> dict[str, Any]:
    shown: dict[str, Any] = {"label": classes[mistake.label], "name": mistake.name,
                             "predicted": classes[mistake.predicted],
                             "confidence": mistake.confidence}
    try:
        uri, width, height = thumbnail(read(mistake.index))
    except (InputError, OSError) as error:
        return shown | {"error": str(error)}
    return shown | {"uri": uri, "tiny": max(width, height) < TINY, "error": None}


def _yaml(config: Mapping[str, Any]) -> str:
    """`config` as YAML; paths become strings and tuples lists, empty is the empty string."""
    plain = json.loads(json.dumps(config, default=str))
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True) if plain else ""
