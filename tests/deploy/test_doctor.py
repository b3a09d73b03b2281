import importlib.metadata
import json

import pytest
import torch

import cvt.deploy.doctor
import cvt.system.machine
from cvt.cli import main
from cvt.config import CvTConfig, StageConfig
from cvt.deploy import backends
from cvt.deploy.doctor import diagnose
from cvt.model import CvT
from cvt.system.errors import InputError

pytestmark = pytest.mark.slow

REAL = importlib.metadata.version


@pytest.fixture
def without(monkeypatch):
    """without(name, ...): these packages seem not to be installed."""
    def hide(*names):
        def version(name):
            if name in names:
                raise importlib.metadata.PackageNotFoundError(name)
            return REAL(name)

        for module in (cvt.deploy.doctor, cvt.system.machine):
            monkeypatch.setattr(module, "version", version)

    return hide


@pytest.fixture(scope="module")
def found(telling):
    """Of a network of one block, which is converted in less time than that of the package."""
    torch.manual_seed(0)
    stage = StageConfig(dim=16, num_heads=2, depth=1, cls_token=True)
    model = telling(CvT(CvTConfig(stages=(stage,), num_classes=10, image_size=28)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cvt.weights.models.create_model", lambda _: model)
        return diagnose()


def test_every_backend_is_tried_and_agrees_with_pytorch(found):
    tried = {(t.backend, t.precision) for t in found.trials if t.device == "cpu"}
    assert tried == {(name, precision) for name, precisions in backends.PRECISIONS.items()
                     for precision in precisions if name != "compile"}
    assert all(t.works for t in found.trials), [t.reason for t in found.trials]
    limits = {"fp32": 2e-5, "bf16": 0.1, "int8": 0.5}
    assert all(t.difference <= limits[t.precision] and t.milliseconds > 0 for t in found.trials)
    assert found.healthy


def test_packages_are_those_that_pyproject_names(found):
    extras = {p.name: p.extra for p in found.packages}
    assert extras["torch"] is None
    assert (extras["openvino"], extras["fastapi"], extras["pyarrow"]) == (
        "openvino", "serve", "data")
    assert "pytest" not in extras
    assert next(p for p in found.packages if p.name == "torch").version == REAL("torch")


def test_a_backend_that_fails_says_why_and_what_to_install(monkeypatch):
    def fail(model, backend, precision, **_):
        if backend == "openvino":
            raise InputError("openvino is not installed; pip install 'cvt-torch[openvino]'")
        if backend == "onnxruntime":
            raise RuntimeError("no such instruction\nat line 3")
        return real(model, backend, precision)

    real = backends.optimize
    monkeypatch.setattr(backends, "optimize", fail)
    trials = {(t.backend, t.precision): t for t in diagnose().trials}

    openvino, ort = trials["openvino", "fp32"], trials["onnxruntime", "fp32"]
    assert not openvino.works
    assert openvino.reason == "openvino is not installed; pip install 'cvt-torch[openvino]'"
    assert (ort.works, ort.reason) == (False, "RuntimeError: no such instruction")
    assert trials["eager", "fp32"].works


def test_the_command_prints_what_to_install(without, monkeypatch, capsys):
    monkeypatch.setattr(cvt.deploy.doctor, "_trials", lambda _: [
        cvt.deploy.doctor.Trial(backend="eager", precision="fp32", device="cpu", milliseconds=1.0,
                         difference=1e-7)])
    without("openvino", "mlflow")
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "for openvino: pip install 'cvt-torch[openvino]'" in out
    assert "for mlflow: pip install 'cvt-torch[mlflow]'" in out
    assert out.endswith("well\n")

    without("timm")
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "for timm: pip install timm" in out
    assert "not well" in out


def test_without_torch_nothing_is_tried_and_the_exit_code_says_so(without, capsys):
    without("torch")
    assert main(["doctor", "--json"]) == 1
    result = json.loads(capsys.readouterr().out)
    assert result["trials"] == []
    assert result["machine"]["versions"].endswith("torch missing")
    assert result["healthy"] is False


def test_a_torch_that_cannot_be_imported_is_reported(monkeypatch):
    def broken(name):
        assert name == "torch"
        raise OSError("libtorch_cpu.so: cannot open shared object file")

    monkeypatch.setattr(cvt.deploy.doctor, "import_module", broken)
    found = diagnose()
    assert [t.reason for t in found.trials] == [
        "OSError: libtorch_cpu.so: cannot open shared object file; install PyTorch again"]
    assert not found.healthy
