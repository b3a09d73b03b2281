import dataclasses
import json

import pytest
import timm
import torch
import torch.nn.functional as F

from cvt.card import ModelCard
from cvt.config import CvTConfig, Preprocess, StageConfig
from cvt.data.builtin import digits
from cvt.errors import InputError
from cvt.train.config import DistillConfig
from cvt.train.loss import Loss, Teacher, balanced_weights, distance
from cvt.train.recipe import Recipe
from cvt.weights.tensors import write_tensors
from cvt.zoo import imagenet_classes, load_model


@pytest.fixture
def card():
    """Of a network that knows the digits."""
    stage = StageConfig(dim=8, num_heads=1, depth=1, cls_token=True)
    return ModelCard(model=CvTConfig(stages=(stage,), num_classes=10, image_size=16),
                     preprocess=Preprocess(size=16, crop=1.0, mean=(0.1, 0.2, 0.3),
                                           std=(0.5, 0.6, 0.7)),
                     classes=tuple("0123456789"))


def test_balanced_class_weights_make_up_for_rare_classes(card):
    train = digits().train
    rare = train.choose([i for i, label in enumerate(train.labels) if label or i % 10 == 0])
    weight = balanced_weights(rare)
    counts = torch.bincount(torch.tensor(rare.labels))
    torch.testing.assert_close(weight * counts, torch.full((10,), len(rare) / 10))
    loss = Loss(Recipe(class_weights="balanced"), card, rare)
    logits, labels = torch.randn(8, 10), torch.tensor([0, 1, 2, 3, 4, 5, 6, 0])
    expected = (F.cross_entropy(logits, labels, reduction="none") * weight[labels]).mean()
    torch.testing.assert_close(loss(torch.empty(0), logits, labels), expected)
    with pytest.raises(InputError, match="the class '0' has no training picture"):
        balanced_weights(train.choose([i for i, label in enumerate(train.labels) if label]))


def test_the_distance_to_a_teacher_is_hintons_or_deits():
    logits, teacher = torch.randn(4, 10), torch.randn(4, 10)
    p = (teacher / 2).softmax(1)
    expected = 4 * (p * (p.log() - (logits / 2).log_softmax(1))).sum(1).mean()
    torch.testing.assert_close(distance(logits, teacher, DistillConfig(temperature=2)), expected)
    assert distance(logits, logits, DistillConfig()).abs() < 1e-6
    hard = distance(logits, teacher, DistillConfig(hard=True))
    torch.testing.assert_close(hard, F.cross_entropy(logits, teacher.argmax(1)))


def test_a_teacher_sees_the_pictures_as_it_was_trained_to(card, teacher):
    loss = Loss(Recipe(distill=DistillConfig(teacher=str(teacher), share=1.0)), card,
                digits().train)
    pixels = torch.rand(2, 3, 16, 16)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (card.preprocess.mean, card.preprocess.std))
    network = load_model(teacher)[0]
    resized = F.interpolate((pixels - 0.5) / 0.25, (20, 20), mode="bicubic", antialias=True)
    with torch.no_grad():
        expected = network(resized).flip(1)
    torch.testing.assert_close(loss.teacher((pixels - mean) / std), expected, rtol=1e-4, atol=1e-5)
    loss.train()
    assert not loss.teacher.network.training
    torch.testing.assert_close(loss((pixels - mean) / std, expected, torch.tensor([1, 2])),
                               torch.tensor(0.0), rtol=0, atol=1e-5)


def of_timm(home, classes, **names):
    """A model of timm in a directory, and the name of the teacher that it is."""
    network = timm.create_model("resnet10t", num_classes=classes).eval()
    home.mkdir()
    timm.models.save_for_hf(network, home, names, safe_serialization=True)
    return network, DistillConfig(teacher=f"timm:local-dir:{home}")


@pytest.mark.parametrize("names", [
    list("9876543210"), {i: str(9 - i) for i in (3, 1, 4, 0, 5, 9, 2, 6, 8, 7)}])
def test_the_classes_of_a_teacher_of_timm_are_matched_by_name(card, tmp_path, names):
    network, config = of_timm(tmp_path / "named", 10, label_names=names)
    teacher = Teacher(config, card, "fp32")
    x = torch.rand(2, 3, teacher.size, teacher.size)
    teacher.scale.fill_(1)
    teacher.shift.zero_()
    with torch.no_grad():
        torch.testing.assert_close(teacher(x), network(x).flip(1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("names", "message"), [
    ({}, "does not name its classes, so they cannot be matched"),
    ({"label_names": list("987654321")}, "does not name its classes"),
    ({"label_names": list("012345678a")}, "and the pictures have other classes, such as '9'"),
])
def test_a_teacher_of_timm_of_other_or_unknown_classes_is_refused(card, tmp_path, names, message):
    _, config = of_timm(tmp_path / "other", 10, **names)
    with pytest.raises(InputError, match=message):
        Teacher(config, card, "fp32")


def test_a_teacher_without_names_of_its_classes_is_refused(card, teacher):
    model, own = load_model(teacher)
    bare = teacher.with_name("bare")
    bare.mkdir()
    write_tensors(model.state_dict(), bare / "mine.safetensors")
    (bare / "mine.yaml").write_text(json.dumps(own.model.to_dict()))
    assert load_model(bare / "mine.safetensors")[1].classes == card.classes
    with pytest.raises(InputError, match="does not name its classes, so they cannot be matched"):
        Teacher(DistillConfig(teacher=str(bare / "mine.safetensors")), card, "fp32")


def test_timms_own_models_know_imagenet_by_id_or_description(card, monkeypatch):
    build = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, **_: build(name))
    ids = timm.data.ImageNetInfo().label_names()
    model = dataclasses.replace(card.model, num_classes=1000)
    config = DistillConfig(teacher="timm:resnet10t")
    for classes, order in ((ids, None), (imagenet_classes(), None),
                           (ids[::-1], list(range(999, -1, -1)))):
        student = dataclasses.replace(card, model=model, classes=tuple(classes))
        assert Teacher(config, student, "fp32").order == order
    with pytest.raises(InputError, match="have other classes, such as '0'"):
        Teacher(config, card, "fp32")
