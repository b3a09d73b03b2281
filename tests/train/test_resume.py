"""What a run resumes with: the images and recipe of its start, or others on request."""

import dataclasses
import json
import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from cvt.cli import main
from cvt.data import fingerprint
from cvt.data.config import AugmentConfig, DataConfig
from cvt.system.errors import InputError
from cvt.system.schema import read_mapping, write_mapping
from cvt.train import loop
from cvt.train.config import DistillConfig, OptimConfig
from cvt.train.recipe import Recipe
from cvt.weights.tensors import read_tensors, write_tensors

pytestmark = pytest.mark.slow

SIZES = {"ant": 10, "bee": 14}


@pytest.fixture
def photos(tmp_path):
    rng = np.random.default_rng(0)
    for name, n in SIZES.items():
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(n):
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(
                tmp_path / "photos" / name / f"{i:02}.bmp")  # all of one size in bytes
    return tmp_path / "photos"


@pytest.fixture
def recipe(tiny_file, photos):
    """Of 19 training and 5 validation images; 9 steps an epoch."""
    return Recipe(model=str(tiny_file), image_size=8, epochs=2, batch_size=2, ema=0.9, save_every=4,
                  data=DataConfig(name="folder", root=str(photos)),
                  augment=AugmentConfig(crop="shift", mixup=0.2),
                  optim=OptimConfig(lr=1e-3, warmup_epochs=0))


@pytest.fixture
def cut(recipe, tmp_path, monkeypatch):
    """cut(number, **changes): a run that was killed at a step, from 0."""
    def begin(number, **changes):
        with monkeypatch.context() as patch:
            die_at(number, patch)
            with pytest.raises(SystemExit):
                loop.train(dataclasses.replace(recipe, **changes), tmp_path / "run", quiet=True)
        return tmp_path / "run"

    return begin


def die_at(number, patch):
    step = loop.Engine.step

    def dying(self, batch, lr, now):
        if now == number:
            raise SystemExit
        return step(self, batch, lr, now)

    patch.setattr(loop.Engine, "step", dying)


def state(run):
    """The newest checkpoint's."""
    return json.loads((max((run / "checkpoints").glob("step-*")) / "state.json").read_text())


def history(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def another(photos, name):
    Image.new("RGB", (8, 8), "red").save(photos / name)


EDITS = {
    "removed": (lambda p: (p / "bee/03.bmp").unlink(), "images by class: .* of 'bee', were"),
    "added": (lambda p: another(p, "ant/99.bmp"), "of 'ant', were"),
    "renamed": (lambda p: (p / "bee/03.bmp").rename(p / "bee/3.bmp"), "the names of the"),
    "changed": (lambda p: another(p, "ant/04.bmp"), "the contents of the"),
    "moved to another class": (lambda p: (p / "bee/03.bmp").rename(p / "ant/03b.bmp"), "of 'ant'"),
    "swapped": (lambda p: [(p / "ant/00.bmp").rename(p / "x"), (p / "ant/01.bmp").rename(
        p / "ant/00.bmp"), (p / "x").rename(p / "ant/01.bmp")], "the contents of the"),
}


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("stopped_at", [7, 13])
def test_a_run_resumes_with_other_images_only_on_request(cut, photos, edit, stopped_at):
    run = cut(stopped_at)
    apply, words = EDITS[edit]
    apply(photos)
    with pytest.raises(InputError, match=rf"cannot be resumed exactly, the data have changed: .*"
                                         rf"{words}.*--resume .* --accept-data-changes") as error:
        loop.resume(run, quiet=True)
    assert "\n" not in str(error.value)
    evaluation = loop.resume(run, quiet=True, accept_data_changes=True)
    assert len(history(run)) == 2
    steps = (sum(SIZES.values()) + (edit == "added") - (edit == "removed") - evaluation.n) // 2
    begun = state(run)["progress"]["step"] - steps * (2 - stopped_at // 9)
    note = f"from step {begun} on with changed data: "
    assert note in state(run)["progress"]["notes"][0]
    assert f"Epoch {stopped_at // 9 + 1} restarts, with {steps} steps" in (
        state(run)["progress"]["notes"][0])
    assert "on the learning rate follows the schedule of a run of 2 epochs" in (
        state(run)["progress"]["notes"][1])
    assert begun == stopped_at // 4 * 4 or begun == 9


def test_half_of_the_images_gone_is_no_complete_run(cut, photos):
    """So that the steps done are more than an epoch now has."""
    run = cut(7)
    for i in range(7):
        (photos / "bee" / f"{i:02}.bmp").unlink()
        (photos / "ant" / f"{i:02}.bmp").unlink()
    with pytest.raises(InputError, match="training images, were 19"):
        loop.resume(run, quiet=True)
    loop.resume(run, quiet=True, accept_data_changes=True)
    assert [row["train_loss"] > 0 for row in history(run)] == [True, True]


def test_what_is_accepted_is_what_the_next_resume_expects(cut, photos, recipe, monkeypatch):
    run = cut(7)
    another(photos, "ant/99.bmp")
    with monkeypatch.context() as patch:
        die_at(12, patch)
        with pytest.raises(SystemExit):
            loop.resume(run, quiet=True, accept_data_changes=True)
    copy = run.with_name("copy")
    shutil.copytree(run, copy)
    loop.resume(run, quiet=True)
    loop.resume(copy, quiet=True, accept_data_changes=True)  # of which there are none any more
    one, other = (read_tensors(place / "last.safetensors") for place in (run, copy))
    torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_a_class_more_is_another_run(cut, photos):
    run = cut(7)
    (photos / "cat").mkdir()
    another(photos, "cat/1.bmp")
    another(photos, "cat/2.bmp")
    for accept in (False, True):
        with pytest.raises(InputError, match=r"were ant, bee and are ant, bee, cat.*--weights"):
            loop.resume(run, quiet=True, accept_data_changes=accept)


def test_images_above_the_limit_are_held_apart_by_their_sizes(cut, photos, monkeypatch):
    monkeypatch.setattr(fingerprint, "MAX_HASHED_BYTES", 100)
    run = cut(7)
    another(photos, "ant/04.bmp")  # of the same size
    loop.resume(run, quiet=True)
    shutil.rmtree(run)
    run = cut(7)
    Image.new("RGB", (9, 8)).save(photos / "ant/05.bmp")
    with pytest.raises(InputError, match="the contents of the"):
        loop.resume(run, quiet=True)


@pytest.mark.parametrize(("name", "value", "words"), [
    ("optim.lr", 0.01, r"optim\.lr=0\.01 in recipe\.yaml, was 0\.001"),
    ("seed", 1, "seed=1 in recipe.yaml, was 0"),
    ("batch_size", 4, "batch_size=4"),
    ("augment.mixup", 0.4, "augment.mixup"),
    ("optim.betas", (0.8, 0.9), r"optim\.betas=\[0\.8, 0\.9\]"),
    ("image_size", 12, "image_size=12"),
])
def test_a_recipe_that_was_edited_is_named(cut, name, value, words):
    run = cut(7)
    Recipe.load(run / "recipe.yaml", {name: value}).save(run / "recipe.yaml")
    for accept in (False, True):
        with pytest.raises(InputError, match=f"cannot be resumed: {words}"):
            loop.resume(run, quiet=True, accept_data_changes=accept)


def test_options_of_the_dataset_change_with_the_data(cut):
    run = cut(7)
    Recipe.load(run / "recipe.yaml", {"data.val_fraction": 0.4}).save(run / "recipe.yaml")
    with pytest.raises(InputError, match=r"data\.val_fraction=0\.4 in recipe\.yaml, was 0\.2"):
        loop.resume(run, quiet=True)
    assert loop.resume(run, quiet=True, accept_data_changes=True).n == 10


@pytest.mark.parametrize("file", ["config.json", "net.json"])
def test_a_network_that_was_edited_is_named(cut, recipe, tmp_path, file):
    """In the file that the recipe names; the run's own card is written anew from it."""
    net = tmp_path / "net.json"
    shutil.copy(recipe.model, net)
    run = cut(7, model=str(net))
    if file == "config.json":
        (run / file).unlink()
        loop.resume(run, quiet=True)
        assert (run / file).is_file()
        return
    model = read_mapping(net)
    model["stages"][0]["drop_rate"] = 0.3
    write_mapping(model, net)
    with pytest.raises(InputError, match=r"the model in config\.json, or in the file"):
        loop.resume(run, quiet=True)


def test_paths_and_execution_may_change(cut, photos, recipe, tmp_path):
    loop.train(recipe, tmp_path / "whole", quiet=True)
    run = cut(13)
    moved = photos.rename(photos.with_name("moved"))
    loop.resume(run, quiet=True, changes={"data.workers": 1, "data.root": str(moved),
                                          "keep_checkpoints": 3, "save_every": 5})
    whole, other = (read_tensors(place / "last.safetensors") for place in (tmp_path / "whole", run))
    torch.testing.assert_close(other, whole, rtol=0, atol=0)
    assert Recipe.load(run / "recipe.yaml").data.root == str(moved)


def test_a_network_and_a_teacher_that_were_moved_are_found_by_their_contents(
        cut, recipe, teacher, tmp_path):
    net = tmp_path / "net.json"
    shutil.copy(recipe.model, net)
    with_teacher = {"model": str(net), "data": DataConfig(),
                    "batch_size": 128, "distill": DistillConfig(teacher=str(teacher))}
    loop.train(dataclasses.replace(recipe, **with_teacher), tmp_path / "whole", quiet=True)
    run = cut(7, **with_teacher)
    (tmp_path / "away").mkdir()
    moved = {"model": str(net.rename(tmp_path / "away/net.json")),
             "distill.teacher": str(teacher.rename(tmp_path / "away/teacher"))}
    with pytest.raises(InputError, match=r"net\.json does not exist"):
        loop.resume(run, quiet=True)
    loop.resume(run, quiet=True, changes=moved)
    whole, other = (read_tensors(place / "last.safetensors") for place in (tmp_path / "whole", run))
    torch.testing.assert_close(other, whole, rtol=0, atol=0)


def test_another_teacher_is_named(cut, teacher):
    run = cut(7, data=DataConfig(), batch_size=128, distill=DistillConfig(teacher=str(teacher)))
    path = teacher / "best.safetensors"
    tensors = read_tensors(path)
    write_tensors({name: t + 1 if name == "head.bias" else t for name, t in tensors.items()}, path)
    with pytest.raises(InputError, match=r"cannot be resumed: the weights of distill\.teacher="):
        loop.resume(run, quiet=True)


def test_paths_hold_from_another_directory(recipe, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(recipe.model, "net.json")
    near = dataclasses.replace(recipe, epochs=1, model="net.json",
                               data=DataConfig(name="folder", root="photos"))
    loop.train(near, "run", quiet=True)
    (tmp_path / "run/metrics.json").unlink()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert loop.resume("../run", quiet=True).n == 5
    assert main(["evaluate", "--model", "../run", "--output", "here"]) == 0


def test_a_finished_run_is_extended(recipe, tmp_path, capfd):
    """With a constant learning rate it is the longer run."""
    steady = dataclasses.replace(recipe, optim=dataclasses.replace(recipe.optim,
                                                                   schedule="constant"))
    loop.train(dataclasses.replace(steady, epochs=3), tmp_path / "long", quiet=True)
    loop.train(dataclasses.replace(steady, epochs=1), tmp_path / "run", quiet=True)
    report = (tmp_path / "run/report.html").read_text()
    loop.resume(tmp_path / "run", changes={"epochs": 3})
    assert ("from step 9 on the learning rate follows the schedule of a run of 3 epochs, 27 steps, "
            "starting at 0.001") in capfd.readouterr().err
    for name in ("last", "best"):
        long, run = (read_tensors(tmp_path / place / f"{name}.safetensors")
                     for place in ("long", "run"))
        torch.testing.assert_close(run, long, rtol=0, atol=0)
    assert len(history(tmp_path / "run")) == 3
    assert (tmp_path / "run/report.html").read_text() != report
    assert Recipe.load(tmp_path / "run/recipe.yaml").epochs == 3
    with pytest.raises(InputError, match="is complete; extend it with --epochs"):
        loop.resume(tmp_path / "run", quiet=True)


def test_an_extended_run_takes_the_schedule_of_its_new_length(recipe, tmp_path):
    loop.train(dataclasses.replace(recipe, epochs=1), tmp_path / "run", quiet=True)
    loop.train(recipe, tmp_path / "long", quiet=True)
    loop.resume(tmp_path / "run", changes={"epochs": 2}, quiet=True)
    assert history(tmp_path / "run")[1]["lr"] == history(tmp_path / "long")[1]["lr"]
    assert history(tmp_path / "run")[0]["lr"] == recipe.optim.min_lr


def test_a_run_is_extended_by_steps_and_to_the_middle_of_an_epoch(recipe, tmp_path):
    loop.train(dataclasses.replace(recipe, steps=12), tmp_path / "run", quiet=True)
    with pytest.raises(InputError, match="of the run is steps=12, so epochs would be ignored"):
        loop.resume(tmp_path / "run", changes={"epochs": 5}, quiet=True)
    loop.resume(tmp_path / "run", changes={"steps": 20}, quiet=True)
    assert state(tmp_path / "run")["progress"]["step"] == 20
    assert len(history(tmp_path / "run")) == 3


def test_a_run_that_was_killed_before_its_last_validation_takes_no_further_step(cut):
    run = cut(11, steps=12, save_every=11)
    loop.resume(run, changes={"steps": 11}, quiet=True)
    assert state(run)["progress"]["step"] == 11


def test_invalid_extensions_are_rejected(recipe, tmp_path):
    loop.train(dataclasses.replace(recipe, epochs=2), tmp_path / "run", quiet=True)
    metrics = (tmp_path / "run/metrics.json").read_bytes()
    for changes, words in (({"epochs": 2}, "complete, with 2 epochs; give more --epochs"),
                           ({"epochs": 1}, "2 epochs and 18 steps .* are done"),
                           ({"steps": 7}, "are done, more than its recipe requests"),
                           ({"epochs": 3, "seed": 1}, "seed would make it another run"),
                           ({"patience": 5}, "complete, with 2 epochs")):
        with pytest.raises(InputError, match=words):
            loop.resume(tmp_path / "run", changes=changes, quiet=True)
    assert (tmp_path / "run/metrics.json").read_bytes() == metrics
    shutil.rmtree(tmp_path / "run/checkpoints")
    with pytest.raises(InputError, match="has no checkpoint to resume from; start another"):
        loop.resume(tmp_path / "run", changes={"epochs": 3}, quiet=True)
    assert (tmp_path / "run/metrics.json").read_bytes() == metrics


def test_a_run_that_ended_by_patience_resumes_with_more_of_it(recipe, tmp_path):
    still = dataclasses.replace(recipe, epochs=9, patience=1, ema=0.0, optim=OptimConfig(
        lr=0.0, warmup_lr=0.0, min_lr=0.0, warmup_epochs=0, weight_decay=0.0))
    loop.train(still, tmp_path / "run", quiet=True)
    done = len(history(tmp_path / "run"))
    assert done < 9
    with pytest.raises(InputError, match="give more --patience than 1, by which it ended, or 0"):
        loop.resume(tmp_path / "run", changes={"epochs": 12}, quiet=True)
    loop.resume(tmp_path / "run", changes={"patience": 0}, quiet=True)
    assert len(history(tmp_path / "run")) == 9


def test_the_command_takes_what_may_change_and_rejects_the_rest(recipe, tmp_path, capsys):
    loop.train(dataclasses.replace(recipe, epochs=1), tmp_path / "run", quiet=True)
    run = str(tmp_path / "run")
    assert main(["train", "--resume", run, "--epochs", "2", "--data.workers=1", "--quiet"]) == 0
    assert "report:" in capsys.readouterr().out
    assert len(history(tmp_path / "run")) == 2
    assert main(["train", "--resume", run, "--optim.lr", "0.1"]) == 2
    assert "--optim.lr would be ignored" in capsys.readouterr().err
    assert main(["train", "--accept-data-changes"]) == 2
    assert "--accept_data_changes is for --resume" in capsys.readouterr().err
    (tmp_path / "run/metrics.json").unlink()
    os.remove(recipe.data.root + "/ant/00.bmp")
    assert main(["train", "--resume", run, "--quiet"]) == 1
    assert "the data have changed" in capsys.readouterr().err
    assert main(["train", "--resume", run, "--accept-data-changes", "--quiet"]) == 0
