"""The weights in the package: their figures are of these very files, and nothing is downloaded."""

import hashlib
import json
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import safe_open

import cvt
from cvt.cli import main
from cvt.train.recipe import Recipe
from cvt.weights.card import ModelCard
from cvt.weights.models import config_of, create_model, load_model
from cvt.zoo import ZOO, shipped

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
TAGS = [tag for tag in ZOO if shipped(tag)]
RESULTS = json.loads((ROOT / "benchmarks/results/shipped.json").read_text())["rows"]
SHIRT = str(ROOT / "examples/shirt.png")


@pytest.fixture(autouse=True)
def _offline(monkeypatch, tmp_path):
    def reject(*_):
        raise AssertionError("this asks the network")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(socket.socket, "connect", reject)
    monkeypatch.setattr(socket, "getaddrinfo", reject)
    monkeypatch.setattr("cvt.weights.models.fetch", reject)


def test_what_lies_in_the_package_is_in_the_zoo_and_small():
    home = Path(cvt.__file__).parent / "weights/shipped"

    assert sorted(p.name for p in home.iterdir()) == sorted(TAGS)
    for tag in TAGS:
        assert {p.name for p in (home / tag).iterdir()} - {"samples"} == {
            "README.md", "config.json", "model.safetensors", "recipe.yaml"}
        assert all(p.suffix == ".png" for p in (home / tag).glob("samples/*"))
    assert sum(p.stat().st_size for p in home.rglob("*") if p.is_file()) <= 5e6


@pytest.mark.parametrize("tag", TAGS)
def test_the_figures_are_of_this_very_file(tag):
    row, result = ZOO[tag], RESULTS[tag]
    weights = shipped(tag) / "model.safetensors"

    assert hashlib.sha256(weights.read_bytes()).hexdigest() == result["sha256"]
    assert (row.n, row.measured_top1, row.measured_top5) == (
        result["n"], round(100 * result["top1"]["value"], 2),
        round(100 * result["top5"]["value"], 2))


@pytest.mark.parametrize("tag", TAGS)
def test_model_card_and_pages_have_the_figures(tag):
    row, top1 = ZOO[tag], RESULTS[tag]["top1"]
    low, high = (f"{100 * top1[end]:.2f}" for end in ("low", "high"))
    text = (shipped(tag) / "README.md").read_text()

    assert f"{row.measured_top1:.2f} % (95 % interval {low} to {high}, n = {row.n:,})" in text
    assert f"top-5 {row.measured_top5:.2f} %" in text
    weights = (ROOT / "docs/weights.md").read_text()
    assert (f"| `{tag}` | {row.tested_on} ({row.n:,}) | {row.size} | {row.measured_top1:.2f} "
            f"({low} to {high}) / {row.measured_top5:.2f} |") in weights
    line, = re.findall(rf"^\| .*`{tag}`.*$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert f"{row.measured_top1:.2f} on" in line


@pytest.mark.parametrize("tag", TAGS)
def test_a_model_card_says_what_a_user_must_know(tag):
    text = (shipped(tag) / "README.md").read_text()
    _, header, body = text.split("---\n", 2)
    recipe = Recipe.load(shipped(tag) / "recipe.yaml")

    assert yaml.safe_load(header)["license"] == ZOO[tag].license
    for word in ("| data |", "| command |", f"| seed, commit | {recipe.seed}, ", "| cost |",
                 "| input |", "## Intended use", "## Limits", "## Licence"):
        assert word in body
    assert f"[recipe.yaml](recipe.yaml): {recipe.epochs} epochs" in body
    exec(re.search(r"```python\n(.*?)```", body, re.DOTALL)[1], {})


@pytest.mark.parametrize("tag", TAGS)
def test_row_card_and_recipe_agree(tag):
    card, row = ModelCard.load(shipped(tag)), ZOO[tag]

    assert (card.preprocess, card.model.act) == (row.preprocess, row.act)
    assert (card.model.image_size, len(card.classes)) == (row.size, 10)
    assert config_of(tag) == card.model
    assert load_model(tag)[1] == card
    assert Recipe.load(shipped(tag) / "recipe.yaml").data.name in tag


@pytest.mark.parametrize("tag", TAGS)
def test_half_precision_on_disk_is_float32_in_use(tag):
    with safe_open(shipped(tag) / "model.safetensors", "pt") as file:
        stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118

    model = create_model(tag)

    assert {t.dtype for t in stored.values()} == {torch.float16, torch.int64}
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == (torch.float32 if tensor.is_floating_point() else torch.int64)
        assert torch.equal(tensor, stored[name].to(tensor.dtype))


def test_a_shipped_file_under_another_name_keeps_its_classes(tmp_path):
    shutil.copy(shipped("cvt_nano.fashion_mnist") / "model.safetensors", tmp_path / "x.safetensors")

    model = create_model("cvt_nano.fashion_mnist", weights="x.safetensors", num_classes=3)

    assert model.head.out_features == 3
    assert main(["convert", "x.safetensors", "out", "--to", "native", "--model",
                 "cvt_nano.fashion_mnist"]) == 0
    assert ModelCard.load("out") == ModelCard.load(shipped("cvt_nano.fashion_mnist"))


def test_an_image_is_classified_right_after_installing():
    """In a process of its own, which may not so much as look up a host's address."""
    code = ("import sys\n"
            "def hook(event, args):\n"
            "    assert event not in ('socket.connect', 'socket.getaddrinfo'), event\n"
            "sys.addaudithook(hook)\n"
            "from cvt.cli import main\n"
            f"code = main(['predict', {SHIRT!r}, '--json'])\n"
            "assert 'huggingface_hub' not in sys.modules\n"
            "sys.exit(code)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["classes"][0]["name"] == "Shirt"
    assert done.stderr.count("\n") == 1
    assert "cvt predict: this is cvt_nano.fashion_mnist" in done.stderr


def test_a_named_model_is_not_announced(capsys):
    assert main(["predict", SHIRT, "--model", "cvt_nano.fashion_mnist"]) == 0

    out, err = capsys.readouterr()
    assert "Shirt" in out
    assert err == ""


def test_digits_are_scored_on_what_was_held_out_and_nothing_is_written_into_the_package(
        tmp_path, capsys):
    before = sorted(shipped("cvt_nano.digits").iterdir())

    assert main(["evaluate", "--model", "cvt_nano.digits", "--json"]) == 0

    result, row = json.loads(capsys.readouterr().out), ZOO["cvt_nano.digits"]
    assert result["n"] == row.n
    # Another machine's rounding may move an image.
    assert 100 * result["top1"]["value"] == pytest.approx(row.measured_top1, abs=100.5 / row.n)
    assert (tmp_path / "runs/cvt_nano.digits/evaluation/report.html").is_file()
    assert sorted(shipped("cvt_nano.digits").iterdir()) == before


def test_the_tag_is_meant_even_where_a_directory_has_its_name(tmp_path, capsys):
    (tmp_path / "cvt_nano.digits").mkdir()

    assert main(["evaluate", "--model", "cvt_nano.digits", "--json"]) == 0

    assert not list((tmp_path / "cvt_nano.digits").iterdir())


def test_training_starts_from_shipped_weights(tmp_path):
    assert main(["train", "--weights", "cvt_nano.fashion_mnist", "--data.name", "digits",
                 "--max_train_samples", "64", "--batch_size", "32", "--epochs", "1",
                 "--optim.warmup_epochs", "0", "--freeze.backbone", "true", "--device", "cpu",
                 "--output", "run", "--quiet"]) == 0

    start, end = create_model("cvt_nano.fashion_mnist"), load_model(tmp_path / "run")[0]
    name = "stages.0.blocks.0.mlp.fc1.weight"
    assert torch.equal(end.state_dict()[name], start.state_dict()[name])
    assert load_model(tmp_path / "run")[1].preprocess == ZOO["cvt_nano.fashion_mnist"].preprocess


def test_a_converted_tag_says_whose_it_is(tmp_path):
    for to in ("native", "timm"):
        assert main(["convert", "cvt_nano.digits", to, "--to", to]) == 0
        text = (tmp_path / to / "README.md").read_text()
        assert "`cvt_nano.digits`, trained with the recipe of this package" in text
        assert yaml.safe_load(text.split("---\n")[1])["datasets"] == ["digits"]
    assert load_model("timm")[1].classes == tuple("0123456789")
