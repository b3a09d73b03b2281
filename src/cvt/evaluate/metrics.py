"""Classification metrics from probabilities and labels.

Shape letters: n images, K classes. Fractions are in [0, 1]; the loss is in nats.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

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

NUM_BINS = 15  # of confidence, as in Guo et al., 2017
_MAX_MISCLASSIFIED = 48


@dataclass(frozen=True, kw_only=True)
class Proportion:
    """A fraction in [0, 1] and its 95 % confidence interval (Wilson, 1927)."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, count: int, n: int) -> Proportion:
        """The proportion `count` / `n`, with n at least 1."""
        interval = binomtest(count, n).proportion_ci(confidence_level=0.95, method="wilson")
        return cls(value=count / n, low=float(interval.low), high=float(interval.high))


@dataclass(frozen=True, kw_only=True)
class ClassScore:
    """Metrics of one class; a fraction with the denominator 0 is 0, as in scikit-learn."""

    name: str
    support: int
    """Number of images of the class."""
    precision: float
    """Fraction of the images predicted as the class that are of the class."""
    recall: float
    """Fraction of the images of the class that are predicted as the class."""
    f1: float
    """Harmonic mean of precision and recall."""


@dataclass(frozen=True, kw_only=True)
class Bin:
    """The predictions with a confidence in one bin; all zeros for an empty bin."""

    n: int
    """Number of predictions."""
    confidence: float
    """Mean probability of the predicted class."""
    accuracy: float
    """Fraction of correct predictions."""


@dataclass(frozen=True, kw_only=True)
class Misclassified:
    """A misclassified image."""

    index: int
    """Its index in the dataset."""
    name: str
    label: int
    """Index of the true class."""
    predicted: int
    """Index of the predicted class."""
    confidence: float
    """Probability of the predicted class."""


@dataclass(frozen=True, kw_only=True)
class Unreadable:
    """An unreadable image."""

    name: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """All metrics of a model on a dataset."""

    classes: tuple[str, ...]
    n: int
    """Number of images, including unreadable ones."""
    loss: float
    """Mean cross-entropy, nats."""
    top1: Proportion
    """Top-1 accuracy; an unreadable image counts as wrong."""
    top5: Proportion | None
    """Top-5 accuracy; None with five classes or fewer."""
    ece: float
    """Expected calibration error in [0, 1] (Guo et al., 2017), 15 bins of equal width."""
    macro_f1: float
    """Unweighted mean F1 of the classes that occur as label or prediction."""
    per_class: tuple[ClassScore, ...]
    confusion_matrix: tuple[tuple[int, ...], ...]
    """Number of images by true class (row) and predicted class (column), (K, K)."""
    calibration_bins: tuple[Bin, ...]
    """The bins of the calibration error, from confidence (0, 1/15] to (14/15, 1]."""
    misclassified: tuple[Misclassified, ...]
    """At most 48 misclassified images, most confident first."""
    unreadable: tuple[Unreadable, ...]
    """Unreadable images; they count as wrong in top-1 and top-5, and in no other metric."""

    @property
    def readable(self) -> int:
        """Number of images that could be read."""
        return self.n - len(self.unreadable)

    @property
    def correct(self) -> int:
        """Number of correctly classified images."""
        return sum(self.confusion_matrix[i][i] for i in range(len(self.classes)))

    def summary(self) -> str:
        """The main metrics in one line."""
        top5 = f", top-5 {self.top5.value:.2%}" if self.top5 else ""
        unreadable = (f", {len(self.unreadable)} of them unreadable and counted as wrong"
                      if self.unreadable else "")
        return (f"top-1 {self.top1.value:.2%} (95% CI {self.top1.low:.2%} to "
                f"{self.top1.high:.2%}, n = {self.n:,}{unreadable}){top5}, "
                f"macro F1 {self.macro_f1:.3f}, ECE {self.ece:.3f}, loss {self.loss:.4f}")

    def to_dict(self) -> dict[str, Any]:
        """All metrics as dicts and lists, for JSON."""
        data: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return data


def score(probs: Tensor, labels: Tensor, names: Sequence[str], classes: tuple[str, ...],
          loss: float, unreadable: Mapping[int, str] = {}) -> Evaluation:
    """Evaluate `probs` (n, K), rows that sum to 1, against `labels` (n,) int64, both on the CPU.

    names: of all images, including unreadable ones. classes: names of the K classes. loss: mean
    cross-entropy in nats; it is an argument because it is more exact from logits than from
    probabilities. unreadable: reasons by index into `names`; these images are not among the n, and
    count as wrong in top-1 and top-5. Between equally probable classes, the first is predicted.
    Precision, recall, F1 and the confusion matrix are torchmetrics'. Raises InputError for no
    images, fewer than two classes, shapes that do not match, labels outside [0, K) and rows that
    are not probabilities.
    """
    k = len(classes)
    readable = [i for i in range(len(names)) if i not in unreadable]
    _check(probs, labels, len(readable), k, loss)
    confidence, predicted = probs.max(1)  # (n,), (n,)
    confidence = confidence.double().clamp(max=1)
    correct = predicted == labels
    n = len(labels)
    confusion = multiclass_confusion_matrix(predicted, labels, k)  # (K, K)
    bins = _calibration_bins(confidence, correct)
    top5 = (probs.topk(5).indices == labels[:, None]).any(1) if k > 5 else None
    return Evaluation(
        classes=classes, n=len(names), loss=loss,
        top1=Proportion.of(int(correct.sum()), len(names)),
        top5=None if top5 is None else Proportion.of(int(top5.sum()), len(names)),
        # From the bins that the reliability diagram shows. torchmetrics' own function counts a
        # confidence of exactly 1, common in float32, in a sixteenth bin.
        ece=sum(b.n / n * abs(b.accuracy - b.confidence) for b in bins),
        macro_f1=_to_floats(multiclass_f1_score(predicted, labels, k, average="macro"))[0],
        per_class=_per_class(predicted, labels, classes, confusion),
        confusion_matrix=tuple(tuple(row) for row in confusion.tolist()),
        calibration_bins=bins,
        misclassified=_misclassified(confidence, predicted, labels, names, readable),
        unreadable=tuple(Unreadable(name=names[i], reason=unreadable[i])
                         for i in sorted(unreadable)))


def _check(probs: Tensor, labels: Tensor, names: int, k: int, loss: float) -> None:
    check(k >= 2, f"{k} class names; classification needs at least two classes")
    check(labels.numel() > 0, "there are no images to score; give at least one")
    n = len(labels)
    check(probs.shape == (n, k) and labels.shape == (n,) and names == n,
          f"probabilities {tuple(probs.shape)}, labels {tuple(labels.shape)} and {names} "
          f"names do not match for {k} classes; give shapes (n, {k}), (n,) and n names")
    for label in (int(labels.min()), int(labels.max())):
        check(0 <= label < k, f"label {label} is outside 0 to {k - 1}, the {k} classes; give "
              "indices into the class names")
    check(bool(probs.isfinite().all()) and math.isfinite(loss),
          f"the probabilities or loss={loss} are NaN or infinite; the model's weights may have "
          "diverged")
    check(bool((probs >= 0).all() and ((probs.sum(1) - 1).abs() < 1e-2).all()),
          "rows of probabilities must not be negative and must sum to 1; apply softmax to logits "
          "first")


def _per_class(predicted: Tensor, labels: Tensor, classes: tuple[str, ...], confusion: Tensor
               ) -> tuple[ClassScore, ...]:
    precision, recall, f1 = (
        _to_floats(metric(predicted, labels, len(classes), average=None))
        for metric in (multiclass_precision, multiclass_recall, multiclass_f1_score))
    return tuple(ClassScore(name=name, support=n, precision=p, recall=r, f1=f) for name, n, p, r, f
                 in zip(classes, confusion.sum(1).tolist(), precision, recall, f1, strict=True))


def _calibration_bins(confidence: Tensor, correct: Tensor) -> tuple[Bin, ...]:
    """Predictions by confidence (n,), in bins of equal width that include their upper edge."""
    edges = torch.arange(1, NUM_BINS, dtype=torch.float64) / NUM_BINS
    bin_index = torch.bucketize(confidence, edges)
    counts, confidences, hits = (torch.bincount(bin_index, weights, NUM_BINS).tolist()
                                 for weights in (None, confidence, correct.double()))
    return tuple(Bin(n=c, confidence=s / max(c, 1), accuracy=h / max(c, 1))
                 for c, s, h in zip(counts, confidences, hits, strict=True))


def _misclassified(confidence: Tensor, predicted: Tensor, labels: Tensor, names: Sequence[str],
                   readable: Sequence[int]) -> tuple[Misclassified, ...]:
    wrong = (predicted != labels).nonzero().flatten()
    order = confidence[wrong].argsort(descending=True, stable=True)[:_MAX_MISCLASSIFIED]
    return tuple(Misclassified(index=readable[i], name=names[readable[i]], label=int(labels[i]),
                               predicted=int(predicted[i]), confidence=float(confidence[i]))
                 for i in wrong[order].tolist())


def _to_floats(values: Tensor) -> list[float]:
    """As Python numbers, rounded to the precision of float32, in which torchmetrics computes."""
    return [round(value, 7) for value in values.flatten().tolist()]
