import copy
import dataclasses
import json

import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image

from cvt.config import CvTConfig, Preprocess, StageConfig
from cvt.data.augment import training_transform
from cvt.data.config import AugmentConfig
from cvt.data.dataset import LabeledImages
from cvt.data.loader import TrainLoader
from cvt.data.randomness import seed_all
from cvt.data.sources.builtin import digits
from cvt.model import CvT
from cvt.system.errors import InputError
from cvt.train.config import DistillConfig, OptimConfig
from cvt.train.engine import Engine, _mix
from cvt.train.loss import Loss, Teacher, balanced_weights, distillation_loss
from cvt.train.optim import build_optimizer
from cvt.train.recipe import Recipe
from cvt.train.setup import Setup
from cvt.weights.card import ModelCard
from cvt.weights.models import load_model
from cvt.weights.tensors import write_tensors
from cvt.zoo import imagenet_classes


@pytest.fixture
def card():
    """Of a network that knows the digits."""
    stage = StageConfig(dim=8, num_heads=1, depth=1, cls_token=True)
    return ModelCard(model=CvTConfig(stages=(stage,), num_classes=10, image_size=16),
                     preprocess=Preprocess(size=16, crop=1.0, mean=(0.1, 0.2, 0.3),
                                           std=(0.5, 0.6, 0.7)),
                     classes=tuple("0123456789"))


@pytest.fixture
def rare():
    """The digits, of which most 0s are left out: one class is trained on a tenth as often."""
    train = digits().train
    return train.choose([i for i, label in enumerate(train.labels) if label or i % 10 == 0])


@pytest.fixture
def lopsided():
    """990 images of one class and 10 of another, which differ in their shades."""
    return LabeledImages(classes=("often", "seldom"), labels=(0,) * 990 + (1,) * 10, fetch=_shade,
                    names=[str(i) for i in range(1000)])


def _shade(i):
    return Image.new("RGB", (4, 4), (20 * (i - 990),) * 3 if i >= 990 else (255,) * 3)


def test_balanced_class_weights_compensate_for_rare_classes(card, rare):
    weight = balanced_weights(rare)
    counts = torch.bincount(torch.tensor(rare.labels))
    torch.testing.assert_close(weight * counts, torch.full((10,), len(rare) / 10))
    loss = Loss(Recipe(class_weights="balanced"), card, rare)
    logits, labels = torch.randn(8, 10), torch.tensor([0, 1, 2, 3, 4, 5, 6, 0])
    expected = (F.cross_entropy(logits, labels, reduction="none") * weight[labels]).mean()
    torch.testing.assert_close(loss(torch.empty(0), logits, labels), expected)


@pytest.mark.parametrize("option", ["class_weights", "sampling"])
def test_a_class_without_a_training_image_cannot_be_balanced(card, option):
    train = digits().train
    gone = train.choose([i for i, label in enumerate(train.labels) if label])
    with pytest.raises(InputError, match="the class '0' has no training image"):
        balanced_weights(gone)
    with pytest.raises(InputError, match=f"{option}=balanced, and the class '0' has no training"):
        Loss(Recipe(**{option: "balanced"}), card, gone)


def test_class_weights_are_those_of_the_images_that_are_trained_on():
    recipe = Recipe(class_weights="balanced", max_train_samples=203, device="cpu")
    with Engine(recipe) as engine:
        setup = Setup(recipe, engine)
    counts = torch.bincount(torch.tensor(setup.dataset.train.labels))
    assert counts.sum() == 203
    torch.testing.assert_close(setup.loss.weight, 203 / (10 * counts))


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1], ids=["sharp", "smoothed"])
@pytest.mark.parametrize("mixed", [False, True], ids=["labels", "mixed"])
@pytest.mark.parametrize("distill", [
    None, DistillConfig(alpha=0.3), DistillConfig(alpha=0.3, temperature=2.0),
    DistillConfig(alpha=0.3, hard=True), DistillConfig(alpha=1.0, temperature=2.0)],
    ids=["no-teacher", "soft", "soft-at-2", "hard", "teacher-alone"])
def test_the_loss_is_its_formula(card, rare, weighted, smoothing, mixed, distill):
    recipe = Recipe(class_weights="balanced" if weighted else "none",
                    augment=AugmentConfig(label_smoothing=smoothing))
    loss, predictions = Loss(recipe, card, rare), torch.randn(6, 10) * 2
    if distill:
        loss.distill, loss.teacher = distill, torch.nn.Identity()  # x are its logits
    logits, labels = torch.randn(6, 10) * 2, torch.tensor([0, 1, 2, 0, 9, 5])
    counts = torch.tensor([rare.labels.count(k) for k in range(10)]).double()

    targets = torch.zeros(6, 10, dtype=torch.float64)
    targets[range(6), labels] = 1.0
    if mixed:
        targets = 0.7 * targets + 0.3 * targets.flip(0)
    result = loss(predictions, logits, targets.float() if mixed else labels)

    def log_softmax(x):
        return x - x.exp().sum(1, keepdim=True).log()

    z, t = logits.double(), predictions.double()
    each = -(((1 - smoothing) * targets + smoothing / 10) * log_softmax(z)).sum(1)
    if distill:
        if distill.hard:
            apart = -log_softmax(z)[range(6), t.argmax(1)]
        else:
            p, q = (log_softmax(v / distill.temperature) for v in (t, z))
            apart = distill.temperature**2 * (p.exp() * (p - q)).sum(1)
        each = (1 - distill.alpha) * each + distill.alpha * apart
    if weighted:
        each = each * (targets * (counts.sum() / (10 * counts))).sum(1)
    torch.testing.assert_close(result.double(), each.sum() / 6, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mixed", [False, True], ids=["labels", "mixed"])
def test_the_optimal_prediction_for_an_image_is_its_own_smoothed_target(card, lopsided, mixed):
    """However rare its class is."""
    recipe = Recipe(class_weights="balanced", augment=AugmentConfig(label_smoothing=0.1))
    loss = Loss(recipe, card, lopsided)
    targets = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.75, 0.25]])
    targets = targets if mixed else targets[:2]
    best = (0.9 * targets + 0.05).log().requires_grad_()

    loss(torch.empty(0), best, targets if mixed else torch.tensor([0, 1])).backward()

    torch.testing.assert_close(best.grad, torch.zeros_like(best), rtol=0, atol=1e-6)


@pytest.mark.parametrize("parts", [2, 4])
def test_micro_batches_add_up(card, rare, parts):
    recipe = Recipe(class_weights="balanced", augment=AugmentConfig(label_smoothing=0.1))
    loss = Loss(recipe, card, rare)
    logits, labels = torch.randn(8, 10), torch.tensor([0, 0, 0, 1, 2, 3, 4, 5])
    pieces = zip(logits.chunk(parts), labels.chunk(parts), strict=True)
    total = sum(loss(torch.empty(0), z, y) for z, y in pieces) / parts
    torch.testing.assert_close(total, loss(torch.empty(0), logits, labels))


def test_balanced_sampling_draws_an_image_as_often_as_balanced_weights_count_it(lopsided):
    """With probability 1 / (classes * images of its class)."""
    preprocess = Preprocess(size=4, crop=1.0, mean=(0.0,) * 3, std=(1.0,) * 3)
    batches = TrainLoader(lopsided, training_transform(preprocess, AugmentConfig()), passes=4,
                          batch_size=500, seed=0, balanced=True)

    drawn = torch.zeros(11)
    for x, _ in batches.epoch(0):
        shades = (x[:, 0, 0, 0] * 255 / 20).round().long().clamp(max=10)
        drawn += torch.bincount(shades, minlength=11)

    n = drawn.sum()
    p = torch.tensor([1 / (2 * 10)] * 10 + [990 / (2 * 990)])
    assert ((drawn - n * p).abs() < 4 * (n * p * (1 - p)).sqrt()).all()
    weighed = balanced_weights(lopsided) * torch.tensor([990, 10]) / 1000  # shares of the loss
    torch.testing.assert_close(weighed, torch.tensor([p[10], p[:10].sum()]))


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_a_mixed_batch_and_its_targets_are_mixed_alike(kind):
    """Image i with the i-th from the end; the loss then smooths the target, once."""
    mix = _mix(AugmentConfig(**{kind: 1.0}, label_smoothing=0.1), 10)
    images, labels = torch.rand(6, 3, 32, 32), torch.tensor([0, 1, 2, 3, 4, 5])
    seed_all(3)
    mixed, targets = mix(images.clone(), labels)

    share = targets[0, 0]  # of an image in its own place
    assert 0.1 < share < 0.9
    one_hot = torch.zeros(6, 10)
    one_hot[range(6), labels] = 1.0
    torch.testing.assert_close(targets, share * one_hot + (1 - share) * one_hot.flip(0))
    if kind == "mixup":
        torch.testing.assert_close(mixed, share * images + (1 - share) * images.flip(0))
    else:
        own = (mixed == images).all(1)  # (B, H, W)
        assert (own == own[0]).all()
        rows, columns = (~own[0]).any(1), (~own[0]).any(0)
        assert (~own[0] == rows[:, None] & columns).all()  # a rectangle
        assert ((mixed == images.flip(0)).all(1) | own).all()
        torch.testing.assert_close(own[0].float().mean(), share)


def test_a_step_moves_the_weights_along_the_loss_that_the_options_say_together(card, rare):
    """Of mixup, smoothing and weights of classes, in two parts, clipped, by SGD with decay."""
    recipe = Recipe(
        class_weights="balanced", batch_size=8, device="cpu", seed=5,
        augment=AugmentConfig(mixup=1.0, label_smoothing=0.1),
        optim=OptimConfig(name="sgd", clip_grad=0.3, weight_decay=0.1, grad_accum_steps=2))
    net = CvT(card.model)
    twin = copy.deepcopy(net).train()
    images, labels = torch.rand(8, 3, 16, 16), torch.tensor([0, 3, 0, 4, 5, 0, 6, 2])
    with Engine(recipe) as engine:
        optimizer = build_optimizer(net, recipe.optim)
        engine.prepare(net, optimizer, Loss(recipe, card, rare), 10)
        engine.train_mode()
        done = engine.step((images, labels), 0.5, 7)

    seed_all(5, 7)
    mixed, targets = _mix(recipe.augment, 10)(images.clone(), labels)
    counts = torch.tensor([rare.labels.count(k) for k in range(10)]).double()
    weights = (targets.double() * counts.sum() / (10 * counts)).sum(1)
    total = 0.0
    for rows in (range(4), range(4, 8)):
        z = twin(mixed[rows]).double()
        log_p = z - z.exp().sum(1, keepdim=True).log()
        each = -((0.9 * targets[rows] + 0.1 / 10) * log_p).sum(1)
        total = total + (weights[rows] * each).sum() / 8
    total.backward()
    grads = {name: p.grad for name, p in twin.named_parameters()}
    norm = sum(g.double().square().sum() for g in grads.values()).sqrt()
    assert norm > 0.3
    assert done.loss == pytest.approx(total.item(), rel=1e-4)
    assert done.norm == pytest.approx(norm.item(), rel=1e-3)
    for (name, after), before in zip(net.named_parameters(), twin.parameters(), strict=True):
        decay = 0.1 if before.ndim > 1 and "cls_token" not in name else 0.0
        expected = before - 0.5 * (grads[name] * 0.3 / norm + decay * before)
        torch.testing.assert_close(after, expected.float(), rtol=1e-4, atol=1e-5)


def test_the_distance_to_a_teacher_is_hintons_or_deits():
    logits, teacher = torch.randn(4, 10), torch.randn(4, 10)
    p = (teacher / 2).softmax(1)
    expected = 4 * (p * (p.log() - (logits / 2).log_softmax(1))).sum(1)
    soft = distillation_loss(logits, teacher, DistillConfig(temperature=2))
    torch.testing.assert_close(soft, expected)
    assert (distillation_loss(logits, logits, DistillConfig()).abs() < 1e-6).all()
    hard = distillation_loss(logits, teacher, DistillConfig(hard=True))
    expected = -logits.log_softmax(1)[range(4), teacher.argmax(1)]
    torch.testing.assert_close(hard, expected)


def test_a_teacher_sees_the_images_as_it_was_trained_to(card, teacher):
    loss = Loss(Recipe(distill=DistillConfig(teacher=str(teacher), alpha=1.0)), card,
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
    ({"label_names": list("012345678a")}, "and the images have different classes, such as '9'"),
])
def test_a_teacher_of_timm_of_other_or_unknown_classes_is_rejected(card, tmp_path, names, message):
    _, config = of_timm(tmp_path / "other", 10, **names)
    with pytest.raises(InputError, match=message):
        Teacher(config, card, "fp32")


def test_a_teacher_without_names_of_its_classes_is_rejected(card, teacher):
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
    with pytest.raises(InputError, match="have different classes, such as '0'"):
        Teacher(config, card, "fp32")
