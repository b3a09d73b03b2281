import csv
import dataclasses
import json
import math
import os
import signal
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from cvt.config import CvTConfig, StageConfig
from cvt.data.config import AugmentConfig, DataConfig
from cvt.fast.training import TrainingForm
from cvt.model import CvT
from cvt.system.errors import DivergedError, InputError, StoppedError
from cvt.train import loop
from cvt.train.config import OptimConfig
from cvt.train.directory import lock_run
from cvt.train.recipe import Recipe
from cvt.train.setup import Setup
from cvt.weights.models import load_model
from cvt.weights.tensors import read_tensors

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_charts")]

FILES = {"config.json", "recipe.yaml", "best.safetensors", "last.safetensors", "checkpoints",
         ".lock", "metrics.csv", "metrics.jsonl", "metrics.json", "report.html", "tensorboard"}


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


@pytest.mark.parametrize("network", ["vit", "resnet", "supernet"])
def test_a_baseline_is_trained_by_the_same_recipe_and_resumes_exactly(
        recipe, tmp_path, monkeypatch, network):
    recipe = dataclasses.replace(recipe, network=network, passes_per_epoch=2)
    evaluation = loop.train(recipe, tmp_path / "whole", quiet=True)
    die_after(13, monkeypatch)
    with pytest.raises(SystemExit):
        loop.train(dataclasses.replace(recipe, save_every=4), tmp_path / "cut", quiet=True)
    monkeypatch.undo()
    loop.resume(tmp_path / "cut", quiet=True)
    whole, cut = (read_tensors(tmp_path / run / "last.safetensors") for run in ("whole", "cut"))
    torch.testing.assert_close(cut, whole, rtol=0, atol=0)
    assert evaluation.top1.value == max(row["val_top1"] for row in history(tmp_path / "whole"))
    with pytest.raises(InputError, match=f"contains a {network}, .* not a CvT"):
        load_model(tmp_path / "whole")


def test_the_network_learns(recipe, tmp_path):
    plain = dataclasses.replace(recipe, epochs=6, ema=0.0, batch_size=32, augment=AugmentConfig())
    evaluation = loop.train(plain, tmp_path / "run", quiet=True)
    assert evaluation.top1.value > 0.5


@pytest.mark.parametrize(("steps", "optimizer"), [
    (0, "adamw"), (4, "adamw"), (13, "adamw"), (22, "adamw"), (13, "muon"), (13, "sgd")])
def test_a_resumed_run_ends_as_the_uninterrupted_one(
        recipe, tmp_path, monkeypatch, steps, optimizer):
    """Of 22 steps, 11 an epoch; with a checkpoint at every fourth."""
    recipe = dataclasses.replace(recipe, save_every=4, optim=dataclasses.replace(
        recipe.optim, name=optimizer))
    loop.train(recipe, tmp_path / "whole", quiet=True)
    die_after(steps, monkeypatch)
    with pytest.raises(SystemExit):
        loop.train(recipe, tmp_path / "cut", quiet=True)
    monkeypatch.undo()
    loop.resume(tmp_path / "cut", quiet=True)
    for name in ("best.safetensors", "last.safetensors"):
        whole, cut = (read_tensors(tmp_path / run / name) for run in ("whole", "cut"))
        torch.testing.assert_close(cut, whole, rtol=0, atol=0)
    whole, cut = (history(tmp_path / run) for run in ("whole", "cut"))
    for row in (*whole, *cut):
        row.pop("seconds")
    assert whole == cut


def die_after(steps, monkeypatch):
    """End as a process does that is killed: nothing is cleared away."""
    step = loop.Engine.step

    def dying(self, batch, lr, number):
        if number == steps:
            raise SystemExit
        return step(self, batch, lr, number)

    monkeypatch.setattr(loop.Engine, "step", dying)
    monkeypatch.setattr(loop, "_finish", lambda *_: sys.exit())
    monkeypatch.setattr(loop, "clear_run", lambda _: None)


def test_best_weights_that_are_corrupt_come_from_their_checkpoint(recipe, tmp_path, monkeypatch):
    loop.train(recipe, tmp_path / "whole", quiet=True)
    die_after(22, monkeypatch)
    with pytest.raises(SystemExit):
        loop.train(recipe, tmp_path / "cut", quiet=True)
    monkeypatch.undo()
    content = bytearray((tmp_path / "cut/best.safetensors").read_bytes())
    content[-3] ^= 4
    (tmp_path / "cut/best.safetensors").write_bytes(content)
    loop.resume(tmp_path / "cut", quiet=True)
    whole, cut = (read_tensors(tmp_path / run / "best.safetensors") for run in ("whole", "cut"))
    torch.testing.assert_close(cut, whole, rtol=0, atol=0)


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 130), ("SIGUSR1", 138)])
def test_a_signal_saves_and_ends_the_run(recipe, tmp_path, monkeypatch, name, code):
    loop.train(recipe, tmp_path / "whole", quiet=True)
    step = loop.Engine.step

    def signalled(self, batch, lr, number):
        if number == 5:
            os.kill(os.getpid(), getattr(signal, name))
        return step(self, batch, lr, number)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    monkeypatch.setattr(loop.Engine, "step", signalled)
    with pytest.raises(StoppedError, match=f"stopped by {name} after step 6, .*--resume") as stop:
        loop.train(recipe, tmp_path / "run", quiet=True)
    assert stop.value.code == code
    assert signal.signal(signal.SIGINT, before) is signal.default_int_handler
    monkeypatch.undo()
    loop.resume(tmp_path / "run", quiet=True)
    whole, cut = (read_tensors(tmp_path / run / "last.safetensors") for run in ("whole", "run"))
    torch.testing.assert_close(cut, whole, rtol=0, atol=0)


def test_sigusr1_queues_a_job_of_slurm_again(recipe, tmp_path, monkeypatch):
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(f"#!/bin/sh\necho $@ > {tmp_path}/said\n")
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    step = loop.Engine.step

    def signalled(self, *args):
        os.kill(os.getpid(), signal.SIGUSR1)
        return step(self, *args)

    monkeypatch.setattr(loop.Engine, "step", signalled)
    with pytest.raises(StoppedError, match="job 4711 is requeued") as stop:
        loop.train(recipe, tmp_path / "run", quiet=True)
    assert stop.value.code == 0
    assert (tmp_path / "said").read_text() == "requeue 4711\n"


def test_two_processes_do_not_train_in_one_directory(recipe, tmp_path):
    (tmp_path / "run").mkdir()
    lock = lock_run(tmp_path / "run")
    with pytest.raises(InputError, match="another process trains in"):
        loop.train(recipe, tmp_path / "run", quiet=True)
    lock.release()
    assert loop.train(recipe, tmp_path / "run", quiet=True).n == 360


def hurt(monkeypatch, steps, how):
    """Make the images of certain steps, each time they come, not finite."""
    step, times = loop.Engine.step, dict(steps)

    def hurting(self, batch, lr, number):
        if times.get(number, 0):
            times[number] -= 1
            batch = (torch.full_like(batch[0], how), batch[1])
        return step(self, batch, lr, number)

    monkeypatch.setattr(loop.Engine, "step", hurting)


@pytest.mark.parametrize("how", [math.nan, math.inf])
def test_a_batch_that_is_not_finite_is_skipped(recipe, tmp_path, monkeypatch, how, capfd):
    hurt(monkeypatch, {3: 1, 14: 1}, how)
    loop.train(recipe, tmp_path / "run")
    error = capfd.readouterr().err
    assert "step 4: loss nan, gradient norm nan; the batch is skipped (1 of at most 3)" in error
    weights = read_tensors(tmp_path / "run/last.safetensors")  # BatchNorm's statistics among them
    assert all(t.isfinite().all() for t in weights.values())
    assert [row["train_loss"] > 0 for row in history(tmp_path / "run")] == [True, True]


def fail_for_good(recipe, tmp_path, monkeypatch, steps):
    """Make the loss of certain batches NaN whenever they come: those of `steps` in a run of
    `recipe`, by their labels in their order."""
    labels, step = {}, loop.Engine.step

    def recording(self, batch, lr, number):
        labels[number] = tuple(batch[1].tolist())
        return step(self, batch, lr, number)

    monkeypatch.setattr(loop.Engine, "step", recording)
    loop.train(recipe, tmp_path / "undisturbed", quiet=True)
    bad = {labels[number] for number in steps}

    def failing(self, batch, lr, number):
        if tuple(batch[1].tolist()) in bad:
            batch = (torch.full_like(batch[0], math.nan), batch[1])
        return step(self, batch, lr, number)

    monkeypatch.setattr(loop.Engine, "step", failing)


def test_too_many_of_them_roll_back_to_the_last_checkpoint_and_reshuffle(
        recipe, tmp_path, monkeypatch, capfd):
    recipe = dataclasses.replace(recipe, save_every=4, skip_nonfinite=1)
    fail_for_good(recipe, tmp_path, monkeypatch, (9, 10))
    loop.train(recipe, tmp_path / "run")
    note = ("2 batches up to step 11 were not finite; rolled back to step 8, with the same "
            "learning rate and the rest of the epoch reshuffled")
    assert note in capfd.readouterr().err
    assert len(history(tmp_path / "run")) == 2
    newest = tmp_path / "run/checkpoints/step-00000022/state.json"
    assert json.loads(newest.read_text())["progress"]["notes"] == [note]
    assert note in json.loads((tmp_path / "run/metrics.json").read_text())["facts"]["notes"]


@pytest.mark.parametrize(("number", "reshuffles"), [(10, 1), (14, 0)])
def test_a_run_that_was_rolled_back_resumes_exactly(
        recipe, tmp_path, monkeypatch, number, reshuffles):
    """Killed before the first checkpoint of the reshuffled rest, and after it."""
    recipe = dataclasses.replace(recipe, save_every=4, skip_nonfinite=1)
    fail_for_good(recipe, tmp_path, monkeypatch, (9, 10))
    loop.train(recipe, tmp_path / "whole", quiet=True)
    step = loop.Engine.step

    def dying(self, batch, lr, now):
        if (now, self.reshuffles) == (number, reshuffles):
            raise SystemExit
        return step(self, batch, lr, now)

    monkeypatch.setattr(loop.Engine, "step", dying)
    with pytest.raises(SystemExit):
        loop.train(recipe, tmp_path / "cut", quiet=True)
    monkeypatch.setattr(loop.Engine, "step", step)
    loop.resume(tmp_path / "cut", quiet=True)
    undisturbed, whole, cut = (read_tensors(tmp_path / name / "last.safetensors")
                               for name in ("undisturbed", "whole", "cut"))
    torch.testing.assert_close(cut, whole, rtol=0, atol=0)
    assert not torch.equal(whole["head.weight"], undisturbed["head.weight"])


def test_a_reshuffled_epoch_has_other_dropout_and_mixing(recipe, tmp_path):
    """Of the very same batch, too."""
    with loop.Engine(recipe.with_absolute_paths()) as engine:
        setup = Setup(recipe, engine)
        engine.train_mode()
        batch = next(setup.loader.epoch(0))
        losses = []
        for reshuffles in (0, 1, 1, 2):
            engine.reshuffles = reshuffles
            losses.append(engine._gradients(batch, 0)[0].item())
            engine._optimizer.zero_grad()
    assert losses[1] == losses[2]
    assert len(set(losses)) == 3


def test_if_a_rollback_does_not_help_the_run_dumps_the_batch(recipe, tmp_path, monkeypatch):
    recipe = dataclasses.replace(recipe, save_every=4, skip_nonfinite=0)
    hurt(monkeypatch, {9: 9}, math.nan)
    with pytest.raises(DivergedError, match=r"epoch 1, step 10, .*the batch is in .*diverged"):
        loop.train(recipe, tmp_path / "run", quiet=True)
    dumped = read_tensors(next((tmp_path / "run/diverged").iterdir()))
    assert dumped["images"].shape == (128, 3, 8, 8)
    assert dumped["labels"].shape == (128,)
    monkeypatch.undo()
    assert loop.resume(tmp_path / "run", quiet=True).n == 360  # from step 8


def test_another_failing_step_after_a_rollback_ends_the_run_too(recipe, tmp_path, monkeypatch):
    """On a GPU the second failure may come a few steps apart, which must not go on for ever."""
    recipe = dataclasses.replace(recipe, save_every=4, skip_nonfinite=0)
    hurt(monkeypatch, {9: 1, 10: 1, 11: 1}, math.nan)
    with pytest.raises(DivergedError, match=r"epoch 1, step 11, "):
        loop.train(recipe, tmp_path / "run", quiet=True)


def test_a_warm_up_that_is_longer_than_the_run_is_reported(recipe, tmp_path, capfd):
    short = dataclasses.replace(recipe, steps=3)
    loop.train(short, tmp_path / "a")
    assert ("takes 6 steps, and the run has 3: the learning rate never reaches 0.003"
            in capfd.readouterr().err)
    loop.train(dataclasses.replace(short, optim=dataclasses.replace(
        short.optim, warmup_steps=2)), tmp_path / "b")
    assert "never reaches" not in capfd.readouterr().err


def test_a_run_killed_between_its_first_files_resumes(recipe, tmp_path):
    (tmp_path / "run").mkdir()
    recipe.save(tmp_path / "run/recipe.yaml")
    assert loop.resume(tmp_path / "run", quiet=True).n == 360
    assert {path.name for path in (tmp_path / "run").iterdir()} == FILES


def test_a_gradient_that_is_not_finite_is_not_put_down_to_a_small_scale(recipe):
    with loop.Engine(recipe) as engine:
        step = loop.Step(loss=1.0, norm=math.inf, updated=False)
        for scale, shrinks in ((65536.0, True), (0.5, False)):
            engine._accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
            assert engine.scale_too_large(step) == shrinks


def test_an_optimiser_without_memory_for_its_state_is_not_tried_again(recipe, tmp_path,
                                                                      monkeypatch):
    calls = []

    def failing(self, *_):
        calls.append(1)
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch.optim.AdamW, "step", failing)
    with pytest.raises(InputError, match=r"for the optimiser's state.*optim\.name=sgd"):
        loop.train(recipe, tmp_path / "run", quiet=True)
    assert len(calls) == 1


def out_of_memory_above(images, monkeypatch):
    """A network that finds no memory for more images at a time."""
    forward = TrainingForm.forward

    def failing(self, x):
        if len(x) > images:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, x)

    monkeypatch.setattr(TrainingForm, "forward", failing)


def test_if_memory_runs_out_the_batch_is_split(recipe, tmp_path, monkeypatch, capfd):
    recipe = dataclasses.replace(recipe, epochs=1)
    split = dataclasses.replace(recipe, optim=dataclasses.replace(recipe.optim, grad_accum_steps=2))
    loop.train(split, tmp_path / "split", quiet=True)
    out_of_memory_above(64, monkeypatch)
    loop.train(recipe, tmp_path / "run")
    assert ("out of memory: from step 1 on a batch is computed in 2 micro-batches"
            in capfd.readouterr().err)
    one, other = (read_tensors(tmp_path / n / "last.safetensors") for n in ("split", "run"))
    torch.testing.assert_close(other, one, rtol=0, atol=0)


def test_if_that_is_not_enough_the_error_says_what_to_do(recipe, tmp_path, monkeypatch):
    out_of_memory_above(10, monkeypatch)
    with pytest.raises(InputError, match="out of memory with a micro-batch of 64 images; decrease"):
        loop.train(recipe, tmp_path / "run", quiet=True)


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
                                                                     grad_accum_steps=parts))
        loop.train(split, tmp_path / str(parts), quiet=True)
    whole, parts = (read_tensors(tmp_path / n / "last.safetensors") for n in ("1", "4"))
    for name in whole:
        torch.testing.assert_close(whole[name], parts[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("values", [{"precision": "bf16"}, {"in_chans": 1}])
def test_a_run_may_be_of_half_precision_or_of_gray_images(recipe, tmp_path, values):
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
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["diverged"]
    loop.train(dataclasses.replace(recipe, epochs=1), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run/diverged").exists()


def test_a_run_is_overwritten_only_on_request(recipe, tmp_path):
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


def test_a_corrupt_checkpoint_is_named_and_skipped(recipe, tmp_path, capfd):
    loop.train(recipe, tmp_path / "run", quiet=True)
    whole = read_tensors(tmp_path / "run/last.safetensors")
    (tmp_path / "run/metrics.json").unlink()
    newest = tmp_path / "run/checkpoints/step-00000022"
    (newest / "optimizer.safetensors").write_bytes(b"cut off")
    loop.resume(tmp_path / "run")
    error = capfd.readouterr().err
    assert "step-00000022 is corrupt: the contents of optimizer.safetensors have changed" in error
    assert "it is renamed to corrupt-step-00000022" in error
    again = read_tensors(tmp_path / "run/last.safetensors")
    torch.testing.assert_close(again, whole, rtol=0, atol=0)


def test_fp16_on_a_cpu_is_rejected(recipe, tmp_path):
    with pytest.raises(InputError, match="a CPU has bf16"):
        loop.train(dataclasses.replace(recipe, precision="fp16", device="cpu"), tmp_path / "run")


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


def test_a_run_stopped_in_its_first_epoch_is_not_in_the_way(recipe, tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/mine.txt").write_text("kept")

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(loop.Engine, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        loop.train(recipe, tmp_path / "run", quiet=True)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["mine.txt"]


def test_a_run_does_not_resume_with_other_classes(recipe, tmp_path):
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


def test_validation_uses_the_micro_batch_size_of_training(recipe, tmp_path, monkeypatch):
    """The last one too, and after memory ran out in training."""
    sizes, forward = [], CvT.forward

    def recording(self, x):
        sizes.append(len(x))
        return forward(self, x)

    monkeypatch.setattr(CvT, "forward", recording)
    out_of_memory_above(32, monkeypatch)
    split = dataclasses.replace(recipe, epochs=1, optim=dataclasses.replace(
        recipe.optim, grad_accum_steps=2))
    loop.train(split, tmp_path / "run", quiet=True)
    assert sizes == [*[32] * 11, 8] * 2  # of 360, once an epoch and once for the report


@pytest.mark.parametrize("split", [{"grad_accum_steps": 4}, {}])
def test_single_images_with_1x1_maps_are_rejected(recipe, tmp_path, split):
    """Of which BatchNorm has no variance to take."""
    small = dataclasses.replace(
        recipe, image_size=4, batch_size=4 if split else 1, augment=AugmentConfig(),
        optim=dataclasses.replace(recipe.optim, **split))
    with pytest.raises(InputError, match=r"BatchNorm cannot train on a micro-batch .*larger"):
        loop.train(small, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()
    larger = dataclasses.replace(small, image_size=16, steps=3)
    assert loop.train(larger, tmp_path / "run", quiet=True).n == 360
