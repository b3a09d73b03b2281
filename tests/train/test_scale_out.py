"""Real processes under torchrun, or started as it does, over gloo."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from PIL import Image

from cvt.cli import main
from cvt.data.augment import training_transform
from cvt.data.loader import TrainLoader
from cvt.data.sources.builtin import digits
from cvt.evaluate.run import evaluate
from cvt.model import CvT
from cvt.train.config import OptimConfig
from cvt.train.engine import Engine
from cvt.train.recipe import Recipe
from cvt.train.setup import Setup
from cvt.weights.card import ModelCard
from cvt.weights.tensors import read_tensors

from .torchrun import launch

pytestmark = pytest.mark.slow

ENV = {**os.environ, "OMP_NUM_THREADS": "1"}


TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone")


def options_of(model, run, *options):
    return ["train", f"--model={model}", "--image_size=8", "--epochs=1",
            "--optim.warmup_epochs=0", "--batch_size=64", "--augment.mixup=0.2",
            "--augment.crop=shift", "--device=cpu", "--sync_batchnorm=true", "--ema=0.9", "--quiet",
            f"--output={run}", *options]


def launched(*script):
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
         *script], env=ENV, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr


def train(model, run, processes, *options):
    code, out, error = launch(processes, *options_of(model, run, *options))
    assert code == 0, error
    return out


def test_two_and_four_processes_train_as_one(tiny_file, tmp_path):
    """22 steps of synchronised BatchNorm, mixup and EMA; only rounding may differ."""
    said = {n: train(tiny_file, tmp_path / str(n), n) for n in (1, 2, 4)}
    one = read_tensors(tmp_path / "1/last.safetensors")
    for n in (2, 4):
        assert said[n].count("report:") == 1  # one process speaks
        other = read_tensors(tmp_path / f"{n}/last.safetensors")
        assert other.keys() == one.keys()
        apart = {name: (other[name] - one[name].double()).norm() for name in one}
        length = {name: one[name].double().norm() for name in one}
        assert torch.stack([*apart.values()]).norm() <= (
            1e-5 * torch.stack([*length.values()]).norm())
        for name in one:  # AdamW makes noise of gradients that are 0, as those of the keys' biases
            assert apart[name] <= 1e-4 * length[name] or length[name] < 0.05, name


@pytest.mark.parametrize(("processes", "options"), [
    (2, ("--ema=0",)), (4, ("--ema=0.9",)), (2, ("--ema=0.9", "--optim.grad_accum_steps=2"))])
def test_the_figures_that_are_logged_are_those_of_the_file(tiny_file, tmp_path, processes, options):
    """Each process sees its own share of a batch, and BatchNorm is not synchronised."""
    train(tiny_file, tmp_path / "run", processes, "--sync_batchnorm=false", "--epochs=2", *options)
    card = ModelCard.load(tmp_path / "run")
    model = CvT(card.model)
    model.load_state_dict(read_tensors(tmp_path / "run/last.safetensors"))
    evaluation = evaluate(model, card, digits().val)
    row = json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[-1])
    assert row["val_loss"] == pytest.approx(evaluation.loss, rel=1e-6)
    assert row["val_top1"] == evaluation.top1.value
    model.load_state_dict(read_tensors(tmp_path / "run/best.safetensors"))
    final = json.loads((tmp_path / "run/metrics.json").read_text())
    evaluation = evaluate(model, card, digits().val)
    assert final["n"] == 360
    assert final["loss"] == pytest.approx(evaluation.loss, rel=1e-6)
    assert final["top1"]["value"] == evaluation.top1.value
    assert final["confusion_matrix"] == [list(row) for row in evaluation.confusion_matrix]
    assert [m["index"] for m in final["misclassified"]] == [
        m.index for m in evaluation.misclassified]


def test_statistics_are_the_mean_of_the_processes(tiny_file, tmp_path):
    """Of one step of two processes: of what each alone has after its share of the batch."""
    options = ("--sync_batchnorm=false", "--ema=0", "--steps=1", "--augment.mixup=0",
               "--augment.crop=none", "--optim.lr=0", "--optim.warmup_lr=0", "--optim.min_lr=0")
    train(tiny_file, tmp_path / "run", 2, *options)
    run = read_tensors(tmp_path / "run/last.safetensors")
    recipe = Recipe(model=str(tiny_file), image_size=8, epochs=1, batch_size=64, steps=1,
                    optim=OptimConfig(lr=0.0, warmup_lr=0.0, min_lr=0.0, warmup_epochs=0))
    shares = []
    for rank in range(2):
        with Engine(recipe) as engine:
            setup = Setup(recipe, engine)
            model = setup.state.model
            loader = TrainLoader(setup.dataset.train, training_transform(
                setup.card.preprocess, recipe.augment), batch_size=64, seed=0, rank=rank, world=2)
            model.train()
            model(next(loader.epoch(0))[0])
            shares.append(model.state_dict())
    names = [name for name in run if name.endswith(("running_mean", "running_var"))]
    assert names
    for name in names:
        torch.testing.assert_close(run[name], (shares[0][name] + shares[1][name]) / 2)
        assert not torch.equal(shares[0][name], shares[1][name])


def test_a_run_of_two_processes_resumes_exactly(tiny_file, tmp_path):
    """Killed between two validations; and a slow disk shows one of them an older checkpoint."""
    options = ("--sync_batchnorm=false", "--epochs=2", "--save_every=3", "--keep_checkpoints=9")
    train(tiny_file, tmp_path / "whole", 2, *options)
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    (tmp_path / "cut/metrics.json").unlink()
    for path in (tmp_path / "cut/checkpoints").iterdir():
        if int(path.name.removeprefix("step-")) > 30:
            shutil.rmtree(path)
    (tmp_path / "late.py").write_text(
        "import os, sys\nfrom cvt.cli import main\n"
        "from cvt.train.checkpoints import CheckpointStore\n"
        "if os.environ['RANK'] == '1':\n    CheckpointStore.latest_step = lambda self: 3\n"
        "sys.exit(main(sys.argv[1:]))\n")
    launched(str(tmp_path / "late.py"), "train", "--resume", str(tmp_path / "cut"), "--quiet")
    whole, cut = (read_tensors(tmp_path / run / "last.safetensors") for run in ("whole", "cut"))
    torch.testing.assert_close(cut, whole, rtol=0, atol=0)


def test_processes_that_see_other_images_are_rejected(tiny_file, tmp_path):
    """As where each machine has a copy of its own."""
    for rank in range(2):
        for name in ("ant", "bee"):
            place = tmp_path / str(rank) / "photos" / name
            place.mkdir(parents=True)
            for i in range(40 + rank):
                Image.new("RGB", (8, 8), (i, i, i)).save(place / f"{i}.png")
    script = tmp_path / "each.py"
    script.write_text("import os, sys\nfrom cvt.cli import main\n"
                      f"os.chdir({str(tmp_path)!r} + '/' + os.environ['RANK'])\n"
                      "sys.exit(main(sys.argv[1:]))\n")
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
         str(script), "train", f"--model={tiny_file}", "--image_size=8", "--batch_size=8",
         "--epochs=1", "--optim.warmup_epochs=0", "--device=cpu", "--data.name=folder",
         "--data.root=photos", f"--output={tmp_path / 'run'}"], env=ENV, capture_output=True,
        text=True, check=False, timeout=120)
    assert done.returncode != 0
    assert "process 1 sees other images in" in done.stderr
    assert "66 training images, were 64" in done.stderr or "training images by class" in done.stderr


def test_a_frozen_process_ends_all_within_a_minute_and_says_so(tiny_file, tmp_path):
    launcher = subprocess.Popen(
        [*TORCHRUN, "--nproc-per-node=2", "-m", "cvt",
         *options_of(tiny_file, tmp_path / "run", "--epochs=1000")], env=ENV,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        while not (tmp_path / "run/last.safetensors").exists():
            assert launcher.poll() is None, launcher.stderr.read()
            time.sleep(0.1)
        victim = int(subprocess.check_output(["pgrep", "-P", str(launcher.pid)], text=True)
                     .split()[-1])
        os.kill(victim, signal.SIGSTOP)
        start = time.monotonic()
        _, error = launcher.communicate(timeout=70)
        assert time.monotonic() - start < 60
        assert "has sent no heartbeat" in error
        assert launcher.returncode != 0
    finally:
        launcher.kill()


def test_a_batch_that_cannot_be_shared_is_rejected(tiny_file, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(options_of(tiny_file, tmp_path / "run", "--batch_size=66")) == 1
    assert "batch_size=66 is shared by 2 processes" in capfd.readouterr().err
    assert not (tmp_path / "run").exists()
