"""What may be said without a flag: the images, the model, and where an export goes."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from cvt.cli import main
from cvt.cli.options import _WEIGHTS
from cvt.weights.tensors import SUFFIXES


def printed(args, capsys):
    assert main([*args, "--print_config=skip_default"]) == 0
    return yaml.safe_load(capsys.readouterr().out)


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """A working directory with photos/, a table and a recipe of another dataset."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    (tmp_path / "table.csv").write_text("path,label\n")
    (tmp_path / "recipe.yaml").write_text("epochs: 7\ndata:\n  name: fashion_mnist\n")


@pytest.mark.parametrize(("args", "data"), [
    (["photos"], {"name": "folder", "root": "photos"}),
    (["table.csv"], {"name": "manifest", "root": "table.csv"}),
    (["--batch-size", "8", "photos", "--overwrite"], {"name": "folder", "root": "photos"}),
    (["photos", "--data.name", "shards"], {"name": "shards", "root": "photos"}),
    (["photos", "--config", "recipe.yaml"], {"name": "folder", "root": "photos"}),
    (["--config", "recipe.yaml", "photos"], {"name": "folder", "root": "photos"})])
def test_train_takes_the_path_of_the_images(args, data, photos, capsys):
    assert printed(["train", *args], capsys)["data"] == data


@pytest.mark.parametrize(("args", "message"), [
    (["train", "photos", "--data.root", "x"],
     "PATH photos and --data.root x are two values for one option; give one"),
    (["train", "photos", "more"], "'more' is one argument too many"),
    (["train", "digits"], "for the dataset give --data.name digits"),
    (["evaluate", "x", "--model", "y"], "MODEL x and --model y are two values"),
    (["evaluate", "x", "photos", "--data.root", "y"], "PATH photos and --data.root y are two"),
    (["evaluate"], "give a MODEL"),
    (["serve", "x", "--model", "y"], "MODEL x and --model y are two values"),
    (["predict", "cvt_nano.digits"], "give images, folders or --list FILE after the model cvt_na"),
    (["predict", "cvt_nano.digits", "a.png", "--model", "x"], "MODEL cvt_nano.digits and --model"),
    (["predict", "a.png", "cvt_nano.digits"], "cvt_nano.digits is a model; give it first"),
    (["predict", "cvt_nano.digit", "a.png"], "did you mean cvt_nano.digits?"),
    (["predict", "runs/mine", "a.png"], "nothing at runs/mine, neither a model nor an image"),
    (["explain", "cvt_nano.digits"], "required: IMAGE")])
def test_what_is_said_twice_or_not_at_all_is_rejected(args, message, photos, capsys):
    assert main(args) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_tag_that_is_a_path_too_is_rejected(photos, capsys):
    Path("cvt_nano.digits").mkdir()
    assert main(["predict", "cvt_nano.digits", "a.png"]) == 2
    assert "is a tag and a path here; write ./cvt_nano.digits" in capsys.readouterr().err


def test_predict_takes_the_model_first(model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    image = "images/ant/0.png"
    assert main(["predict", image, "--model", "model", "--json"]) == 0
    by_flag = json.loads(capsys.readouterr().out)
    for first in ("model", "./model/", "model/best.safetensors"):
        assert main(["predict", first, "--json", image]) == 0
        assert json.loads(capsys.readouterr().out) == by_flag
    # A directory without a card is a folder of images, as is any that comes later.
    assert main(["predict", "images", "--model", "model", "--json"]) == 0
    assert capsys.readouterr().out.count("\n") == 12
    shutil.copy(image, "model/a.png")
    assert main(["predict", "model", "model", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["classes"] == by_flag["classes"]


def test_explain_takes_the_model_first(model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["explain", "model", "images/ant/0.png"]) == 0
    assert "sheet: explained" in capsys.readouterr().out


def test_evaluate_takes_a_model_and_images(model, capsys):
    images = str(model.parent / "images")
    assert main(["evaluate", str(model), "--data.val_fraction", "0.5", images, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["n"] == 6


@pytest.mark.slow
def test_export_needs_the_model_alone(model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["export", "model"]) == 0
    assert "graph: " + str(Path("exports/model_onnx_fp32")) in capsys.readouterr().out
    assert main(["predict", "exports/model_onnx_fp32", "images/ant/0.png", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["classes"]


def test_the_rule_knows_every_format_of_weights():
    assert set(_WEIGHTS) == set(SUFFIXES)
