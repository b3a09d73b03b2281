"""Evaluation with too little memory."""

import pytest
import torch
from torch import nn

from cvt.config import CvTConfig, Preprocess, StageConfig
from cvt.data.loader import evaluation_batches
from cvt.data.sources.builtin import digits
from cvt.evaluate.run import classify, evaluate
from cvt.model import CvT
from cvt.system.errors import InputError
from cvt.weights.card import ModelCard

PREPROCESS = Preprocess(size=8, crop=1.0, mean=(0.3,) * 3, std=(0.4,) * 3)


class Narrow(nn.Module):
    """A network with memory for `limit` images at a time; `seen` has the batch sizes."""

    def __init__(self, limit):
        super().__init__()
        stage = StageConfig(dim=8, num_heads=1, depth=1, cls_token=True)
        self.network = CvT(CvTConfig(stages=(stage,), num_classes=10, image_size=8))
        self.limit, self.seen = limit, []

    def forward(self, x):
        self.seen.append(len(x))
        if len(x) > self.limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.network(x)


def batches():
    return evaluation_batches(digits().val, PREPROCESS, batch_size=100)


def test_batches_are_split_when_memory_runs_out():
    model = Narrow(30)
    logits, labels = classify(model, batches())
    assert labels.tolist() == list(digits().val.labels)
    whole, _ = classify(model.network, batches())
    torch.testing.assert_close(logits, whole)
    assert model.seen == [100, 50, *[25] * 4, *[25] * 8, 25, 25, 10]
    assert model.training


def test_too_little_memory_for_one_image_is_an_error():
    with pytest.raises(InputError, match="out of memory with one image at a time; use a smaller"):
        classify(Narrow(0), batches())


def test_an_evaluation_is_the_same_in_parts():
    model = Narrow(7)
    val = digits().val
    card = ModelCard(model=model.network.config, preprocess=PREPROCESS, classes=val.classes)
    whole = evaluate(model.network, card, val)
    parts = evaluate(model, card, val)
    assert parts.top1 == whole.top1
    assert parts.confusion_matrix == whole.confusion_matrix
    assert parts.loss == pytest.approx(whole.loss, rel=1e-6)
