"""A trained model on disk: a directory with `config.json` and weights beside it."""

from __future__ import annotations

from pathlib import Path

from cvt.config import Preprocess
from cvt.model import CvT
from cvt.weights.card import ModelCard
from cvt.weights.tensors import INDEX, write_tensors

BEST = "best.safetensors"

# The first that a directory or a repository has is taken: nothing in a safetensors file can run.
WEIGHTS = ("model.safetensors", BEST, "model.safetensors" + INDEX, "pytorch_model.bin",
           "pytorch_model.bin" + INDEX)


def save_model(directory: str | Path, model: CvT, preprocess: Preprocess,
               classes: tuple[str, ...]) -> None:
    """Write `model` to `directory`, made if need be: config.json and best.safetensors.

    classes: names in the order of the logits. `load_model` reads it back bit for bit. Raises
    OSError where the directory cannot be written.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    ModelCard(model=model.config, preprocess=preprocess, classes=classes).save(directory)
    write_tensors(model.state_dict(), directory / BEST)
