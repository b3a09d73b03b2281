import dataclasses
import json
import os
import re
import shlex
import shutil
import signal
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from cvt.cli import main
from cvt.config import CvTConfig, StageConfig
from cvt.data.load import load_dataset
from cvt.studies.search import run
from cvt.studies.search.config import SearchConfig
from cvt.studies.search.result import Result
from cvt.system.errors import InputError, StoppedError
from cvt.train import loop
from cvt.train.config import OptimConfig
from cvt.train.recipe import Recipe
from cvt.weights.tensors import read_tensors

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_charts")]


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """The file of a network of two stages for images of 8 pixels."""
    stages = (StageConfig(dim=8, num_heads=1, depth=1),
              StageConfig(dim=8, num_heads=2, depth=2, cls_token=True))
    path = tmp_path_factory.mktemp("config") / "tiny.json"
    CvTConfig(stages=stages, num_classes=10, image_size=8).save(path)
    return path


@pytest.fixture(scope="module")
def recipe(config):
    return Recipe(model=str(config), network="supernet", image_size=8, epochs=2, batch_size=64,
                  device="cpu", max_train_samples=640, save_every=3,
                  optim=OptimConfig(lr=3e-3, warmup_epochs=0.5))


SEARCH = SearchConfig(budget=50_000, population=4, generations=3, held_out=200, calibration=128)


@pytest.fixture(scope="module")
def done(recipe, tmp_path_factory):
    output = tmp_path_factory.mktemp("search") / "run"
    return output, run.search(recipe, SEARCH, output, quiet=True)


def test_a_search_leaves_every_network_it_scored_and_the_best_of_both(done):
    output, result = done

    assert {path.name for path in output.iterdir()} == {
        "supernet", "search.json", "model.yaml", "random.yaml", "search.png"}
    assert len(result.evolution) == len(result.random) == 12
    assert result.evolution[:4] == result.random[:4]
    assert result.best.top1 == max(scored.top1 for scored in result.evolution)
    assert all(s.multiply_adds <= 50_000 for s in (*result.evolution, *result.random))
    assert CvTConfig.load(output / "model.yaml") == result.config(result.best)
    assert CvTConfig.load(output / "random.yaml") == result.config(result.best_random)
    assert (result.trained, result.held_out) == (640, 200)
    with Image.open(output / "search.png") as chart:
        assert chart.size == (1050, 660)


def test_the_file_comes_back_as_it_was(done):
    output, result = done
    read = Result.load(output / "search.json")

    assert dataclasses.replace(read, options=result.options) == result
    assert json.loads((output / "search.json").read_text())["version"] == 1


def test_the_images_that_score_are_training_images_the_supernet_never_saw(recipe):
    dataset = load_dataset(recipe.data)

    limited, held_out = run._hold_out(recipe, SEARCH, dataset)
    seen = set(run.subset(dataset.train, limited.max_train_samples, 0).names)

    assert len(seen) == 640
    assert len(held_out) == 200
    assert seen.isdisjoint(held_out.names)
    assert set(held_out.names) <= set(dataset.train.names)
    everything, some = run._hold_out(dataclasses.replace(recipe, max_train_samples=None),
                                       SearchConfig(budget=1), dataset)
    assert (everything.max_train_samples, len(some)) == (1437 - 287, 287)


def test_a_search_that_was_stopped_goes_on_as_if_it_had_not_been(recipe, done, tmp_path,
                                                                 monkeypatch):
    output, result = done
    step, calls = loop.Engine.step, []

    def stopping(*args):
        calls.append(1)
        if len(calls) == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(*args)

    monkeypatch.setattr(loop.Engine, "step", stopping)
    with pytest.raises(StoppedError, match="the same command continues from there"):
        run.search(recipe, SEARCH, tmp_path / "cut", quiet=True)
    monkeypatch.undo()

    assert run.search(recipe, SEARCH, tmp_path / "cut", quiet=True) == result

    whole, cut = (read_tensors(at / "supernet/last.safetensors") for at in (output,
                                                                            tmp_path / "cut"))
    torch.testing.assert_close(cut, whole, rtol=0, atol=0)


def test_a_search_that_is_done_is_read(recipe, done, monkeypatch):
    output, result = done
    monkeypatch.setattr(run, "_train_supernet", lambda *_: pytest.fail("trained again"))

    assert run.search(recipe, SEARCH, output).best == result.best


@pytest.mark.parametrize(("changes", "message"), [
    ({"budget": 60_000}, "is a search with other options; repeat those, or give another"),
    ({"budget": 100}, "no network meets a budget of 100 multiply-adds; the cheapest takes"),
    ({"held_out": 1000}, "max_train_samples=640 and held_out=1000 exceed the 1,437 train"),
])
def test_what_cannot_be_searched_is_rejected(recipe, done, changes, message):
    with pytest.raises(InputError, match=message):
        run.search(recipe, dataclasses.replace(SEARCH, **changes), done[0], quiet=True)


def test_a_search_of_other_data_is_not_taken_for_this_one(recipe, done, monkeypatch):
    monkeypatch.setattr(run, "digest", lambda _: "another")
    with pytest.raises(InputError, match="is a search with other data; repeat those"):
        run.search(recipe, SEARCH, done[0], quiet=True)


def test_labels_are_those_of_the_classes_that_the_supernet_was_trained_on(recipe, done, tmp_path,
                                                                          monkeypatch):
    shutil.copytree(done[0] / "supernet", tmp_path / "supernet")
    card = json.loads((tmp_path / "supernet/config.json").read_text())
    card["classes"] = card["classes"][::-1]
    (tmp_path / "supernet/config.json").write_text(json.dumps(card))
    batches, seen = run._batches, []

    def watched(images, *rest):
        seen.append(images)
        return batches(images, *rest)

    monkeypatch.setattr(run, "_batches", watched)
    monkeypatch.setattr(run, "scorer", lambda *_: lambda _: 0.5)
    run.search(recipe, SEARCH, tmp_path, quiet=True)

    held_out = run._hold_out(recipe, SEARCH, load_dataset(recipe.data))[1]
    assert seen[-1].names == held_out.names
    assert seen[-1].labels == tuple(9 - label for label in held_out.labels)


def test_another_supernet_is_not_searched(recipe, done, tmp_path):
    (tmp_path / "supernet").symlink_to(done[0] / "supernet")
    with pytest.raises(InputError, match="supernet was trained with other options; repeat those"):
        run.search(dataclasses.replace(recipe, epochs=3), SEARCH, tmp_path, quiet=True)


@pytest.mark.parametrize(("content", "message"), [
    ('{"version": 0}', "is a search of version 0, this package writes 1; give another --output"),
    ('{"version": 1, "budget": 5}', "is not a complete search"),
    ("[]", "has a list, not a mapping"), ("{", "cannot be read")])
def test_a_file_that_is_no_search_of_this_version_is_rejected(recipe, tmp_path, content, message):
    (tmp_path / "search.json").write_text(content)

    with pytest.raises(InputError, match=message):
        run.search(recipe, SEARCH, tmp_path, quiet=True)


@pytest.mark.parametrize(("changes", "message"), [
    ({"budget": 0}, "budget=0 must be at least 1"),
    ({"population": 1}, "must be at least 2, for two parents"),
    ({"held_out": 0}, "held_out=0"), ({"calibration": 0}, "calibration=0")])
def test_a_search_that_cannot_be_is_rejected(changes, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(SEARCH, **changes)


def test_another_network_than_a_supernet_is_not_searched(recipe, tmp_path):
    with pytest.raises(InputError, match="network=supernet, not cvt"):
        run.search(dataclasses.replace(recipe, network="cvt"), SEARCH, tmp_path)


def test_the_images_for_validation_do_not_end_the_training(recipe, tmp_path):
    with pytest.raises(InputError, match="patience=2 would stop the training early on the valid"):
        run.search(dataclasses.replace(recipe, patience=2), SEARCH, tmp_path / "x")


def test_a_file_is_no_place_for_a_search(recipe, tmp_path):
    (tmp_path / "x").touch()
    with pytest.raises(InputError, match="x is a file; give a directory"):
        run.search(recipe, SEARCH, tmp_path / "x")


def command(config, output, *options):
    return ["search", "--budget=1M", "--population=2", "--generations=1", f"--model={config}",
            "--image_size=8", "--epochs=1", "--optim.warmup_epochs=0", "--device=cpu",
            "--max_train_samples=128", "--held_out=50", f"--output={output}", *options]


def test_the_command_finds_a_network_to_train(config, tmp_path, capsys):
    assert main(command(config, tmp_path / "run", "--quiet")) == 0
    out = capsys.readouterr().out
    assert "64 networks of at most 1,000,000" in out
    assert "Every network meets the budget: the most that any takes is " in out
    assert f"cvt train --model {tmp_path / 'run/model.yaml'}" in out
    assert main(["train", f"--model={tmp_path / 'run/model.yaml'}", "--image_size=8", "--epochs=1",
                 "--optim.warmup_epochs=0", "--device=cpu", "--quiet",
                 f"--output={tmp_path / 'found'}"]) == 0


@pytest.mark.parametrize(("options", "code", "message"), [
    (["--budget=10"], 1, "no network meets a budget of 10 multiply-adds"),
    (["--budget=much"], 2, "--budget much is not a number of multiply-adds; write 22M or 4.1G"),
    (["--population=1"], 2, "population=1 must be at least 2, for two parents"),
    (["--network=vit"], 2, "there is no option --network"),
    (["--compile=true"], 2, "leave out compile"),
])
def test_the_command_rejects_in_one_line(config, tmp_path, capsys, options, code, message):
    assert main(command(config, tmp_path / "run", *options)) == code
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_the_page_on_the_search_shows_commands_that_are_understood(capsys):
    page = (Path(__file__).parents[3] / "docs/network_search.md").read_text()
    lines = [shlex.split(text)[1:] for text in re.findall(r"```sh\n(cvt search .*)\n```", page)]
    assert lines
    for args in lines:
        assert main([*args, "--print_config"]) == 0
    stage, = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    assert StageConfig(dim=8, num_heads=1, depth=2, **{
        key: tuple(value) for key, value in yaml.safe_load(stage).items()}).block(1).mlp_ratio == 4
