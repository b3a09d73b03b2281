"""Figures from probabilities and labels; no model, no files.

Letters: n images, K classes. Fractions are in [0, 1]; the loss is in nats.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from scipy.stats import binomtest
from torch import Tensor
from torchmetrics.functional.classification import (
    multiclass_confusion_matrix,
    multiclass_f1_score,
    multiclass_precision,
    multiclass_recall,
)

from cvt.system.schema import check

BINS = 15  # of confidence, as in Guo et al., 2017
MOST_MISTAKES = 48


@dataclass(frozen=True, kw_only=True)
class Proportion:
    """A fraction in [0, 1] and its 95 % interval (Wilson, 1927)."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, hits: int, n: int) -> Proportion:
        """`hits` of `n`, n at least 1."""
        interval = binomtest(hits, n).proportion_ci(confidence_level=0.95, method="wilson")
        return cls(value=hits / n, low=float(interval.low), high=float(interval.high))


@dataclass(frozen=True, kw_only=True)
class ClassScore:
    """How one class fares; a fraction with nothing to divide by is 0, as in scikit-learn."""

    name: str
    n: int
    """Images of the class."""
    precision: float
    """Of the images said to be of the class, the fraction that are."""
    recall: float
    """Of the images of the class, the fraction said to be."""
    f1: float
    """Harmonic mean of precision and recall."""


class Bin(NamedTuple):
    """The predictions whose confidence falls into one bin; an empty bin is all zeros."""

    n: int
    """Predictions in the bin."""
    confidence: float
    """Mean probability of the predicted class."""
    accuracy: float
    """Fraction that is right."""


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """A wrongly classified image."""

    index: int
    """Its place in the dataset."""
    name: str
    label: int
    """The true class, an index into the classes."""
    predicted: int
    """The most probable class, an index into the classes."""
    confidence: float
    """Probability of the predicted class."""


class Unreadable(NamedTuple):
    """An image that could not be read."""

    name: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Everything that `score` measures."""

    classes: tuple[str, ...]
    n: int
    """Images scored, those that could not be read among them."""
    loss: float
    """Mean cross entropy, nats."""
    top1: Proportion
    """Images whose most probable class is right; one that could not be read is not."""
    top5: Proportion | None
    """Images whose class is among the five most probable; None where that says nothing, with
    five classes or fewer."""
    ece: float
    """Expected calibration error in [0, 1] (Guo et al., 2017), 15 bins of equal width."""
    macro_f1: float
    """Mean F1 of the classes that occur as label or as prediction, each counting the same."""
    per_class: tuple[ClassScore, ...]
    confusion: tuple[tuple[int, ...], ...]
    """Images of each true class (row) by predicted class (column), (K, K)."""
    reliability: tuple[Bin, ...]
    """The bins of the calibration error, from confidence (0, 1/15] to (14/15, 1]."""
    mistakes: tuple[Mistake, ...]
    """The most confident first, at most 48."""
    unreadable: tuple[Unreadable, ...]
    """Images that count as wrong in top-1 and top-5, and nowhere else."""

    def headline(self) -> str:
        """The main figures in one line."""
        top5 = f", top-5 {self.top5.value:.2%}" if self.top5 else ""
        wrong = (f", {len(self.unreadable)} of them unreadable and counted as wrong"
                 if self.unreadable else "")
        return (f"top-1 {self.top1.value:.2%} (95 % interval {self.top1.low:.2%} to "
                f"{self.top1.high:.2%}, n = {self.n:,}{wrong}){top5}, "
                f"macro F1 {self.macro_f1:.3f}, calibration error {self.ece:.3f}, "
                f"loss {self.loss:.4f}")

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists, numbers and strings, as JSON has them."""
        return {**asdict(self), "classes": list(self.classes),
                "per_class": [asdict(c) for c in self.per_class],
                "confusion": [list(row) for row in self.confusion],
                "reliability": [b._asdict() for b in self.reliability],
                "mistakes": [asdict(m) for m in self.mistakes],
                "unreadable": [u._asdict() for u in self.unreadable]}


def score(probs: Tensor, labels: Tensor, names: Sequence[str], classes: tuple[str, ...],
          loss: float, unreadable: Mapping[int, str] = {}) -> Evaluation:
    """Compare `probs` (n, K), rows that sum to 1, with `labels` (n,) int64, both on the CPU.

    `names` are the images' names, `classes` the K classes', `loss` the mean cross entropy in
    nats, which is more exact from logits than from probabilities and so is handed through.
    `unreadable` has the places in `names` of images that are not among the n, and why: they count
    as wrong in top-1 and top-5. Where two classes are equally probable, the first counts as
    predicted. Raises InputError for no
    images, fewer than two classes, sizes that do not match, labels outside [0, K) and rows that
    are no probabilities. Precision, recall, F1 and the confusion matrix are torchmetrics'.
    """
    k = len(classes)
    read = [i for i in range(len(names)) if i not in unreadable]
    _check(probs, labels, len(read), k, loss)
    confidence, predicted = probs.max(1)  # (n,), (n,)
    confidence = confidence.double().clamp(max=1)
    right = predicted == labels
    n, hits = len(labels), int(right.sum())
    confusion = multiclass_confusion_matrix(predicted, labels, k)  # (K, K)
    reliability = _reliability(confidence, right)
    return Evaluation(
        classes=classes, n=len(names), loss=loss,
        top1=Proportion.of(hits, len(names)),
        top5=_top5(probs, labels, len(names)) if k > 5 else None,
        # From the bins that the reliability diagram shows. torchmetrics' own function counts a
        # confidence of exactly 1, common in float32, in a sixteenth bin.
        ece=sum(b.n / n * abs(b.accuracy - b.confidence) for b in reliability),
        macro_f1=_digits(multiclass_f1_score(predicted, labels, k, average="macro"))[0],
        per_class=_per_class(predicted, labels, classes, confusion),
        confusion=tuple(tuple(row) for row in confusion.tolist()),
        reliability=reliability,
        mistakes=_mistakes(confidence, predicted, labels, names, read),
        unreadable=tuple(Unreadable(names[i], unreadable[i]) for i in sorted(unreadable)))


def _check(probs: Tensor, labels: Tensor, names: int, k: int, loss: float) -> None:
    check(k >= 2, f"{k} class names; classifying takes at least two classes")
    check(labels.numel() > 0, "there are no images to score; give at least one")
    n = len(labels)
    check(probs.shape == (n, k) and labels.shape == (n,) and names == n,
          f"probabilities {tuple(probs.shape)}, labels {tuple(labels.shape)} and {names} "
          f"names do not match for {k} classes; give shapes (n, {k}), (n,) and n names")
    for label in (int(labels.min()), int(labels.max())):
        check(0 <= label < k, f"label {label} is outside 0 to {k - 1}, the {k} classes; give "
              "indices into the class names")
    check(bool(probs.isfinite().all()) and math.isfinite(loss),
          f"probabilities hold NaN or infinity, or loss={loss} is such; the model's weights may "
          "have diverged")
    check(bool((probs >= 0).all() and ((probs.sum(1) - 1).abs() < 1e-2).all()),
          "rows of probabilities must not be negative and must sum to 1; apply softmax to logits "
          "first")


def _top5(probs: Tensor, labels: Tensor, n: int) -> Proportion:
    among = (probs.topk(5).indices == labels[:, None]).any(1)
    return Proportion.of(int(among.sum()), n)


def _per_class(predicted: Tensor, labels: Tensor, classes: tuple[str, ...], confusion: Tensor
               ) -> tuple[ClassScore, ...]:
    precision, recall, f1 = (
        _digits(metric(predicted, labels, len(classes), average=None))
        for metric in (multiclass_precision, multiclass_recall, multiclass_f1_score))
    return tuple(ClassScore(name=name, n=n, precision=p, recall=r, f1=f) for name, n, p, r, f
                 in zip(classes, confusion.sum(1).tolist(), precision, recall, f1, strict=True))


def _reliability(confidence: Tensor, right: Tensor) -> tuple[Bin, ...]:
    """Predictions by confidence (n,), in bins of equal width that hold their upper edge."""
    place = torch.bucketize(confidence, torch.arange(1, BINS, dtype=torch.float64) / BINS)
    counts, confidences, hits = (torch.bincount(place, weights, BINS).tolist()
                                 for weights in (None, confidence, right.double()))
    return tuple(Bin(c, s / c, h / c) if c else Bin(0, 0.0, 0.0)
                 for c, s, h in zip(counts, confidences, hits, strict=True))


def _mistakes(confidence: Tensor, predicted: Tensor, labels: Tensor, names: Sequence[str],
              read: Sequence[int]) -> tuple[Mistake, ...]:
    wrong = (predicted != labels).nonzero().flatten()
    order = confidence[wrong].argsort(descending=True, stable=True)[:MOST_MISTAKES]
    return tuple(Mistake(index=read[i], name=names[read[i]], label=int(labels[i]),
                         predicted=int(predicted[i]), confidence=float(confidence[i]))
                 for i in wrong[order].tolist())


def _digits(values: Tensor) -> list[float]:
    """As Python numbers, without the digits that float32, in which torchmetrics counts, lacks."""
    return [round(value, 7) for value in values.flatten().tolist()]
