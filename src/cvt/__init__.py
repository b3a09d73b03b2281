"""CvT, the Convolutional vision Transformer (arXiv:2103.15808).

All public names are here. Each is imported on first use, so `import cvt` loads no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from cvt.config import VARIANTS as VARIANTS
    from cvt.config import CvTConfig as CvTConfig
    from cvt.config import Preprocess as Preprocess
    from cvt.config import StageConfig as StageConfig
    from cvt.deploy.backends import optimize as optimize
    from cvt.model import CvT as CvT
    from cvt.networks.backbone import backbone as backbone
    from cvt.networks.surgery import freeze_batchnorm as freeze_batchnorm
    from cvt.networks.surgery import swap as swap
    from cvt.predict.predictor import Predictor as Predictor
    from cvt.system.errors import DivergedError as DivergedError
    from cvt.system.errors import InputError as InputError
    from cvt.train.recipe import Recipe as Recipe
    from cvt.weights.card import ModelCard as ModelCard
    from cvt.weights.convert import convert as convert
    from cvt.weights.load import LoadReport as LoadReport
    from cvt.weights.load import load_weights as load_weights
    from cvt.weights.models import create_model as create_model
    from cvt.weights.models import load_model as load_model
    from cvt.weights.models import save_model as save_model
    from cvt.zoo import list_models as list_models

_MODULES = {
    "CvT": "cvt.model", "CvTConfig": "cvt.config", "DivergedError": "cvt.system.errors",
    "InputError": "cvt.system.errors", "LoadReport": "cvt.weights.load",
    "ModelCard": "cvt.weights.card", "Predictor": "cvt.predict.predictor",
    "Preprocess": "cvt.config", "Recipe": "cvt.train.recipe", "StageConfig": "cvt.config",
    "VARIANTS": "cvt.config", "backbone": "cvt.networks.backbone",
    "convert": "cvt.weights.convert", "create_model": "cvt.weights.models",
    "freeze_batchnorm": "cvt.networks.surgery", "list_models": "cvt.zoo",
    "load_model": "cvt.weights.models", "load_weights": "cvt.weights.load",
    "optimize": "cvt.deploy.backends", "save_model": "cvt.weights.models",
    "swap": "cvt.networks.surgery",
}

__all__ = ["__version__", *_MODULES]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'cvt' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
