"""Explanations as JSON, as `cvt explain` computes them. The only module here that needs torch."""

from __future__ import annotations

import base64
import io
import time
from typing import Any

from PIL import Image

from cvt.data.images import read_image
from cvt.explain.colormap import Floats, token_colors
from cvt.explain.run import explain
from cvt.model import CvT
from cvt.serve.app import Explainer
from cvt.serve.schemas import ClassProbability, ExplainResponse
from cvt.weights.card import ModelCard


def make_explainer(model: CvT, card: ModelCard, name: str, max_pixels: int) -> Explainer:
    """A function from an image's bytes and a target class to the explanation of `model`.

    max_pixels: limit for one image. The function raises InputError for an unreadable image and for
    an unknown class.
    """
    def explainer(data: bytes, target: str | None) -> ExplainResponse:
        start = time.perf_counter()
        image = read_image(data, "the file", max_pixels=max_pixels)
        result = explain(model, card, image, target=target)
        return ExplainResponse(
            model=name,
            classes=[ClassProbability(index=i, name=label, probability=p)
                     for i, (label, p) in zip(result.class_indices, result.classes, strict=True)],
            target=result.target, input=_data_url(result.input),
            attention=[_rounded(heads) for heads in result.attention],
            rollout=None if result.rollout is None else _rounded(result.rollout),
            grad_cam={str(stage): _rounded(values) for stage, values in result.grad_cam.items()},
            tokens=[_data_url(token_colors(tokens)) for tokens in result.tokens],
            duration_seconds=round(time.perf_counter() - start, 6))

    return explainer


def _rounded(values: Floats) -> Any:
    """Nested lists; six digits are more than a map can show."""
    return [float(f"{v:.6g}") for v in values] if values.ndim == 1 else [
        _rounded(row) for row in values]


def _data_url(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")
