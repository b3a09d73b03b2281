"""The evaluation report: one self-contained HTML file."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from PIL import Image

from cvt.evaluate.charts import loss_chart, lr_chart, reliability_diagram, top1_chart
from cvt.evaluate.metrics import Evaluation, Misclassified
from cvt.system.errors import InputError
from cvt.system.files import replace_file
from cvt.system.text import utf8

_MAX_TABLE_CLASSES = 20  # with more, the confusion matrix is an image and the class table folds
_THUMBNAIL = 160  # pixels, the longer side
_PIXELATED = 64  # pixels; smaller images are enlarged with hard edges
_BLUE, _ORANGE = (47, 111, 176), (222, 104, 48)  # visible on white and on near-black


def write_report(path: str | Path, *, title: str, evaluation: Evaluation,
                 read: Callable[[int], Image.Image], history: Sequence[Mapping[str, float]] = (),
                 facts: Mapping[str, str] = {}, config: Mapping[str, Any] = {}) -> None:
    """Write `evaluation` to `path` as one HTML file without external references.

    read: returns the image at an index of the dataset; if it raises InputError or OSError, the
    message is shown in place of the image. history: a row for each epoch with epoch, train_loss and
    val_loss (nats), val_top1 in [0, 1], lr and seconds. facts: lines about the machine. config: the
    configuration of the model. Empty sections are left out. The file is replaced atomically.
    """
    html = _environment().get_template("report.html.j2").render(
        title=title, e=evaluation, facts=facts, config=_yaml(config), curves=_curves(history),
        pairs=_confused_pairs(evaluation), matrix=_matrix(evaluation),
        calibration=_calibration(evaluation), rows=_class_rows(evaluation),
        misclassified=[_figure(m, evaluation.classes, read) for m in evaluation.misclassified],
        many=len(evaluation.classes) > _MAX_TABLE_CLASSES)
    replace_file(path, lambda part: part.write_text(utf8(html), encoding="utf-8"))


def _environment() -> Environment:
    env = Environment(loader=PackageLoader("cvt", "evaluate"), autoescape=True, trim_blocks=True,
                      lstrip_blocks=True, undefined=StrictUndefined)
    # The square root makes single errors visible.
    env.filters.update(percent=percent, short=short, heat=lambda share: f"{math.sqrt(share):.2f}")
    return env


def percent(fraction: float, digits: int = 1) -> Markup:
    """A fraction in [0, 1] in percent; only 1 itself is rounded to 100.

    >>> percent(0.9723)
    Markup('97.2%')
    """
    value = 100 * fraction
    if fraction < 1 and round(value, digits) == 100:
        return Markup("&gt;{:.{}f}%").format(100 - 10.0**-digits, digits)
    return Markup("{:.{}f}%").format(value, 0 if fraction == 1 else digits)


def short(name: str) -> Markup:
    """The end of a long path, which may break after a slash.

    >>> short("/a/long/way/to/the/images/cat/0001.jpeg")
    Markup('&hellip;/<wbr>cat/<wbr>0001.jpeg')
    """
    parts = Path(name).parts
    if len(name) <= 32 or len(parts) < 3:
        return escape(name)
    return Markup("/<wbr>").join((Markup("&hellip;"), *parts[-2:]))


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
    """The confusion matrix as rows of (count, share of the row), or as an image of KxK pixels.

    In the image, a share of 0 is transparent, so that the page's background shows.
    """
    shares = [[count / max(1, sum(row)) for count in row] for row in e.confusion_matrix]
    if len(e.classes) > _MAX_TABLE_CLASSES:
        pixels = np.empty((len(shares), len(shares), 4), np.uint8)
        pixels[..., :3] = _ORANGE
        pixels[np.eye(len(shares), dtype=bool), :3] = _BLUE
        pixels[..., 3] = (np.sqrt(shares) * 255).round()
        return {"image": _data_uri(Image.fromarray(pixels))}
    header_length = len(e.classes) * max(map(len, e.classes))  # characters in one line
    return {"turned": header_length > 60,
            "rows": [list(zip(row, share, strict=True))
                     for row, share in zip(e.confusion_matrix, shares, strict=True)]}


def _confused_pairs(e: Evaluation) -> list[dict[str, Any]]:
    """Pairs of true and predicted class with their count and share of the true class, the most
    frequent first."""
    limit = 10 if len(e.classes) <= _MAX_TABLE_CLASSES else 20
    pairs: list[dict[str, Any]] = [
        {"label": e.classes[i], "predicted": e.classes[j], "count": count,
         "share": count / sum(row)}
        for i, row in enumerate(e.confusion_matrix)
        for j, count in enumerate(row) if count and i != j]
    return sorted(pairs, key=lambda pair: (-pair["count"], -pair["share"]))[:limit]


def _calibration(e: Evaluation) -> dict[str, Any]:
    confidence = sum(b.n * b.confidence for b in e.calibration_bins) / e.readable
    return {"diagram": Markup(reliability_diagram(e.calibration_bins)), "confidence": confidence,
            "accuracy": e.correct / e.readable, "gap": confidence - e.correct / e.readable}


def _class_rows(e: Evaluation) -> list[dict[str, Any]]:
    """The class table; None for a fraction with the denominator 0."""
    predicted = [sum(column) for column in zip(*e.confusion_matrix, strict=True)]
    return [{"name": c.name, "support": c.support, "precision": c.precision if count else None,
             "recall": c.recall if c.support else None, "f1": c.f1 if c.support else None}
            for c, count in zip(e.per_class, predicted, strict=True)]


def _figure(m: Misclassified, classes: Sequence[str], read: Callable[[int], Image.Image]
            ) -> dict[str, Any]:
    figure: dict[str, Any] = {"label": classes[m.label], "name": m.name,
                              "predicted": classes[m.predicted], "confidence": m.confidence}
    try:
        image = read(m.index).convert("RGB")
    except (InputError, OSError) as error:
        return figure | {"error": str(error)}
    image.thumbnail((_THUMBNAIL, _THUMBNAIL), Image.Resampling.LANCZOS)
    return figure | {"uri": _data_uri(image), "pixelated": max(image.size) < _PIXELATED,
                     "error": None}


def _data_uri(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def _yaml(config: Mapping[str, Any]) -> str:
    """`config` as YAML, with paths as strings and tuples as lists; empty if `config` is empty."""
    plain = json.loads(json.dumps(config, default=str))
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True) if plain else ""
