"""Classify pictures: files, folders, patterns, the standard input."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from cvt.data.images import list_images, read_image
from cvt.data.transforms import Transform, evaluation_transform
from cvt.device import pick_device
from cvt.errors import InputError
from cvt.weights.checkpoint import Act
from cvt.zoo import load_model

STDIN = "-"


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What the model says of one picture, or why it could not be read."""

    picture: str
    """Its path, or - for the standard input."""
    classes: tuple[tuple[str, float], ...] = ()
    """The likeliest classes and their probabilities in [0, 1], likeliest first."""
    error: str | None = None
    """Why the picture could not be read; then `classes` is empty."""


def find_images(names: Sequence[str]) -> list[str]:
    """Every picture that `names` stand for: paths, "-", folders with all below, and patterns.

    Raises InputError for a folder or a pattern without pictures. A path that is not there stays in
    the list, for `predict` to report.
    """
    found: list[str] = []
    for name in names:
        path = Path(name)
        if name != STDIN and path.is_dir():
            images = list_images(path)
            if not images:
                raise InputError(f"{name} has no pictures in it or below it")
            found += map(str, images)
        elif name != STDIN and not path.exists() and glob.has_magic(name):
            matches = sorted(m for m in glob.glob(name, recursive=True) if Path(m).is_file())
            if not matches:
                raise InputError(f"no file matches the pattern {name!r}")
            found += matches
        else:
            found.append(name)
    return found


def predict(model: str | Path, images: Sequence[str], *, top_k: int = 5, batch_size: int = 32,
            device: str = "auto", act: Act | None = None, stdin: BinaryIO | None = None
            ) -> Iterator[Prediction]:
    """A model on pictures, in their order, a batch at a time.

    `model` and `act` are as for `cvt.load_model`. `images` are paths, or "-" for one picture's
    bytes from `stdin`. A picture that cannot be read yields a Prediction with its error. Raises
    InputError where the model cannot be loaded.
    """
    network, card = load_model(model, act=act)
    place = pick_device(device)
    network.to(place)
    transform = evaluation_transform(card.preprocess)
    for start in range(0, len(images), batch_size):
        names = images[start:start + batch_size]
        inputs = [_input(name, transform, stdin) for name in names]
        tensors = [x for x in inputs if isinstance(x, Tensor)]
        if tensors:
            with torch.inference_mode():
                probs = network(torch.stack(tensors).to(place)).softmax(1).cpu()
            top = probs.topk(min(top_k, len(card.classes)))
            rows = iter(zip(top.values.tolist(), top.indices.tolist(), strict=True))
        for name, x in zip(names, inputs, strict=True):
            if isinstance(x, str):
                yield Prediction(picture=name, error=x)
            else:
                values, indices = next(rows)
                yield Prediction(picture=name, classes=tuple(
                    (card.classes[i], p) for i, p in zip(indices, values, strict=True)))


def _input(name: str, transform: Transform, stdin: BinaryIO | None) -> Tensor | str:
    """The network's input for a picture, or why there is none."""
    try:
        if name != STDIN:
            return transform(read_image(name))
        if stdin is None:
            raise InputError("no standard input to read a picture from")
        return transform(read_image(stdin.read(), "the standard input"))
    except InputError as error:
        return str(error)
    except OSError as error:
        return f"{name}: {error.strerror or error}"
