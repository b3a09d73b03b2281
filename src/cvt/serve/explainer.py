"""What `cvt explain` shows, as JSON. Torch is imported here alone."""

from __future__ import annotations

import base64
import io
import time
from typing import Any

from PIL import Image

from cvt.data.images import read_image
from cvt.explain.colours import Floats, token_colours
from cvt.explain.run import explain
from cvt.model import CvT
from cvt.serve.app import Explainer
from cvt.serve.schemas import Explained, Scored
from cvt.weights.card import ModelCard


def explainer_of(model: CvT, card: ModelCard, name: str, most: int) -> Explainer:
    """From an image's bytes and a class to look for: the explanation of `model`'s answer.

    most: pixels of an image. What it gives raises InputError for an image that cannot be read and
    for a class that is not there.
    """
    def explained(data: bytes, target: str | None) -> Explained:
        start = time.perf_counter()
        found = explain(model, card, read_image(data, "the file", max_pixels=most), target=target)
        return Explained(
            model=name,
            classes=[Scored(index=i, name=label, probability=p)
                     for i, (label, p) in zip(found.order, found.classes, strict=True)],
            target=found.target, input=_url(found.seen),
            attention=[_rounded(heads) for heads in found.attention],
            rollout=None if found.rollout is None else _rounded(found.rollout),
            grad_cam={str(stage): _rounded(values) for stage, values in found.grad_cam.items()},
            tokens=[_url(token_colours(tokens)) for tokens in found.tokens],
            seconds=round(time.perf_counter() - start, 6))

    return explained


def _rounded(values: Floats) -> Any:
    """Plain lists; six digits are more than a map can be seen by."""
    return [float(f"{v:.6g}") for v in values] if values.ndim == 1 else [
        _rounded(row) for row in values]


def _url(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")
