import dataclasses
import json
import time

import pytest

from cvt.cli import main
from cvt.system.errors import InputError
from cvt.train import loop
from cvt.train.config import OptimConfig
from cvt.train.recipe import Recipe

pytestmark = pytest.mark.slow


def test_weights_and_biases_gets_the_figures(tiny_file, tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    assert main(["train", f"--model={tiny_file}", "--image_size=8", "--epochs=1", "--quiet",
                 "--optim.warmup_epochs=0", "--trackers=[wandb]", "--project=ours",
                 f"--output={tmp_path / 'run'}"]) == 0
    assert wandb.run is None  # it was finished
    row, = (json.loads(line) for line in
            (tmp_path / "run/metrics.jsonl").read_text().splitlines())
    file, end = next(tmp_path.glob("run/wandb/offline-run-*/*.wandb")), time.monotonic() + 60
    while b"val/top1" not in (kept := file.read_bytes()) and time.monotonic() < end:
        time.sleep(0.1)  # its own process writes it
    for text in ("ours", "optim.lr", "batch_size", "val/top1", str(row["val_top1"])):
        assert text.encode() in kept
    assert kept.count(b"train/step_loss") >= 22


def test_one_that_is_not_installed_says_how_to_get_it(tiny_file, tmp_path):
    recipe = Recipe(model=str(tiny_file), image_size=8)
    with pytest.raises(InputError, match="trackio is not installed; pip install 'cvt-torch"):
        loop.train(dataclasses.replace(recipe, trackers=("trackio",)), tmp_path / "run")


def test_one_that_fails_does_not_cost_the_run(tiny_file, tmp_path, monkeypatch, capfd):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")

    def fail(*_, **__):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(wandb.Run, "log", fail)
    recipe = Recipe(model=str(tiny_file), image_size=8, epochs=1, trackers=("wandb",),
                    optim=OptimConfig(warmup_epochs=0))
    assert loop.train(recipe, tmp_path / "run").n == 360
    assert capfd.readouterr().err.count("continues without them: no route to host") == 1


def test_one_that_does_not_respond_is_reported_before_the_run(tiny_file, tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")

    def fail(**_):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(wandb, "init", fail)
    recipe = Recipe(model=str(tiny_file), image_size=8, epochs=1, trackers=("wandb",),
                    optim=OptimConfig(warmup_epochs=0))
    with pytest.raises(InputError, match="trackers=wandb cannot be started: no route to host"):
        loop.train(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()
