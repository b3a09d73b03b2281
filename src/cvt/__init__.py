"""CvT, the Convolutional vision Transformer (arXiv:2103.15808), as published.

Every public name is here; each is imported when first used, so `import cvt` needs no torch.
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
    from cvt.weights.native import save_model as save_model
    from cvt.zoo import list_models as list_models

_HOMES = {
    "Predictor": "cvt.predict.predictor",
    "optimize": "cvt.deploy.backends",
    "backbone": "cvt.networks.backbone", "convert": "cvt.weights.convert",
    "freeze_batchnorm": "cvt.networks.surgery", "swap": "cvt.networks.surgery",
    "ModelCard": "cvt.weights.card",
    "VARIANTS": "cvt.config", "CvTConfig": "cvt.config", "Preprocess": "cvt.config",
    "StageConfig": "cvt.config",
    "DivergedError": "cvt.system.errors", "InputError": "cvt.system.errors",
    "CvT": "cvt.model",
    "Recipe": "cvt.train.recipe",
    "LoadReport": "cvt.weights.load", "load_weights": "cvt.weights.load",
    "save_model": "cvt.weights.native",
    "create_model": "cvt.weights.models", "load_model": "cvt.weights.models",
    "list_models": "cvt.zoo",
}

__all__ = ["__version__", *sorted(_HOMES)]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'cvt' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
