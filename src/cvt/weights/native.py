"""A trained model on disk: a directory with `config.json` and weights beside it."""

from __future__ import annotations

from pathlib import Path

from cvt.card import ModelCard
from cvt.config import Preprocess
from cvt.errors import InputError
from cvt.model import CvT
from cvt.weights.load import load_weights
from cvt.weights.tensors import write_tensors

BEST = "best.safetensors"


def save_model(directory: str | Path, model: CvT, preprocess: Preprocess,
               classes: tuple[str, ...]) -> None:
    """Write `model` to `directory`, made if need be: config.json and best.safetensors.

    `load_model` reads it back bit for bit.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    ModelCard(model=model.config, preprocess=preprocess, classes=classes).save(directory)
    write_tensors(model.state_dict(), directory / BEST)


def load_model(path: str | Path) -> tuple[CvT, ModelCard]:
    """A trained model in evaluation mode and its card.

    `path` is a directory with config.json and best.safetensors, or one weights file in such a
    directory, such as `runs/x/last.safetensors`. Raises InputError, or OSError for absent
    weights, where something is missing, damaged or does not fit together.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"no model at {path}; give a directory that `cvt train --output` wrote")
    weights = path / BEST if path.is_dir() else path
    card = ModelCard.load(weights.parent)
    model = CvT(card.model)
    load_weights(model, weights)
    return model.eval(), card
