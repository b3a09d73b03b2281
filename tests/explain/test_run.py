import json

import numpy as np
import pytest
import torch
from PIL import Image

import cvt
from cvt.cli import main
from cvt.config import CvTConfig, Preprocess, StageConfig
from cvt.explain.run import explain
from cvt.explain.sheet import draw_sheet
from cvt.system.errors import InputError
from cvt.weights.card import ModelCard
from cvt.weights.models import load_model

CLASSES = ("cat", "dog", "=1+1\n[red]")


@pytest.fixture
def trained(tmp_path):
    torch.manual_seed(0)
    stages = (StageConfig(dim=8, num_heads=1, depth=1),
              StageConfig(dim=12, num_heads=2, depth=3, cls_token=True))
    config = CvTConfig(stages=stages, num_classes=3, image_size=24)
    cvt.save_model(tmp_path / "model", cvt.CvT(config), Preprocess(size=24, crop=1.0), CLASSES)
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    return tmp_path


def test_an_explanation_has_the_input_the_prediction_and_every_map(trained):
    model, card = load_model(trained / "model")
    result = explain(model, card, Image.open(trained / "a.png").convert("RGB"), stages=[2])
    assert result.input.size == (24, 24)
    (name, top), *_ = result.classes
    assert sorted(n for n, _ in result.classes) == sorted(CLASSES)
    assert sum(p for _, p in result.classes) == pytest.approx(1)
    assert result.target == name
    predicted = next(iter(cvt.Predictor(trained / "model")([trained / "a.png"]))).classes[0]
    assert (name, top) == (predicted[0], pytest.approx(predicted[1], abs=1e-6))
    assert [a.shape for a in result.attention] == [(2, 3, 3)] * 3
    assert result.rollout.shape == (6, 6)
    assert {stage: cam.shape for stage, cam in result.grad_cam.items()} == {2: (6, 6)}
    assert [t.shape for t in result.tokens] == [(8, 12, 12), (12, 6, 6)]
    assert all(image.size == (24, 24) for image in result.images().values())


def test_the_input_is_the_resized_and_cropped_image(trained):
    model, card = load_model(trained / "model")
    image = Image.open(trained / "a.png").convert("RGB")
    shown = np.asarray(explain(model, card, image).input)
    cut = np.asarray(image.resize((32, 24), Image.Resampling.BICUBIC))[:, 4:28]
    assert np.array_equal(shown, cut)


def test_the_input_of_a_gray_network_is_gray():
    config = CvTConfig(stages=(StageConfig(dim=8, num_heads=1, depth=1, cls_token=False),),
                       in_chans=1, num_classes=2, image_size=16)
    card = ModelCard(model=config, classes=("a", "b"),
                     preprocess=Preprocess(size=16, mean=(0.5,), std=(0.5,)))
    result = explain(cvt.CvT(config).eval(), card, Image.new("RGB", (16, 16), (255, 0, 0)))
    assert result.input.getpixel((3, 3)) == (76, 76, 76)
    assert (list(result.attention), result.rollout) == ([], None)
    assert draw_sheet(result, result.images(), "gray").size[0] >= 560


def test_the_command_writes_a_sheet_a_file_a_map_and_the_numbers(trained, capsys, monkeypatch):
    monkeypatch.chdir(trained)
    assert main(["explain", "a.png", "--model", "model", "--target", "dog", "--json"]) == 0
    out = capsys.readouterr().out
    assert out.endswith("sheet: explained/a/sheet.png\n")
    assert "[red]" in out
    assert "\n[red]" not in out  # a line break in a name is shown, not made
    names = {path.name for path in (trained / "explained/a").iterdir()}
    assert names == {"sheet.png", "explanation.json", "input.png", "rollout.png",
                     "grad_cam_stage1.png", "grad_cam_stage2.png", "tokens_stage1.png",
                     "tokens_stage2.png", *(f"attention_block{b}_{h}.png" for b in (1, 2, 3)
                                            for h in ("mean", "head1", "head2"))}
    numbers = json.loads((trained / "explained/a/explanation.json").read_text())
    assert numbers["target"] == "dog"
    assert np.array(numbers["attention"]).shape == (3, 2, 3, 3)
    assert np.array(numbers["grad_cam"]["1"]).shape == (12, 12)
    with Image.open(trained / "explained/a/sheet.png") as page:
        assert page.width > 600


@pytest.mark.parametrize(("options", "message"), [
    (["--target", "dgo"], "there is no class 'dgo'; did you mean dog?"),
    (["--stages", "3"], "there is no stage 3; this network has stages 1 to 2")])
def test_an_unknown_class_or_stage_is_an_error_and_nothing_is_written(
        trained, capsys, options, message):
    assert main(["explain", str(trained / "a.png"), "--model", str(trained / "model"),
                 "--output", str(trained / "out"), *options]) == 1
    assert capsys.readouterr().err == f"cvt explain: {message}\n"
    assert not (trained / "out").exists()


def test_a_model_without_a_classifier_is_an_error():
    config = CvTConfig(stages=(StageConfig(dim=8, num_heads=1, depth=1),), num_classes=0)
    card = ModelCard(model=config, preprocess=Preprocess(), classes=())
    with pytest.raises(InputError, match="has no classifier"):
        explain(cvt.CvT(config).eval(), card, Image.new("RGB", (224, 224)))
