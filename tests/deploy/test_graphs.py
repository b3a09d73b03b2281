import dataclasses
import sys

import onnx
import pytest
import torch

from cvt.config import VARIANTS, CvTConfig, StageConfig
from cvt.deploy.graphs import (
    check_format,
    onnx_graph,
    open_graph,
    openvino_graph,
    save_openvino,
    torch_graph,
    traceable_side,
)
from cvt.fast.network import Folded
from cvt.model import CvT
from cvt.system.errors import InputError

pytestmark = pytest.mark.slow

SIZES = [(1, 64, 64), (3, 64, 96), (2, 81, 67)]
FIRST = StageConfig(dim=8, num_heads=1, depth=1, embed_kernel=7, embed_stride=4, embed_padding=2)
KINDS = {
    "class token": CvTConfig(num_classes=10, stages=(
        FIRST, StageConfig(dim=8, num_heads=2, depth=1, cls_token=True))),
    "averaged": CvTConfig(num_classes=10, act="gelu", image_size=64, stages=(
        dataclasses.replace(FIRST, pos_embed=True),)),
    "unlike blocks": CvTConfig(num_classes=10, stages=(FIRST, StageConfig(
        dim=8, num_heads=2, depth=2, cls_token=True, stride_kv=(1, 2), mlp_ratio=(2.0, 4.0))))}
FILES = {"onnx": "model.onnx", "openvino": "model.xml", "torch": "model.pt2"}


@pytest.fixture
def network(request, shaken):
    return shaken(CvT(KINDS[getattr(request, "param", "class token")])).eval()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("graphs")


def written(network, place, to, precision="fp32"):
    """The file of a graph of `network`, traced at a size that no test runs it at.

    It is written once, for every test starts from the same seed.
    """
    directory = place / f"{to}-{precision}-{network.config.act}-{network.config.stages[-1].depth}"
    if directory.is_dir():
        return directory / FILES[to]
    directory.mkdir()
    path, folded, example = directory / FILES[to], Folded(network).eval(), torch.randn(2, 3, 51, 83)
    if to == "onnx":
        onnx_graph(folded, path, example=example)
    elif to == "openvino":
        save_openvino(openvino_graph(folded, example=example), path, half=precision == "bf16")
    else:
        torch_graph(folded, path, example=example, bf16=precision == "bf16")
    return path


def difference(run, network, size):
    images = torch.randn(size[0], 3, *size[1:])
    with torch.inference_mode():
        want = network(images)
    got = run(images)
    assert got.dtype == torch.float32
    assert got.shape == want.shape
    return ((got - want).abs().max() / want.abs().max()).item()


@pytest.mark.parametrize(("to", "network"), [
    ("onnx", "class token"), ("onnx", "averaged"), ("openvino", "class token"),
    ("openvino", "averaged"), ("torch", "class token"), ("onnx", "unlike blocks")],
    indirect=["network"])
def test_a_graph_computes_the_network_at_any_batch_and_size(to, network, place):
    run = open_graph(written(network, place, to), to, "fp32")

    for size in SIZES:
        assert difference(run, network, size) < 2e-6


@pytest.mark.parametrize(("to", "network"), [("openvino", "class token"), ("torch", "averaged")],
                         indirect=["network"])
def test_bf16_takes_and_gives_float32(to, network, place):
    path = written(network, place, to, "bf16")

    for size in SIZES[:2]:
        assert 1e-5 < difference(open_graph(path, to, "bf16"), network, size) < 0.1
    assert next(network.parameters()).dtype == torch.float32


def test_the_result_of_openvino_is_not_overwritten_by_its_next_call(network, place):
    run = open_graph(written(network, place, "openvino"), "openvino", "fp32")
    first = run(torch.zeros(1, 3, 64, 64))
    kept = first.clone()
    run(torch.ones(1, 3, 64, 64))

    assert torch.equal(first, kept)


def test_an_onnx_model_names_its_axes_and_no_file_of_the_machine(network, place):
    path = written(network, place, "onnx")
    graph = onnx.load(path).graph

    shape = graph.input[0].type.tensor_type.shape.dim
    assert [d.dim_param or d.dim_value for d in shape] == ["batch", 3, "height", "width"]
    assert [v.name for v in (*graph.input, *graph.output)] == ["images", "logits"]
    assert b"network.py" not in path.read_bytes()
    onnx.checker.check_model(path, full_check=True)


def test_a_torch_graph_of_images_too_small_to_trace_has_their_size(network, tmp_path):
    example = torch.randn(2, 3, 12, 12)
    assert network.config.grids((12, 12)) == ((3, 3), (2, 2))  # so one key in the last stage
    torch_graph(Folded(network).eval(), tmp_path / "model.pt2", example=example, fixed_size=True)

    run = open_graph(tmp_path / "model.pt2", "torch", "fp32")
    assert difference(run, network, (5, 12, 12)) < 2e-6


def test_the_papers_networks_are_traced_from_35_pixels(tiny):
    assert {traceable_side(VARIANTS[name]) for name in ("cvt_13", "cvt_21", "cvt_w24")} == {35}
    assert traceable_side(tiny()) == 35
    assert traceable_side(VARIANTS["cvt_nano"]) == 17


@pytest.mark.parametrize(("to", "precision", "message"), [
    ("onnx", "bf16", "--to onnx has no bf16; it has fp32, int8"),
    ("torch", "int8", "--to torch has no int8; it has fp32, bf16"),
    ("tflite", "fp32", "there is no format 'tflite'; choose from onnx, openvino, torch")])
def test_what_a_format_lacks_is_rejected(to, precision, message):
    with pytest.raises(InputError, match=message):
        check_format(to, precision)


@pytest.mark.parametrize(("to", "precision", "package"), [
    ("onnx", "fp32", "onnx"), ("onnx", "fp32", "onnxscript"), ("onnx", "int8", "onnxruntime"),
    ("openvino", "fp32", "openvino"), ("openvino", "int8", "nncf")])
def test_a_missing_package_is_reported_with_its_install_line(monkeypatch, to, precision, package):
    monkeypatch.setitem(sys.modules, package, None)

    with pytest.raises(InputError, match=rf"^{package} is not installed; pip install "
                                         rf"'cvt-torch\[{to}\]'$"):
        check_format(to, precision)


def test_a_network_in_training_is_rejected(network, tmp_path):
    with pytest.raises(InputError, match=r"call eval\(\) on it first"):
        torch_graph(network.train(), tmp_path / "x.pt2", example=torch.randn(2, 3, 51, 83))
