import itertools
import math

import pytest
import torch

from cvt.config import CvTConfig, StageConfig
from cvt.deploy.backends import PRECISIONS, optimize, pick_backend, session_of
from cvt.fast.verify import samples
from cvt.model import CvT
from cvt.system.errors import InputError


@pytest.fixture
def model(shaken):
    """Of two stages: every block more takes seconds to convert."""
    embed = {"embed_kernel": 7, "embed_stride": 4, "embed_padding": 2}
    stages = (StageConfig(dim=8, num_heads=1, depth=1, **embed),
              StageConfig(dim=16, num_heads=2, depth=2, cls_token=True))
    return shaken(CvT(CvTConfig(stages=stages, num_classes=10, image_size=64))).eval()


@pytest.fixture
def small(shaken):
    stage = StageConfig(dim=8, num_heads=1, depth=1, cls_token=True)
    return shaken(CvT(CvTConfig(stages=(stage,), num_classes=3, image_size=8))).eval()


@pytest.mark.parametrize(("backend", "precision"), [
    (backend, precision) for backend, has in PRECISIONS.items() for precision in has
    if backend != "compile"])
@pytest.mark.slow
def test_every_backend_gives_the_models_logits(model, backend, precision):
    calibration = samples(model.config, 16).split(4) if precision == "int8" else None

    fast = optimize(model, backend, precision, calibration=calibration)

    assert (fast.backend, fast.precision) == (backend, precision)
    assert fast.agreement.difference < {"fp32": 2e-5, "bf16": 0.1, "int8": 0.5}[precision]
    sizes = [(64, 64), (96, 80)]
    # A quantized graph of OpenVINO keeps the size of its calibration images.
    for size in sizes[:1] if (backend, precision) == ("openvino", "int8") else sizes:
        images = torch.randn(3, 3, *size)
        with torch.no_grad():
            expected = model(images)
        logits = fast(images)
        assert (logits.shape, logits.dtype) == ((3, 10), torch.float32)
        bound = {"fp32": 2e-5, "bf16": 0.1, "int8": 1.0}[precision]
        assert (logits - expected).abs().max() < bound * expected.abs().max()


@pytest.mark.slow
def test_a_compiled_network_gives_the_models_logits(small):
    fast = optimize(small, "compile")

    images = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(fast(images), small(images), rtol=1e-4, atol=1e-5)
    with torch.profiler.profile() as profile:
        fast(images)
    # Weights that are not frozen are reordered in every call, by aten's own convolution.
    names = {event.name for event in profile.events() or ()}
    assert "mkldnn::_convolution_pointwise" in names
    assert "aten::convolution" not in names


def test_optimizing_leaves_the_model_as_it_was(model):
    before = {name: t.clone() for name, t in model.state_dict().items()}

    optimize(model, "eager", "bf16")

    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


def test_a_session_is_the_same_between_arrays(model):
    session = session_of(model, backend="eager", precision="fp32", batch_size=2, threads=None)
    images = torch.randn(2, 3, 64, 64)

    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(session(images.numpy())), model(images))


@pytest.mark.parametrize(("backend", "precision", "message"), [
    ("tensorrt", "fp32", "choose from auto, eager"), ("egaer", "fp32", "did you mean eager"),
    ("eager", "int8", "eager has no int8; it has fp32, bf16"),
    ("openvino", "int8", "needs calibration=")])
def test_what_no_backend_has_is_rejected(model, backend, precision, message):
    with pytest.raises(InputError, match=message):
        optimize(model, backend, precision)


def test_a_network_in_training_is_rejected(model):
    with pytest.raises(InputError, match=r"call model\.eval\(\) first"):
        optimize(model.train())


def test_a_difference_above_the_users_tolerance_is_rejected(model):
    with pytest.raises(InputError, match="differs by"):
        optimize(model, "eager", "bf16", tolerance=1e-7)


def test_the_backend_is_picked_from_what_is_installed():
    assert pick_backend("int8", torch.device("cpu")) == "openvino"
    assert pick_backend("bf16", torch.device("cuda")) == "eager"
    with pytest.raises(InputError, match="pip install"):
        pick_backend("int8", torch.device("cuda"))


def test_threads_are_pytorchs_setting_where_it_computes(model):
    before = torch.get_num_threads()
    try:
        optimize(model, threads=before + 1)
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.slow
def test_calibration_takes_no_more_than_it_needs(small):
    """It may come from a loader without an end."""
    endless = (torch.randn(100, 3, 8, 8) for _ in itertools.count())

    fast = optimize(small, "onnxruntime", "int8", calibration=endless, tolerance=math.inf)

    assert fast(torch.randn(2, 3, 8, 8)).shape == (2, 3)


def test_a_graph_of_a_model_on_another_device_is_rejected(tiny):
    with torch.device("meta"):
        model = CvT(tiny()).eval()

    with pytest.raises(InputError, match="openvino runs on the CPU only, and the model is on"):
        optimize(model, "openvino")


def test_compiling_without_a_compiler_says_what_to_install(model, monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)

    with pytest.raises(InputError, match="there is none; install g"):
        optimize(model, "compile")
