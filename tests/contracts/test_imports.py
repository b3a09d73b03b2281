import subprocess
import sys
from types import ModuleType

import pytest

import cvt

PUBLIC = [
    "CvT", "CvTConfig", "DivergedError", "InputError", "LoadReport", "ModelCard",
    "Predictor", "Preprocess", "Recipe", "StageConfig", "VARIANTS", "__version__", "backbone",
    "convert", "create_model", "freeze_batchnorm", "list_models", "load_model", "load_weights",
    "optimize", "save_model", "swap",
]


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_the_public_names_are_pinned():
    assert sorted(cvt.__all__) == PUBLIC
    assert dir(cvt) == PUBLIC


def test_every_public_name_is_there():
    for name in cvt.__all__:
        assert getattr(cvt, name) is not None


def test_a_public_name_means_the_same_twice():
    """As it would not where a module had its name, which its import puts in the package."""
    for name in cvt.__all__:
        assert getattr(cvt, name) is getattr(cvt, name)
        assert not isinstance(getattr(cvt, name), ModuleType)


def test_another_name_is_not_there():
    with pytest.raises(AttributeError, match="module 'cvt' has no attribute 'resnet'"):
        _ = cvt.resnet


def test_configurations_need_no_torch():
    done = run("import sys, cvt\n"
               "assert cvt.VARIANTS['cvt_13'].grids((224, 224))[2] == (14, 14)\n"
               "import cvt.weights.card\n"
               "print(sorted({'torch', 'numpy', 'timm', 'torchvision'} & set(sys.modules)))")

    assert (done.stdout, done.stderr) == ("[]\n", "")


@pytest.mark.slow
def test_the_model_needs_torch_alone():
    done = run("import sys, cvt\n"
               "cvt.CvT\n"
               "print(sorted({'torch', 'timm', 'torchvision', 'matplotlib'} & set(sys.modules)))")

    assert (done.stdout, done.stderr) == ("['torch']\n", "")
