import sys

import pytest
import torch

from cvt.cli import main
from cvt.config import CvTConfig, Preprocess, StageConfig
from cvt.deploy.manifest import Manifest
from cvt.model import CvT
from cvt.weights.models import save_model


@pytest.fixture
def digits(tmp_path):
    """The directory of an untrained model of ten digits."""
    stage = StageConfig(dim=8, num_heads=1, depth=1, cls_token=True)
    torch.manual_seed(0)
    net = CvT(CvTConfig(stages=(stage,), num_classes=10, image_size=8))
    save_model(tmp_path / "model", net, Preprocess(size=8, crop=1.0), tuple("0123456789"))
    return str(tmp_path / "model")


@pytest.mark.slow
def test_export_prints_how_near_the_graph_is_and_where(tmp_path, digits, capfd):
    out = tmp_path / "out"

    assert main(["export", digits, str(out), "--to", "openvino"]) == 0

    output = capfd.readouterr()
    assert "of the largest logit; the same class in 100.00% of 8 images of noise" in output.out
    assert f"graph: {out / 'model.xml'}" in output.out
    assert output.err == ""
    assert Manifest.load(out).format == "openvino"


@pytest.mark.slow
def test_export_calibrates_and_measures_on_a_dataset(tmp_path, digits, capfd):
    assert main(["export", digits, str(tmp_path / "out"), "--to", "openvino", "--precision", "int8",
                 "--data.name", "digits", "--max_drop", "100"]) == 0

    output = capfd.readouterr().out
    assert "% after, on 360 labelled images\ncalibrated on 300 images\n" in output
    assert "Statistics" not in output  # a progress bar of the quantiser


@pytest.mark.parametrize(("options", "code", "message"), [
    (["--to", "openvino", "--precision", "int8"], 1, "int8 needs calibration images"),
    (["--to", "torch", "--precision", "int8"], 1, "--to torch has no int8; it has fp32, bf16"),
    (["--to", "tflite"], 2, "--to"), (["--too", "onnx"], 2, "did you mean --to?")])
def test_a_wrong_call_is_one_line(tmp_path, digits, capfd, options, code, message):
    assert main(["export", digits, str(tmp_path / "out"), *options]) == code

    error = capfd.readouterr().err
    assert message in error
    assert error.startswith("cvt export: ")
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_missing_package_is_one_line(tmp_path, digits, capfd, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)

    assert main(["export", digits, str(tmp_path / "out"), "--to", "openvino"]) == 1

    assert capfd.readouterr().err == ("cvt export: openvino is not installed; "
                                      "pip install 'cvt-torch[openvino]'\n")
