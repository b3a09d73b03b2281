"""Each metric against scikit-learn or an independent implementation."""

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
    assert np.array_equal(result.confusion_matrix, confusion_matrix(labels, predicted))
    assert [c.support for c in result.per_class] == n.tolist()
    assert [c.precision for c in result.per_class] == pytest.approx(precision, abs=1e-6)
    assert [c.recall for c in result.per_class] == pytest.approx(recall, abs=1e-6)
    assert [c.f1 for c in result.per_class] == pytest.approx(f1, abs=1e-6)
    assert result.macro_f1 == pytest.approx(f1_score(labels, predicted, average="macro"), abs=1e-6)


def test_accuracies_agree_with_scikit_learn():
    probs, labels = predictions()
    result = evaluate(probs, labels)
    for k, accuracy in ((1, result.top1), (5, result.top5)):
        assert accuracy.value == pytest.approx(top_k_accuracy_score(labels, probs, k=k))
        assert accuracy.low < accuracy.value < accuracy.high


@pytest.mark.parametrize("seed", range(3))
def test_calibration_error_agrees_with_its_definition_and_torchmetrics(seed):
    probs, labels = predictions(seed=seed)
    ece = evaluate(probs, labels).ece
    assert ece == pytest.approx(ece_of(probs.double().numpy(), labels.numpy()))
    assert ece == pytest.approx(
        multiclass_calibration_error(probs, labels, 8, n_bins=15, norm="l1").item(), abs=1e-6)


def test_full_confidence_is_in_the_last_bin():
    probs = torch.tensor([[1.0, 0.0], [0.96, 0.04]])
    result = evaluate(probs, torch.tensor([1, 0]))
    last = result.calibration_bins[-1]
    assert (last.n, last.confidence, last.accuracy) == pytest.approx((2, 0.98, 0.5))
    assert result.ece == pytest.approx(0.48)


def test_a_confidence_on_an_edge_is_in_the_bin_below():
    probs = torch.tensor([[0.6, 0.4]], dtype=torch.float64)
    assert evaluate(probs, torch.tensor([0])).calibration_bins[8].n == 1  # (8/15, 9/15]


def test_bins_hold_every_image():
    probs, labels = predictions()
    result = evaluate(probs, labels)
    assert len(result.calibration_bins) == 15
    assert sum(b.n for b in result.calibration_bins) == 300
    assert sum(b.n * b.accuracy for b in result.calibration_bins) / 300 == pytest.approx(
        result.top1.value)


@pytest.mark.parametrize(("count", "n", "low", "high"), [
    # Newcombe, Statistics in Medicine 17 (1998), table I, method 3.
    (81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611),
    (1, 29, 0.0061, 0.1718),
])
def test_intervals_are_those_of_newcombes_table(count, n, low, high):
    interval = Proportion.of(count, n)
    assert interval.value == count / n
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=5e-5)


def test_a_class_that_does_not_occur_scores_zero_and_leaves_the_mean_alone():
    result = evaluate(one_hot([0, 1, 1], 3), torch.tensor([0, 1, 0]))
    absent = result.per_class[2]
    assert (absent.support, absent.precision, absent.recall, absent.f1) == (0, 0, 0, 0)
    assert result.macro_f1 == pytest.approx(2 / 3)  # both classes that occur have F1 2/3


def test_a_perfect_model_has_no_misclassified_images():
    result = evaluate(one_hot([0, 1, 2, 1], 3), torch.tensor([0, 1, 2, 1]), loss=0.0)
    assert (result.top1.value, result.top1.high, result.macro_f1, result.ece) == (1, 1, 1, 0)
    assert result.misclassified == ()


def test_a_model_that_is_always_wrong_and_confident_has_the_maximum_ece():
    result = evaluate(one_hot([1, 0, 0], 2), torch.tensor([0, 1, 1]))
    assert (result.top1.value, result.top1.low, result.macro_f1, result.ece) == (0, 0, 0, 1)
    assert len(result.misclassified) == 3


@pytest.mark.parametrize(("k", "given"), [(2, False), (5, False), (6, True)])
def test_top5_is_none_with_five_classes_or_fewer(k, given):
    assert (evaluate(*predictions(n=20, k=k)).top5 is not None) == given


def test_misclassified_images_are_sorted_by_confidence():
    probs = torch.tensor([[0.4, 0.6], [0.9, 0.1], [0.2, 0.8], [0.4, 0.6]])
    result = evaluate(probs, torch.tensor([0, 0, 0, 0]))
    assert [m.index for m in result.misclassified] == [2, 0, 3]
    worst = result.misclassified[0]
    assert (worst.name, worst.label, worst.predicted) == ("image 2", 0, 1)
    assert worst.confidence == pytest.approx(0.8)


def test_at_most_48_misclassified_images_are_kept():
    probs, labels = predictions()
    result = evaluate(probs, labels)
    wrong = (probs.argmax(1) != labels).sum()
    assert wrong > 48 == len(result.misclassified)


def test_among_equal_probabilities_the_first_class_is_predicted():
    result = evaluate(torch.full((2, 4), 0.25), torch.tensor([0, 1]))
    assert result.confusion_matrix[0][0] == result.confusion_matrix[1][0] == 1
    assert result.top1.value == 0.5


def test_one_image_is_enough():
    result = evaluate(torch.tensor([[0.7, 0.3]]), torch.tensor([0]))
    assert (result.n, result.top1.value) == (1, 1)


def test_half_precision_is_supported():
    probs, labels = predictions()
    result = evaluate(probs.bfloat16(), labels)
    assert result.top1.value == pytest.approx(evaluate(probs, labels).top1.value, abs=0.02)


def test_the_loss_is_the_given_one():
    assert evaluate(*predictions(), loss=1.25).loss == 1.25


def test_the_dict_is_valid_json():
    data = evaluate(*predictions()).to_dict()
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    assert set(data["top1"]) == {"value", "low", "high"}
    assert set(data["calibration_bins"][0]) == {"n", "confidence", "accuracy"}


def test_top5_is_null_in_json_with_five_classes():
    assert evaluate(*predictions(n=20, k=5)).to_dict()["top5"] is None


@pytest.mark.parametrize(("probs", "labels", "message"), [
    (torch.zeros(0, 3), [], "no images"),
    (torch.ones(2, 1), [0, 0], "at least two classes"),
    (one_hot([0, 1], 2), [0, 2], "label 2 is outside 0 to 1"),
    (one_hot([0, 1], 2), [-1, 0], "label -1 is outside"),
    (torch.tensor([[float("nan"), 1.0]]), [0], "are NaN or infinite"),
    (torch.tensor([[float("inf"), 1.0]]), [0], "are NaN or infinite"),
    (torch.tensor([[3.0, -2.0]]), [0], "apply softmax"),
    (torch.tensor([[3.0, 1.0]]), [0], "apply softmax"),
    (one_hot([0, 1], 2), [0], "do not match"),
])
def test_invalid_input_is_an_error(probs, labels, message):
    with pytest.raises(InputError, match=message):
        evaluate(probs, torch.tensor(labels, dtype=torch.long))


def test_an_infinite_loss_is_an_error():
    with pytest.raises(InputError, match="loss=inf"):
        evaluate(*predictions(), loss=float("inf"))
