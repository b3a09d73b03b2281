import csv
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from PIL import Image

from cvt.config import CvTConfig, StageConfig
from cvt.data.config import AugmentConfig, DataConfig
from cvt.studies.ablate import training
from cvt.studies.ablate.run import ablate
from cvt.studies.ablate.tables import STUDIES, TABLES
from cvt.studies.resume import STOPPED
from cvt.system.errors import DivergedError, InputError
from cvt.train import loop
from cvt.train.config import OptimConfig
from cvt.train.recipe import Recipe

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_charts")]


@pytest.fixture
def recipe(tmp_path):
    """Two steps of a tiny network with three stages on 16x16 digits."""
    stage = StageConfig(dim=8, num_heads=1, depth=1)
    CvTConfig(stages=(stage, stage, dataclasses.replace(stage, cls_token=True)), num_classes=10,
              image_size=16).save(tmp_path / "tiny.json")
    return Recipe(model=str(tmp_path / "tiny.json"), image_size=16, epochs=1, batch_size=32,
                  data=DataConfig(val_fraction=0.1), max_train_samples=64,
                  augment=AugmentConfig(crop="shift"), optim=OptimConfig(warmup_epochs=0.5))


def some(recipe, **values):
    """As the study data needs it."""
    return dataclasses.replace(
        recipe, max_train_samples=None, steps=2, batch_size=16,
        optim=dataclasses.replace(recipe.optim, warmup_steps=1), **values)


def test_all_tables_share_their_runs_and_leave_no_run_out(recipe, tmp_path):
    lines = []
    out = tmp_path / "out"
    results = ablate(TABLES, recipe, out, seeds=(0,), jobs=1, progress=lines.append)
    assert len(lines) == 12  # configurations of 16 rows: the published one is in every table
    assert len(list((out / "runs").iterdir())) == 12
    for name in TABLES:
        study = results["studies"][name]
        assert [row["label"] for row in study["rows"]] == [r.label for r in STUDIES[name].rows]
        for row in study["rows"]:
            (run,) = row["runs"]
            lines = (out / "runs" / run["run"] / "metrics.csv").read_text().splitlines()
            *_, last = csv.DictReader(lines)
            assert run["top1"] == 100 * float(last["val_top1"]) == row["mean"]
        assert all(c["verdict"] == "inconclusive" for c in study["comparisons"])  # of one seed
        with Image.open(out / f"{name}.png") as chart:
            assert chart.width == 1125
        assert all(row["label"] in (out / f"{name}.md").read_text() for row in study["rows"])
    assert json.loads((out / "ablation.json").read_text()) == json.loads(json.dumps(results))
    assert {path.name for path in next((out / "runs").iterdir()).iterdir()} == {
        ".lock", "config.json", "recipe.yaml", "metrics.csv", "metrics.jsonl", "metrics.json",
        "report.html"}


def test_data_trains_each_network_on_each_number_of_images_for_the_same_steps(recipe, tmp_path):
    results = ablate(["data"], some(recipe), tmp_path, seeds=(0, 1), sizes=(10, 40), jobs=1)
    study = results["studies"]["data"]
    assert [(row["label"], row["images"]) for row in study["rows"]] == [
        (name, n) for name in ("CvT", "ViT", "ResNet") for n in (10, 40)]
    assert len(study["comparisons"]) == 4
    assert all(len(c["differences"]) == 2 and c["low"] <= c["mean"] <= c["high"]
               for c in study["comparisons"])
    for run in (tmp_path / "runs").iterdir():
        epochs = (run / "metrics.jsonl").read_text().splitlines()
        assert len(epochs) == 1  # of many passes, so that it is validated once
        facts = json.loads((run / "metrics.json").read_text())["facts"]
        assert facts["training images"] in ("10", "40")
    table = (tmp_path / "data.md").read_text()
    assert "| images | CvT (" in table
    assert "| 40 |" in table


def test_given_again_it_trains_only_what_is_missing(recipe, tmp_path, monkeypatch):
    first = ablate(["stride"], recipe, tmp_path, seeds=(0,), jobs=1)
    trained = []
    real = loop.train
    monkeypatch.setattr(loop, "train", lambda recipe, *args, **kwargs: (
        trained.append((recipe.seed, recipe.model)), real(recipe, *args, **kwargs)))
    again = ablate(["stride"], recipe, tmp_path, seeds=(0,), jobs=1)
    assert (trained, again["studies"]["stride"]["rows"]) == ([], first["studies"]["stride"]["rows"])
    ablate(["stride"], recipe, tmp_path, seeds=(0, 3), jobs=1)
    assert [seed for seed, _ in trained] == [3, 3]
    results = ablate(["projection"], recipe, tmp_path, seeds=(0,), jobs=1)
    assert len(trained) == 5  # all but "in all stages", which is stride 2
    assert set(results["studies"]) == {"stride", "projection"}


def test_another_recipe_makes_other_runs_but_another_device_or_place_does_not(recipe, tmp_path):
    row = STUDIES["stride"].rows[0]

    def name(changed, output=tmp_path, seed=0, data="as it was"):
        return training.plan_run(changed, row, seed, output, data).directory.name

    same = [recipe, dataclasses.replace(recipe, device="cpu", keep_checkpoints=5, save_every=3),
            dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, workers=2))]
    other = [dataclasses.replace(recipe, epochs=2), dataclasses.replace(recipe, batch_size=64)]
    assert len({name(r) for r in same} | {name(recipe, tmp_path / "elsewhere")}) == 1
    assert len({name(r) for r in (recipe, *other)} | {name(recipe, seed=1)}
               | {name(recipe, data="another")}) == 5


def test_an_interrupted_run_goes_on_where_it_stopped(recipe, tmp_path, monkeypatch):
    recipe = dataclasses.replace(recipe, epochs=2)
    whole = ablate(["stride"], recipe, tmp_path / "whole", seeds=(0,), jobs=1)
    step, seen = loop.Engine.step, []

    def counting(self, batch, lr, number):
        seen.append(number)
        if len(seen) == 4:
            raise KeyboardInterrupt
        return step(self, batch, lr, number)

    monkeypatch.setattr(loop.Engine, "step", counting)
    with pytest.raises(KeyboardInterrupt):
        ablate(["stride"], recipe, tmp_path / "cut", seeds=(0,), jobs=1)
    cut = ablate(["stride"], recipe, tmp_path / "cut", seeds=(0,), jobs=1)
    assert seen[3:6] == [3, 2, 3]  # from the checkpoint after the first epoch of two steps

    def figures(results):
        return [run["top1"] for row in results["studies"]["stride"]["rows"] for run in row["runs"]]

    assert figures(cut) == figures(whole)


def test_a_loss_that_diverges_is_a_result_and_stays_one(recipe, tmp_path, monkeypatch):
    def diverge(*args, **kwargs):
        raise DivergedError("the loss became nan in epoch 1")

    real = loop.train
    monkeypatch.setattr(loop, "train", lambda recipe, *args, **kwargs: (
        diverge if recipe.seed == 1 else real)(recipe, *args, **kwargs))
    ablate(["stride"], recipe, tmp_path, jobs=1)
    monkeypatch.setattr(loop, "train", diverge)
    results = ablate(["stride"], recipe, tmp_path, jobs=1)["studies"]["stride"]
    for row in results["rows"]:
        assert [run["top1"] is None for run in row["runs"]] == [False, True, False]
    assert len(results["comparisons"][0]["differences"]) == 2
    text = (tmp_path / "stride.md").read_text()
    assert "2 of 3, the others diverged" in text
    assert ", diverged, " in text


def within(seconds, condition):
    """Whether `condition` comes true."""
    until = time.monotonic() + seconds
    while not (true := condition()) and time.monotonic() < until:
        time.sleep(0.1)
    return true


def alive(group):
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_signal_stops_all_processes_and_the_same_command_ends_as_one_process_does(
        recipe, tmp_path):
    recipe = dataclasses.replace(recipe, epochs=30)
    recipe.save(tmp_path / "long.yaml")
    out, runs = tmp_path / "out", tmp_path / "out/runs"
    process = subprocess.Popen(
        [sys.executable, "-m", "cvt", "ablate", "stride", "--config", str(tmp_path / "long.yaml"),
         "--seeds", "0", "--jobs", "2", "--output", str(out)],
        stderr=subprocess.PIPE, text=True, start_new_session=True)
    assert within(120, lambda: len(list(runs.glob("*/checkpoints/step-*"))) >= 2)
    process.terminate()
    _, error = process.communicate(timeout=60)
    assert (process.returncode, error) == (128 + signal.SIGTERM, f"cvt ablate: {STOPPED}\n")
    assert within(10, lambda: not alive(process.pid))  # nothing of it is left
    assert not list(runs.glob("*/metrics.json"))

    two = ablate(["stride"], recipe, out, seeds=(0,), jobs=2)
    one = ablate(["stride"], recipe, tmp_path / "one", seeds=(0,), jobs=1)

    def figures(results):
        return [row["mean"] for row in results["studies"]["stride"]["rows"]]

    # Other threads, other rounding.
    assert figures(two) == pytest.approx(figures(one), abs=2)


@pytest.mark.parametrize(("values", "sampling", "message"), [
    ({"max_train_samples": 9}, {}, "9 training images are too few for 10 classes"),
    ({"network": "vit"}, {}, "a study trains its own networks"),
    ({"patience": 2}, {}, "patience=2 would stop runs early on the images"),
    ({"weights": "cvt_13.msft_in1k"}, {}, "leave out network and weights"),
    ({}, {"seeds": (0, 1, 0)}, "--seeds 0 1 0 has a value twice"),
    ({}, {"seeds": ()}, "--seeds  must be integers of at least 0"),
    ({}, {"seeds": (-1,)}, "--seeds -1 must be integers of at least 0")])
def test_tables_that_cannot_be_made_are_rejected_before_anything_is_written(
        recipe, tmp_path, values, sampling, message):
    with pytest.raises(InputError, match=message):
        ablate(["stride"], dataclasses.replace(recipe, **values), tmp_path / "out",
               **sampling, jobs=1)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("values", "sizes", "message"), [
    ({}, (5,), "5 training images are too few for 10 classes"),
    ({}, (10_000,), r"digits has 1,617 training images, not 10,000; take smaller --sizes"),
    ({"max_train_samples": 50}, (20,), "leave out max_train_samples"),
    ({"steps": None}, (20,), "give --steps and --optim.warmup_steps")])
def test_data_needs_sizes_that_are_there_and_steps(recipe, tmp_path, values, sizes, message):
    with pytest.raises(InputError, match=message):
        ablate(["data"], dataclasses.replace(some(recipe), **values), tmp_path / "out",
               seeds=(0,), sizes=sizes, jobs=1)
    assert not (tmp_path / "out").exists()


def test_results_of_another_version_are_rejected_and_left_alone(recipe, tmp_path):
    (tmp_path / "ablation.json").write_text('{"version": 7, "studies": {}}')
    with pytest.raises(InputError, match=r"ablation.json has version 7, this package writes 1"):
        ablate(["stride"], recipe, tmp_path, seeds=(0,), jobs=1)
    assert (tmp_path / "ablation.json").read_text() == '{"version": 7, "studies": {}}'


def test_a_run_killed_while_it_was_cleaned_up_is_cleaned_up_and_not_trained_again(
        recipe, tmp_path, monkeypatch):
    run = training.plan_run(recipe, STUDIES["stride"].rows[0], 0, tmp_path, "")

    def killed(path, **_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training.shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            training.train_run(run)
    assert not run.done
    assert (run.directory / "best.safetensors").is_file()

    monkeypatch.setattr(loop, "train", killed)
    monkeypatch.setattr(loop, "resume", killed)
    training.train_run(run)
    assert run.done
    assert {p.suffix for p in run.directory.iterdir()} == {"", ".json", ".jsonl", ".csv", ".yaml",
                                                            ".html"}


def test_a_disk_that_fails_in_one_of_several_runs_is_reported_as_itself(recipe, tmp_path):
    """Not as out of memory, the usual reason that a process ends."""
    (tmp_path / "runs").write_text("a file where the runs should go")
    with pytest.raises(OSError, match="runs"):
        ablate(["stride"], recipe, tmp_path, seeds=(0,), jobs=2)


def test_weights_that_an_earlier_call_did_not_keep_are_reported(recipe, tmp_path):
    lines = []
    for keep_weights in (False, True):
        ablate(["stride"], recipe, tmp_path, seeds=(0,), jobs=1,
               keep_weights=keep_weights, progress=lines.append)
    assert [line for line in lines if "too late" in line] == [
        f"--keep_weights comes too late for {len(STUDIES['stride'].rows)} of them; to train those "
        f"again, remove their directories in {tmp_path / 'runs'}"]
