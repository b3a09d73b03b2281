"""What runs say: means, paired differences with intervals, and a verdict on each claim."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Literal

from scipy.stats import t

from cvt.evaluate.run import METRICS
from cvt.studies.ablate.plan import FAILURE, Run
from cvt.studies.ablate.studies import MARGIN, Claim
from cvt.system.schema import read_mapping
from cvt.train.state import JSONL

Verdict = Literal["holds", "does not hold", "cannot be told"]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one run."""

    seed: int
    top1: float | None
    """Percent of the validation images, at the last epoch: no epoch is chosen by them. None
    where the loss diverged."""
    seconds: float | None
    """Of training."""
    error: str | None = None
    """Why there is no accuracy."""


def outcome(run: Run) -> Outcome:
    """What a run that is done says."""
    home, seed = run.directory, run.recipe.seed
    if (home / FAILURE).is_file():
        return Outcome(seed=seed, top1=None, seconds=None,
                       error=read_mapping(home / FAILURE)["error"])
    *_, last = map(json.loads, (home / JSONL).read_text(encoding="utf-8").splitlines())
    return Outcome(seed=seed, top1=100 * last["val_top1"],
                   seconds=read_mapping(home / METRICS)["train_seconds"])


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One configuration less another, over the seeds that both finished."""

    claim: str
    one: str
    other: str
    kind: Literal["ahead", "not behind"]
    images: int | None
    """How many both were trained on, where the study varies it."""
    differences: tuple[float, ...]
    """Points of top-1, a seed each, in the order of the seeds."""
    mean: float | None
    low: float | None
    high: float | None
    """Student's 95 % interval of the mean difference; None with fewer than two seeds."""
    verdict: Verdict


def mean_of(outcomes: Sequence[Outcome]) -> tuple[float | None, float | None]:
    """Mean and standard deviation (n - 1) of the accuracies; None where there are too few."""
    found = [o.top1 for o in outcomes if o.top1 is not None]
    return (fmean(found) if found else None, stdev(found) if len(found) > 1 else None)


def compare(claim: Claim, one: Sequence[Outcome], other: Sequence[Outcome],
            images: int | None = None) -> Comparison:
    """Judge `claim` by runs of the same seeds, paired."""
    there = {o.seed: o.top1 for o in other}
    differences = tuple(a.top1 - b for a in one
                        if a.top1 is not None and (b := there.get(a.seed)) is not None)
    low, high = interval(differences)
    return Comparison(
        claim=claim.text, one=claim.one, other=claim.other, kind=claim.kind, images=images,
        differences=differences, mean=fmean(differences) if differences else None,
        low=low, high=high, verdict=judge(claim.kind, low, high))


def interval(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Student's 95 % interval of the mean; (None, None) for fewer than two values.

    It assumes that runs of different seeds differ as a normal distribution does, and knows nothing
    of other datasets or other splits.
    """
    n = len(values)
    if n < 2:
        return None, None
    half = float(t.ppf(0.975, n - 1)) * stdev(values) / math.sqrt(n)
    return fmean(values) - half, fmean(values) + half


def judge(kind: Literal["ahead", "not behind"], low: float | None, high: float | None) -> Verdict:
    """Whether an interval of differences, in points, settles a claim of this kind."""
    if low is None or high is None:
        return "cannot be told"
    bound = 0.0 if kind == "ahead" else -MARGIN
    return "holds" if low > bound else "does not hold" if high < bound else "cannot be told"
