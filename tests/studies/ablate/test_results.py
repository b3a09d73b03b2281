import pytest
from scipy.stats import ttest_rel

from cvt.studies.ablate.results import Outcome, compare, interval, mean_and_std, verdict_on
from cvt.studies.ablate.tables import Claim

AHEAD = Claim(text="it is better", one="a", other="b")


def outcomes(*top1):
    return [Outcome(seed=i, top1=value, seconds=1.0) for i, value in enumerate(top1)]


def test_the_interval_is_that_of_the_paired_t_test():
    one, other = (90.1, 91.4, 90.8, 92.0), (89.0, 91.6, 90.0, 90.4)
    result = compare(AHEAD, outcomes(*one), outcomes(*other))
    expected = ttest_rel(one, other).confidence_interval(0.95)
    assert (result.low, result.high) == pytest.approx((expected.low, expected.high))
    assert result.mean == pytest.approx(0.825)


def test_runs_are_paired_by_seed_not_by_place():
    result = compare(AHEAD, outcomes(90, 92, 91), [
        Outcome(seed=2, top1=90.0, seconds=1.0), Outcome(seed=0, top1=88.0, seconds=1.0)])
    assert result.differences == (2.0, 1.0)


def test_a_run_that_diverged_counts_in_no_pair_and_no_mean():
    lost = [*outcomes(90.0, 92.0), Outcome(seed=2, top1=None, seconds=None, error="the loss ...")]
    assert mean_and_std(lost) == pytest.approx((91.0, 2**0.5))
    assert compare(AHEAD, lost, outcomes(89, 91, 20)).differences == (1.0, 1.0)


@pytest.mark.parametrize(("kind", "low", "high", "verdict"), [
    ("ahead", 0.1, 2.0, "holds"), ("ahead", -0.1, 2.0, "inconclusive"),
    ("ahead", -2.0, -0.1, "does not hold"), ("not behind", -0.4, 2.0, "holds"),
    ("not behind", -0.6, 2.0, "inconclusive"), ("not behind", -2.0, -0.6, "does not hold"),
    ("ahead", None, None, "inconclusive")])
def test_a_verdict_needs_an_interval_on_one_side_of_the_bound(kind, low, high, verdict):
    assert verdict_on(kind, low, high) == verdict


def test_one_run_has_a_mean_and_no_interval():
    assert mean_and_std(outcomes(90.0)) == (90.0, None)
    assert interval([1.0]) == (None, None)
    assert compare(AHEAD, outcomes(90.0), outcomes(80.0)).verdict == "inconclusive"
