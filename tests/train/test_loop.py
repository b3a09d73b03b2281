import csv
import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image

from cvt.config import CvTConfig, StageConfig
from cvt.data.config import AugmentConfig, DataConfig
from cvt.errors import DivergedError, InputError
from cvt.train import loop
from cvt.train.recipe import OptimConfig, Recipe
from cvt.weights.tensors import read_tensors
from cvt.zoo import load_model

FILES = {"config.json", "recipe.yaml", "best.safetensors", "last.safetensors", "state.pt",
         "metrics.csv", "metrics.jsonl", "metrics.json", "report.html", "tensorboard"}


@pytest.fixture
def recipe(tmp_path):
    """Two epochs of a tiny network with all that is random switched on."""
    stages = (StageConfig(dim=8, num_heads=1, depth=1),
              StageConfig(dim=8, num_heads=2, depth=2, cls_token=True, drop_rate=0.1,
                          drop_path_rate=0.2))
    CvTConfig(stages=stages, num_classes=10, image_size=8).save(tmp_path / "tiny.json")
    return Recipe(
        model=str(tmp_path / "tiny.json"), image_size=8, epochs=2, batch_size=128, ema=0.9,
        augment=AugmentConfig(crop="shift", mixup=0.2, cutmix=1.0, erasing=0.2,
                              label_smoothing=0.1),
        optim=OptimConfig(lr=3e-3, warmup_epochs=0.5, clip_grad=1.0))


def history(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_run_leaves_weights_that_load_and_figures_that_agree(recipe, tmp_path):
    evaluation = loop.train(recipe, tmp_path / "run", quiet=True)
    assert {path.name for path in (tmp_path / "run").iterdir()} == FILES
    rows = list(csv.DictReader((tmp_path / "run/metrics.csv").read_text().splitlines()))
    lines = history(tmp_path / "run")
    assert [float(row["val_top1"]) for row in rows] == [row["val_top1"] for row in lines]
    assert max(row["val_top1"] for row in lines) == pytest.approx(evaluation.top1.value)
    assert json.loads((tmp_path / "run/metrics.json").read_text())["n"] == 360
    model, card = load_model(tmp_path / "run")
    assert card.classes == tuple("0123456789")
    assert model(torch.zeros(1, 3, 8, 8)).shape == (1, 10)


def test_the_network_learns(recipe, tmp_path):
    plain = dataclasses.replace(recipe, epochs=4, ema=0.0, batch_size=32, augment=AugmentConfig())
    evaluation = loop.train(plain, tmp_path / "run", quiet=True)
    assert evaluation.top1.value > 0.5


def test_a_resumed_run_ends_as_the_uninterrupted_one(recipe, tmp_path, monkeypatch):
    loop.train(recipe, tmp_path / "whole", quiet=True)
    stop_after_one_epoch(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        loop.train(recipe, tmp_path / "cut", quiet=True)
    monkeypatch.undo()
    loop.resume(tmp_path / "cut", quiet=True)
    for name in ("best.safetensors", "last.safetensors"):
        whole, cut = (read_tensors(tmp_path / run / name) for run in ("whole", "cut"))
        assert all(torch.equal(whole[key], cut[key]) for key in whole)
    whole, cut = (history(tmp_path / run) for run in ("whole", "cut"))
    for row in (*whole, *cut):
        row.pop("seconds")
    assert whole == cut


def stop_after_one_epoch(monkeypatch):
    """Interrupt training as Ctrl-C would, in the second epoch."""
    step = loop.Engine.step
    calls = iter(range(1000))

    def interrupted(self, batch, lr):
        if next(calls) == 15:  # 11 steps an epoch
            raise KeyboardInterrupt
        return step(self, batch, lr)

    monkeypatch.setattr(loop.Engine, "step", interrupted)


def test_the_same_seed_gives_the_same_weights_and_another_others(recipe, tmp_path):
    one = dataclasses.replace(recipe, epochs=1)
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        loop.train(dataclasses.replace(one, seed=seed), tmp_path / name, quiet=True)
    a, b, c = (read_tensors(tmp_path / name / "last.safetensors")["head.weight"] for name in "abc")
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_accumulation_keeps_the_gradient(recipe, tmp_path):
    """BatchNorm apart, a batch in two parts takes the step of the whole batch."""
    linear = StageConfig(dim=8, num_heads=1, depth=1, projection="linear", stride_kv=1)
    CvTConfig(stages=(linear,), num_classes=10, image_size=8).save(tmp_path / "tiny.json")
    plain = dataclasses.replace(recipe, epochs=1, ema=0.0, augment=AugmentConfig())
    for parts in (1, 4):
        split = dataclasses.replace(plain, optim=dataclasses.replace(plain.optim,
                                                                     accumulate=parts))
        loop.train(split, tmp_path / str(parts), quiet=True)
    whole, parts = (read_tensors(tmp_path / n / "last.safetensors") for n in ("1", "4"))
    for name in whole:
        torch.testing.assert_close(whole[name], parts[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("values", [{"precision": "bf16"}, {"grad_checkpointing": True},
                                    {"in_chans": 1}, {"data": DataConfig(workers=1)}])
def test_settings_train(recipe, tmp_path, values):
    one = dataclasses.replace(recipe, epochs=1, **values)
    assert loop.train(one, tmp_path / "run", quiet=True).n == 360


def test_workers_and_checkpointing_change_nothing(recipe, tmp_path):
    one = dataclasses.replace(recipe, epochs=1)
    other = dataclasses.replace(one, grad_checkpointing=True, data=DataConfig(workers=2))
    loop.train(one, tmp_path / "a", quiet=True)
    loop.train(other, tmp_path / "b", quiet=True)
    a, b = (read_tensors(tmp_path / name / "last.safetensors") for name in "ab")
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-4, atol=1e-5)


def test_a_loss_that_is_not_finite_ends_the_run_and_says_where(recipe, tmp_path):
    wild = dataclasses.replace(recipe, optim=OptimConfig(lr=1e30, warmup_epochs=0))
    with pytest.raises(DivergedError, match=r"nan|inf") as caught:
        loop.train(wild, tmp_path / "run", quiet=True)
    assert "epoch 1" in str(caught.value)
    assert "--optim.lr" in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_run_is_not_overwritten_unasked(recipe, tmp_path):
    one = dataclasses.replace(recipe, epochs=1)
    loop.train(one, tmp_path / "run", quiet=True)
    before = (tmp_path / "run/best.safetensors").read_bytes()
    with pytest.raises(InputError, match="--overwrite"):
        loop.train(one, tmp_path / "run", quiet=True)
    assert (tmp_path / "run/best.safetensors").read_bytes() == before
    (tmp_path / "run/mine.txt").write_text("kept")
    loop.train(one, tmp_path / "run", overwrite=True, quiet=True)
    assert (tmp_path / "run/mine.txt").read_text() == "kept"


def test_a_complete_run_is_not_resumed(recipe, tmp_path):
    loop.train(dataclasses.replace(recipe, epochs=1), tmp_path / "run", quiet=True)
    with pytest.raises(InputError, match="complete"):
        loop.resume(tmp_path / "run", quiet=True)


def test_a_damaged_state_is_named(recipe, tmp_path):
    loop.train(dataclasses.replace(recipe, epochs=1), tmp_path / "run", quiet=True)
    (tmp_path / "run/metrics.json").unlink()
    (tmp_path / "run/state.pt").write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(InputError, match=r"state\.pt"):
        loop.resume(tmp_path / "run", quiet=True)


def test_what_cannot_be_trained_leaves_nothing_behind(recipe, tmp_path):
    with pytest.raises(InputError, match="batch_size"):
        loop.train(dataclasses.replace(recipe, batch_size=5000), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_a_validation_loss_that_is_not_finite_ends_the_run(recipe, tmp_path):
    """As where the last step of an epoch made the weights infinite."""
    blow = dataclasses.replace(recipe, batch_size=1437, ema=0.0, augment=AugmentConfig(),
                               optim=OptimConfig(lr=1e37, warmup_lr=1e37, warmup_epochs=0))
    with pytest.raises(DivergedError, match=r"step 1,"):
        loop.train(blow, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_a_run_stopped_in_its_first_epoch_is_not_in_the_way(recipe, tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/mine.txt").write_text("kept")

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(loop.Engine, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        loop.train(recipe, tmp_path / "run", quiet=True)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["mine.txt"]


def test_a_run_does_not_go_on_with_other_classes(recipe, tmp_path):
    rng = np.random.default_rng(0)
    for name in ("ant", "bee"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(8):
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(
                tmp_path / "photos" / name / f"{i}.png")
    mine = dataclasses.replace(recipe, epochs=1, batch_size=8, data=DataConfig(
        name="folder", root=str(tmp_path / "photos")))
    loop.train(mine, tmp_path / "run", quiet=True)
    (tmp_path / "run/metrics.json").unlink()
    (tmp_path / "photos/bee").rename(tmp_path / "photos/cat")
    with pytest.raises(InputError, match="classes were ant, bee and are ant, cat"):
        loop.resume(tmp_path / "run", quiet=True)
