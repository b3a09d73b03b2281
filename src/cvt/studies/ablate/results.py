"""Statistics of runs: means, paired differences with intervals, and a verdict on each claim."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Literal

from scipy.stats import t

from cvt.evaluate.run import METRICS
from cvt.studies.ablate.tables import MARGIN, Claim
from cvt.studies.ablate.training import FAILURE, Run
from cvt.system.schema import read_mapping
from cvt.train.directory import JSONL

Verdict = Literal["holds", "does not hold", "inconclusive"]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The result of one run."""

    seed: int
    top1: float | None
    """Validation top-1 in percent at the last epoch, so that no epoch is selected on those images.
    None if the loss diverged."""
    seconds: float | None
    """Training time."""
    error: str | None = None
    """Why `top1` is None."""


def read_outcome(run: Run) -> Outcome:
    """Read the result of a run that is done."""
    home, seed = run.directory, run.recipe.seed
    if (home / FAILURE).is_file():
        return Outcome(seed=seed, top1=None, seconds=None,
                       error=read_mapping(home / FAILURE)["error"])
    *_, last = map(json.loads, (home / JSONL).read_text(encoding="utf-8").splitlines())
    return Outcome(seed=seed, top1=100 * last["val_top1"],
                   seconds=read_mapping(home / METRICS)["train_seconds"])


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The difference of two configurations, over the seeds that both completed."""

    claim: str
    one: str
    other: str
    kind: Literal["ahead", "not behind"]
    images: int | None
    """Number of training images, in a study that varies it."""
    differences: tuple[float, ...]
    """`one` minus `other` in points of top-1, by seed."""
    mean: float | None
    low: float | None
    high: float | None
    """Student's 95 % confidence interval of the mean; None with fewer than two seeds."""
    verdict: Verdict


def mean_and_std(outcomes: Sequence[Outcome]) -> tuple[float | None, float | None]:
    """Mean and standard deviation (n - 1) of the accuracies; None if there are too few."""
    top1 = [o.top1 for o in outcomes if o.top1 is not None]
    return (fmean(top1) if top1 else None, stdev(top1) if len(top1) > 1 else None)


def compare(claim: Claim, one: Sequence[Outcome], other: Sequence[Outcome],
            images: int | None = None) -> Comparison:
    """Test `claim` on pairs of runs with the same seed."""
    others = {o.seed: o.top1 for o in other}
    differences = tuple(a.top1 - b for a in one
                        if a.top1 is not None and (b := others.get(a.seed)) is not None)
    low, high = interval(differences)
    return Comparison(
        claim=claim.text, one=claim.one, other=claim.other, kind=claim.kind, images=images,
        differences=differences, mean=fmean(differences) if differences else None,
        low=low, high=high, verdict=verdict_on(claim.kind, low, high))


def interval(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Student's 95 % confidence interval of the mean; (None, None) for fewer than two values.

    It assumes that runs with different seeds are normally distributed, and covers neither other
    datasets nor other splits.
    """
    n = len(values)
    if n < 2:
        return None, None
    half = float(t.ppf(0.975, n - 1)) * stdev(values) / math.sqrt(n)
    return fmean(values) - half, fmean(values) + half


def verdict_on(kind: Literal["ahead", "not behind"], low: float | None, high: float | None
               ) -> Verdict:
    """The verdict on a claim of this kind from the interval of the differences, in points."""
    if low is None or high is None:
        return "inconclusive"
    bound = 0.0 if kind == "ahead" else -MARGIN
    return "holds" if low > bound else "does not hold" if high < bound else "inconclusive"
