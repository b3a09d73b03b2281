"""torch.hub finds the networks in a clone, installed or not."""

import importlib.util
import inspect
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from cvt.config import VARIANTS
from cvt.model import CvT
from cvt.system.errors import InputError
from cvt.zoo import ZOO

ROOT = Path(__file__).parents[2]


@pytest.fixture
def hubconf(monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    spec = importlib.util.spec_from_file_location("hubconf", ROOT / "hubconf.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load(name, **arguments):
    return torch.hub.load(str(ROOT), name, source="local", **arguments)


def test_the_entry_points_are_the_variants_and_say_their_tags(hubconf):
    # As torch.hub.list finds them: whatever can be called and has a bare name.
    found = {name: f for name, f in vars(hubconf).items() if callable(f) and name[0] != "_"}

    assert sorted(found) == sorted(VARIANTS)
    for tag, row in ZOO.items():
        assert f'"{tag.split(".")[1]}" (' in inspect.getdoc(found[row.variant]) or (
            f'"{tag.split(".")[1]}"\n(' in inspect.getdoc(found[row.variant]))
        assert f"({row.paper_top1 or row.measured_top1} %" in inspect.getdoc(found[row.variant])


def test_an_entry_point_builds_the_untrained_variant():
    model = load("cvt_nano", num_classes=3, in_chans=1)

    assert model(torch.zeros(1, 1, 32, 32)).shape == (1, 3)
    assert not model.training


def test_weights_are_a_path(tmp_path, shaken):
    source = shaken(CvT(VARIANTS["cvt_nano"])).eval()
    save_file(source.state_dict(), tmp_path / "w.safetensors")

    model = load("cvt_nano", weights=str(tmp_path / "w.safetensors"))

    expected = source.state_dict()
    assert all(torch.equal(t, expected[name]) for name, t in model.state_dict().items())


@pytest.mark.parametrize("weights", ["msft_in1k", "cvt_13.msft_in1k"])
def test_weights_are_a_tag_with_or_without_the_variant(hubconf, monkeypatch, weights):
    asked = {}
    monkeypatch.setattr("cvt.weights.models.create_model",
                        lambda name, **rest: asked.update(rest, name=name))

    hubconf.cvt_13(weights, 5)

    assert asked == {"name": "cvt_13", "weights": "cvt_13.msft_in1k", "num_classes": 5,
                     "in_chans": None}


def test_a_tag_that_does_not_exist_is_rejected():
    with pytest.raises(ValueError, match="no model at msft_in2k") as caught:
        load("cvt_13", weights="msft_in2k")
    assert type(caught.value).__name__ == InputError.__name__


@pytest.mark.slow
def test_a_clone_uses_its_own_source(tmp_path):
    shutil.copy(ROOT / "hubconf.py", tmp_path)
    shutil.copytree(ROOT / "src", tmp_path / "src",
                    ignore=shutil.ignore_patterns("__pycache__"))

    done = subprocess.run([sys.executable, "-c", (
        "import torch\n"
        f"torch.hub.load({str(tmp_path)!r}, 'cvt_nano', source='local')\n"
        "import cvt\n"
        "print(cvt.__file__)")], capture_output=True, text=True, check=False, cwd=tmp_path)

    assert (done.stdout.strip(), done.stderr) == (str(tmp_path / "src/cvt/__init__.py"), "")


def test_torch_hub_knows_what_is_needed(hubconf):
    for name in hubconf.dependencies:
        assert importlib.util.find_spec(name), name
