"""What fine-tuners set: weights to start from, frozen parts, layers, classes, a teacher."""

import dataclasses
import json
import shutil

import pytest
import timm
import torch

import cvt
from cvt.config import CvTConfig, Preprocess, StageConfig
from cvt.data.dataset import Dataset, LabeledImages
from cvt.model import CvT
from cvt.system.errors import InputError
from cvt.train import loop
from cvt.train.config import DistillConfig, FreezeConfig, OptimConfig
from cvt.train.recipe import Recipe
from cvt.train.setup import load_pretrained, resolve_model
from cvt.weights.card import ModelCard
from cvt.weights.models import load_model
from cvt.weights.tensors import read_tensors, write_tensors
from cvt.zoo import imagenet_classes

pytestmark = pytest.mark.usefixtures("no_charts")

STAGES = (StageConfig(dim=8, num_heads=1, depth=1),
          StageConfig(dim=16, num_heads=2, depth=2, cls_token=True))
CONFIG = CvTConfig(stages=STAGES, num_classes=3, image_size=16)
PREPROCESS = Preprocess(size=16, crop=1.0, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
CLASSES = tuple("0123456789")


@pytest.fixture
def trained(tmp_path):
    """The directory of a network for three classes, with its own preprocessing."""
    cvt.save_model(tmp_path / "trained", CvT(CONFIG), PREPROCESS, ("a", "b", "c"))
    return tmp_path / "trained"


@pytest.fixture
def recipe(trained):
    """Two epochs from those weights."""
    return Recipe(weights=str(trained), epochs=2, batch_size=128, max_train_samples=256,
                  optim=OptimConfig(lr=3e-3, warmup_epochs=0))


def weights(run, name="last"):
    return read_tensors(run / f"{name}.safetensors")


def changed(run, start):
    """Names of tensors that training has moved."""
    after, before = weights(run), load_model(start)[0].state_dict()
    return {name for name in after if name not in before or before[name].shape != after[name].shape
            or not torch.equal(after[name], before[name])}


@pytest.mark.slow
def test_a_run_starts_from_weights_and_their_preprocessing(recipe, trained, tmp_path, capfd):
    loop.train(recipe, tmp_path / "run")
    card = ModelCard.load(tmp_path / "run")
    assert card.preprocess == PREPROCESS
    assert card.model == dataclasses.replace(CONFIG, num_classes=10)
    assert card.classes == CLASSES
    said = capfd.readouterr().err
    assert "missing head.weight" in " ".join(said.split())
    assert "its classes are not the dataset's, such as '0', so the head is new" in " ".join(
        said.split())
    slow = dataclasses.replace(recipe, epochs=1, optim=OptimConfig(
        lr=1e-9, warmup_lr=1e-9, min_lr=1e-9, warmup_epochs=0, weight_decay=0))
    loop.train(slow, tmp_path / "slow", quiet=True)
    start = load_model(trained)[0].state_dict()
    for name, tensor in weights(tmp_path / "slow").items():
        if "bn" not in name and not name.startswith("head"):
            torch.testing.assert_close(tensor, start[name], rtol=0, atol=1e-6)


@pytest.mark.slow
def test_a_resumed_run_no_longer_needs_the_weights(recipe, trained, tmp_path):
    loop.train(recipe, tmp_path / "whole", quiet=True)
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    for gone in ("metrics.json", "checkpoints/step-00000004"):
        path = tmp_path / "cut" / gone
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.rmtree(trained)
    loop.resume(tmp_path / "cut", quiet=True)
    one, other = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    torch.testing.assert_close(other, one, rtol=0, atol=0)


def begin(weights, *classes):
    """The network that a run on images of `classes` starts from, and the report on it."""
    half = LabeledImages(classes=classes, labels=(), names=(), fetch=str.encode)
    card, checkpoint = resolve_model(Recipe(weights=str(weights)), Dataset(
        train=half, val=half, preprocess=PREPROCESS))
    assert card.classes == classes
    model = CvT(card.model)
    return model, load_pretrained(model, checkpoint)


HEAD = ("head.weight", "head.bias")


def test_a_head_for_the_same_classes_is_kept(trained):
    model, report = begin(trained, "a", "b", "c")
    start = load_model(trained)[0].head
    assert torch.equal(model.head.weight, start.weight)
    assert torch.equal(model.head.bias, start.bias)
    assert set(HEAD) <= set(report.loaded)
    assert "its classes are the dataset's, by name, so the head is kept" in str(report)


def test_a_head_for_the_same_classes_in_another_order_is_reordered(trained):
    model, report = begin(trained, "c", "a", "b")
    start = load_model(trained)[0].head
    assert torch.equal(model.head.weight, start.weight[[2, 0, 1]])
    assert torch.equal(model.head.bias, start.bias[[2, 0, 1]])
    assert set(report.adapted) == set(HEAD)
    assert "adapted   head.weight  rows in the order of the model's classes" in str(report)
    assert "so the head is kept" in str(report)


@pytest.mark.parametrize("classes", [("a", "b", "d"), ("0", "1", "2"), ("a", "b"),
                                     ("a", "b", "c", "d"), ("A", "b", "c")])
def test_a_head_for_other_classes_is_new_even_if_their_number_agrees(trained, classes):
    model, report = begin(trained, *classes)
    start = load_model(trained)[0].head.weight
    assert not any(torch.equal(row, old) for row in model.head.weight for old in start)
    assert set(report.skipped) == set(report.missing) == set(HEAD)
    assert report.skipped["head.weight"] == "3x16, head for other classes"
    assert "its classes are not the dataset's, such as '" in str(report)
    assert not set(HEAD) & set(report.loaded)


def made_up(trained, home, kind):
    """The weights with numbers for names, as their source has none."""
    tensors = load_model(trained)[0].state_dict()
    home.mkdir()
    if kind == "file":
        CONFIG.save(home / "mine.yaml")
        write_tensors(tensors, home / "mine.safetensors")
        return home / "mine.safetensors"
    write_tensors(tensors, home / "model.safetensors")
    (home / "config.json").write_text(json.dumps({
        "architecture": "cvt_nano", "num_classes": 3,
        "model_args": {"stages": [dataclasses.asdict(stage) for stage in STAGES]},
        "pretrained_cfg": {"input_size": [3, 16, 16]}}))
    return home


@pytest.mark.parametrize("kind", ["file", "timm"])
def test_a_head_whose_classes_have_no_names_is_new(trained, tmp_path, kind):
    source = made_up(trained, tmp_path / "bare", kind)
    assert load_model(source)[1].classes == ("0", "1", "2")
    model, report = begin(source, "0", "1", "2")
    assert not torch.equal(model.head.weight, load_model(trained)[0].head.weight)
    assert set(report.missing) == set(HEAD)
    assert "it does not name its classes, so the head is new" in str(report)


def test_imagenets_head_is_kept_for_directories_called_by_wordnet_id(tmp_path):
    config = dataclasses.replace(CONFIG, num_classes=1000)
    cvt.save_model(tmp_path / "published", CvT(config), PREPROCESS, imagenet_classes())
    ids = timm.data.ImageNetInfo().label_names()
    start = load_model(tmp_path / "published")[0].head.weight
    assert torch.equal(begin(tmp_path / "published", *ids)[0].head.weight, start)
    assert torch.equal(begin(tmp_path / "published", *ids[::-1])[0].head.weight, start.flip(0))


def test_weights_of_another_network_are_rejected(trained, tmp_path):
    with pytest.raises(InputError, match="of another network than model=cvt_13; leave model out"):
        loop.train(Recipe(model="cvt_13", weights=str(trained)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("freeze", "moves", "stays"), [
    (FreezeConfig(backbone=True), ("head.",), ("stages.", "norm.")),
    (FreezeConfig(stages=1), ("stages.1.", "head.", "norm."), ("stages.0.",)),
    (FreezeConfig(batchnorm=True), ("stages.0.embed.", "head."), ("bn",)),
])
def test_what_is_frozen_stays_bit_for_bit(recipe, trained, tmp_path, freeze, moves, stays):
    frozen = dataclasses.replace(recipe, freeze=freeze)
    loop.train(frozen, tmp_path / "run", quiet=True)
    moved = changed(tmp_path / "run", trained)
    for part in moves:
        assert any(name.startswith(part) for name in moved), part
    for part in stays:
        assert not any(part in name for name in moved), part


def test_freezing_without_weights_is_rejected():
    with pytest.raises(InputError, match="give --weights"):
        Recipe(freeze=FreezeConfig(backbone=True))


def test_more_frozen_stages_than_there_are_are_rejected(recipe, tmp_path):
    with pytest.raises(InputError, match=r"freeze\.stages=3, and the network has 2"):
        loop.train(dataclasses.replace(recipe, freeze=FreezeConfig(stages=3)), tmp_path / "run")


@pytest.mark.slow
def test_sgd_with_layer_decay_trains_and_resumes(recipe, tmp_path):
    plain = dataclasses.replace(recipe, optim=OptimConfig(
        name="sgd", lr=0.1, layer_decay=0.7, schedule="linear", warmup_steps=1))
    loop.train(plain, tmp_path / "whole", quiet=True)
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    (tmp_path / "cut/metrics.json").unlink()
    shutil.rmtree(tmp_path / "cut/checkpoints/step-00000004")
    loop.resume(tmp_path / "cut", quiet=True)
    one, other = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    torch.testing.assert_close(other, one, rtol=0, atol=0)


@pytest.mark.slow
def test_a_run_can_be_so_many_steps(recipe, tmp_path):
    loop.train(dataclasses.replace(recipe, steps=5), tmp_path / "run", quiet=True)
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert rows[-1]["lr"] == pytest.approx(recipe.optim.min_lr)
    assert (tmp_path / "run/checkpoints/step-00000005").exists()


@pytest.mark.slow
def test_a_run_that_gets_no_better_ends_early(recipe, tmp_path, monkeypatch):
    """It learns for two epochs of two steps; then nothing of the network moves any more."""
    monkeypatch.setattr(loop, "learning_rate", lambda _, step, *__: 0.01 if step < 4 else 0.0)
    still = dataclasses.replace(recipe, epochs=9, patience=2, best_by="val_loss",
                                freeze=FreezeConfig(batchnorm=True), optim=OptimConfig(
                                    name="sgd", warmup_epochs=0))
    loop.train(still, tmp_path / "run", quiet=True)
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    losses = [row["val_loss"] for row in rows]
    assert len(set(losses)) == 2
    assert losses.index(min(losses)) == 1  # the second, and so not of the first alone
    assert len(rows) == 2 + 2


@pytest.mark.slow
def test_recall_counts_every_class_the_same(recipe, tmp_path):
    evaluation = loop.train(dataclasses.replace(recipe, best_by="val_recall"), tmp_path / "run",
                            quiet=True)
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    recalls = [c.recall for c in evaluation.per_class]
    assert max(row["val_recall"] for row in rows) == pytest.approx(sum(recalls) / len(recalls))


@pytest.mark.slow
def test_distillation_trains(recipe, teacher, tmp_path):
    taught = dataclasses.replace(recipe, distill=DistillConfig(teacher=str(teacher)))
    loop.train(taught, tmp_path / "taught", quiet=True)
    loop.train(recipe, tmp_path / "alone", quiet=True)
    one, other = weights(tmp_path / "taught"), weights(tmp_path / "alone")
    assert not torch.equal(one["head.weight"], other["head.weight"])
    assert not any(name.startswith("teacher") for name in one)


@pytest.mark.slow
def test_a_teacher_may_be_timms(recipe, tmp_path):
    network = timm.create_model("resnet10t", num_classes=10)
    home = tmp_path / "resnet"
    home.mkdir()
    timm.models.save_for_hf(network, home, {"label_names": CLASSES[::-1]}, safe_serialization=True)
    config = DistillConfig(teacher=f"timm:local-dir:{home}", hard=True)
    loop.train(dataclasses.replace(recipe, epochs=1, distill=config), tmp_path / "run", quiet=True)
    with pytest.raises(InputError, match="cannot be loaded from timm"):
        loop.train(dataclasses.replace(recipe, distill=DistillConfig(teacher="timm:no_such")),
                   tmp_path / "other")


def test_a_teacher_of_other_classes_is_rejected(recipe, trained, tmp_path):
    wrong = dataclasses.replace(recipe, distill=DistillConfig(teacher=str(trained)))
    with pytest.raises(InputError, match="and the images have different classes, such as '0'"):
        loop.train(wrong, tmp_path / "run")
