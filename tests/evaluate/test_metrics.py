"""Each figure against scikit-learn or a computation of its own."""

import json

import numpy as np
import pytest
import torch
from sklearn.metrics import (
    confusion_matrix,
    f1_score,
    precision_recall_fscore_support,
    top_k_accuracy_score,
)
from torchmetrics.functional.classification import multiclass_calibration_error

from cvt.evaluate.metrics import Evaluation, Proportion, score
from cvt.system.errors import InputError


def predictions(n=300, k=8, seed=0):
    """Random probabilities (n, k), right about half the time, and labels (n,)."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(k, (n,), generator=generator)
    logits = torch.randn(n, k, generator=generator)
    logits[torch.arange(n), labels] += 1.5
    return logits.softmax(1), labels


def evaluate(probs, labels, loss=0.5) -> Evaluation:
    n, k = probs.shape
    return score(probs, labels, [f"image {i}" for i in range(n)],
                 tuple(f"class {i}" for i in range(k)), loss)


def one_hot(predicted, k):
    return torch.eye(k)[torch.tensor(predicted)]


def ece_of(probs, labels):
    """Guo et al., 2017, equation 3, bin by bin."""
    confidence, right = probs.max(1), probs.argmax(1) == labels
    total = 0.0
    for m in range(15):
        inside = (confidence > m / 15) & (confidence <= (m + 1) / 15)
        if inside.any():
            total += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    return total


def test_confusion_and_class_scores_agree_with_scikit_learn():
    probs, labels = predictions()
    result = evaluate(probs, labels)
    predicted = probs.argmax(1)
    precision, recall, f1, n = precision_recall_fscore_support(labels, predicted)
    assert np.array_equal(result.confusion, confusion_matrix(labels, predicted))
    assert [c.n for c in result.per_class] == n.tolist()
    assert [c.precision for c in result.per_class] == pytest.approx(precision, abs=1e-6)
    assert [c.recall for c in result.per_class] == pytest.approx(recall, abs=1e-6)
    assert [c.f1 for c in result.per_class] == pytest.approx(f1, abs=1e-6)
    assert result.macro_f1 == pytest.approx(f1_score(labels, predicted, average="macro"), abs=1e-6)


def test_accuracies_agree_with_scikit_learn():
    probs, labels = predictions()
    result = evaluate(probs, labels)
    for k, found in ((1, result.top1), (5, result.top5)):
        assert found.value == pytest.approx(top_k_accuracy_score(labels, probs, k=k))
        assert found.low < found.value < found.high


@pytest.mark.parametrize("seed", range(3))
def test_calibration_error_agrees_with_its_definition_and_torchmetrics(seed):
    probs, labels = predictions(seed=seed)
    found = evaluate(probs, labels).ece
    assert found == pytest.approx(ece_of(probs.double().numpy(), labels.numpy()))
    assert found == pytest.approx(
        multiclass_calibration_error(probs, labels, 8, n_bins=15, norm="l1").item(), abs=1e-6)


def test_full_confidence_shares_the_last_bin_with_what_is_close_to_it():
    probs = torch.tensor([[1.0, 0.0], [0.96, 0.04]])
    result = evaluate(probs, torch.tensor([1, 0]))
    assert result.reliability[-1] == pytest.approx((2, 0.98, 0.5))
    assert result.ece == pytest.approx(0.48)


def test_a_confidence_on_an_edge_falls_into_the_bin_below():
    probs = torch.tensor([[0.6, 0.4]], dtype=torch.float64)
    assert evaluate(probs, torch.tensor([0])).reliability[8].n == 1  # (8/15, 9/15]


def test_bins_hold_every_image():
    probs, labels = predictions()
    result = evaluate(probs, labels)
    assert len(result.reliability) == 15
    assert sum(b.n for b in result.reliability) == 300
    assert sum(b.n * b.accuracy for b in result.reliability) / 300 == pytest.approx(
        result.top1.value)


@pytest.mark.parametrize(("hits", "n", "low", "high"), [
    # Newcombe, Statistics in Medicine 17 (1998), table I, method 3.
    (81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611),
    (1, 29, 0.0061, 0.1718),
])
def test_intervals_are_those_of_newcombes_table(hits, n, low, high):
    found = Proportion.of(hits, n)
    assert found.value == hits / n
    assert (found.low, found.high) == pytest.approx((low, high), abs=5e-5)


def test_a_class_that_does_not_occur_scores_zero_and_leaves_the_mean_alone():
    result = evaluate(one_hot([0, 1, 1], 3), torch.tensor([0, 1, 0]))
    absent = result.per_class[2]
    assert (absent.n, absent.precision, absent.recall, absent.f1) == (0, 0, 0, 0)
    assert result.macro_f1 == pytest.approx(2 / 3)  # both classes that occur have F1 2/3


def test_a_perfect_model_has_no_mistakes():
    result = evaluate(one_hot([0, 1, 2, 1], 3), torch.tensor([0, 1, 2, 1]), loss=0.0)
    assert (result.top1.value, result.top1.high, result.macro_f1, result.ece) == (1, 1, 1, 0)
    assert result.mistakes == ()


def test_a_model_that_is_always_wrong_and_sure_is_as_badly_calibrated_as_can_be():
    result = evaluate(one_hot([1, 0, 0], 2), torch.tensor([0, 1, 1]))
    assert (result.top1.value, result.top1.low, result.macro_f1, result.ece) == (0, 0, 0, 1)
    assert len(result.mistakes) == 3


@pytest.mark.parametrize(("k", "given"), [(2, False), (5, False), (6, True)])
def test_top5_is_left_out_where_it_says_nothing(k, given):
    assert (evaluate(*predictions(n=20, k=k)).top5 is not None) == given


def test_mistakes_are_the_most_confident_first():
    probs = torch.tensor([[0.4, 0.6], [0.9, 0.1], [0.2, 0.8], [0.4, 0.6]])
    result = evaluate(probs, torch.tensor([0, 0, 0, 0]))
    assert [m.index for m in result.mistakes] == [2, 0, 3]
    worst = result.mistakes[0]
    assert (worst.name, worst.label, worst.predicted) == ("image 2", 0, 1)
    assert worst.confidence == pytest.approx(0.8)


def test_mistakes_are_at_most_48():
    probs, labels = predictions()
    result = evaluate(probs, labels)
    wrong = (probs.argmax(1) != labels).sum()
    assert wrong > 48 == len(result.mistakes)


def test_equal_probabilities_count_as_the_first_class_everywhere():
    result = evaluate(torch.full((2, 4), 0.25), torch.tensor([0, 1]))
    assert result.confusion[0][0] == result.confusion[1][0] == 1
    assert result.top1.value == 0.5


def test_one_image_is_enough():
    result = evaluate(torch.tensor([[0.7, 0.3]]), torch.tensor([0]))
    assert (result.n, result.top1.value) == (1, 1)


def test_half_precision_is_scored_as_well():
    probs, labels = predictions()
    result = evaluate(probs.bfloat16(), labels)
    assert result.top1.value == pytest.approx(evaluate(probs, labels).top1.value, abs=0.02)


def test_the_loss_is_handed_through():
    assert evaluate(*predictions(), loss=1.25).loss == 1.25


def test_as_a_dict_it_survives_json():
    data = evaluate(*predictions()).to_dict()
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    assert set(data["top1"]) == {"value", "low", "high"}
    assert set(data["reliability"][0]) == {"n", "confidence", "accuracy"}


def test_five_classes_have_null_for_top5_in_json():
    assert evaluate(*predictions(n=20, k=5)).to_dict()["top5"] is None


@pytest.mark.parametrize(("probs", "labels", "message"), [
    (torch.zeros(0, 3), [], "no images"),
    (torch.ones(2, 1), [0, 0], "at least two classes"),
    (one_hot([0, 1], 2), [0, 2], "label 2 is outside 0 to 1"),
    (one_hot([0, 1], 2), [-1, 0], "label -1 is outside"),
    (torch.tensor([[float("nan"), 1.0]]), [0], "NaN or infinity"),
    (torch.tensor([[float("inf"), 1.0]]), [0], "NaN or infinity"),
    (torch.tensor([[3.0, -2.0]]), [0], "apply softmax"),
    (torch.tensor([[3.0, 1.0]]), [0], "apply softmax"),
    (one_hot([0, 1], 2), [0], "do not match"),
])
def test_what_cannot_be_scored_is_refused(probs, labels, message):
    with pytest.raises(InputError, match=message):
        evaluate(probs, torch.tensor(labels, dtype=torch.long))


def test_an_infinite_loss_is_refused():
    with pytest.raises(InputError, match="loss=inf"):
        evaluate(*predictions(), loss=float("inf"))
