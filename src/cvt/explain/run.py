"""One image, explained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from cvt.data.preprocess import check_channels, normalize, resize_and_crop
from cvt.explain.attention import forward_attention, rollout
from cvt.explain.colormap import Floats, overlay, token_colors
from cvt.explain.gradcam import grad_cam
from cvt.model import CvT
from cvt.system.errors import InputError, did_you_mean
from cvt.weights.card import ModelCard


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """A prediction for one image, and the maps that explain it."""

    input: Image.Image
    """The preprocessed image, RGB."""
    classes: Sequence[tuple[str, float]]
    """Every class and its probability, most probable first."""
    class_indices: Sequence[int]
    """Their indices in the logits."""
    target: str
    """The class that Grad-CAM explains."""
    attention: Sequence[Floats]
    """Attention of the class token in each block of the last stage, (N, H, W) on the grid of keys;
    empty without a class token."""
    rollout: Floats | None
    """Attention rollout on the last stage's grid (H, W); None without a class token."""
    grad_cam: Mapping[int, Floats]
    """Class activation map (H, W) by stage, counted from 1."""
    tokens: Sequence[Floats]
    """Every stage's map (C, H, W)."""

    def images(self) -> dict[str, Image.Image]:
        """Every map as an image of the size of `input`, by file name without suffix."""
        images = {"input": self.input}
        if self.rollout is not None:
            images["rollout"] = overlay(self.input, self.rollout)
        for stage, values in self.grad_cam.items():
            images[f"grad_cam_stage{stage}"] = overlay(self.input, values)
        for stage, tokens in enumerate(self.tokens, 1):
            # Not interpolated: each token stays a square.
            images[f"tokens_stage{stage}"] = token_colors(tokens).resize(
                self.input.size, Image.Resampling.NEAREST)
        for block, heads in enumerate(self.attention, 1):
            images[f"attention_block{block}_mean"] = overlay(self.input, heads.mean(0))
            for head, values in enumerate(heads, 1):
                images[f"attention_block{block}_head{head}"] = overlay(self.input, values)
        return images

    def to_dict(self) -> dict[str, Any]:
        """Maps as lists of rows, for JSON; the tokens, which are large, are left out."""
        return {
            "classes": [{"name": name, "probability": p} for name, p in self.classes],
            "target": self.target,
            "attention": [heads.tolist() for heads in self.attention],
            "rollout": None if self.rollout is None else self.rollout.tolist(),
            "grad_cam": {str(stage): values.tolist() for stage, values in self.grad_cam.items()},
        }


def explain(model: CvT, card: ModelCard, image: Image.Image, *, target: str | None = None,
            stages: Sequence[int] | None = None) -> Explanation:
    """Explain the prediction of `model`, in evaluation mode, for an RGB image.

    target: the class that Grad-CAM explains, by default the most probable. stages: the stages to
    compute Grad-CAM for, counted from 1, by default all. Raises InputError for an unknown class or
    stage.
    """
    if not card.classes:
        raise InputError("this model has no classifier, so there is no class to explain")
    if target is not None and target not in card.classes:
        raise InputError(f"there is no class {target!r}; {did_you_mean(target, card.classes)}")
    device = next(model.parameters()).device
    check_channels(card.preprocess)
    cropped = resize_and_crop(card.preprocess, image)
    x = torch.from_numpy(normalize(card.preprocess, cropped))[None].to(device)
    with torch.inference_mode():
        logits, maps, attention = forward_attention(model, x)
    stages = range(1, len(model.stages) + 1) if stages is None else stages
    probabilities = logits[0].cpu().double().softmax(0)
    order = probabilities.argsort(descending=True, stable=True).tolist()
    # By index, because two classes of ImageNet share a name.
    index = order[0] if target is None else card.classes.index(target)
    _, cams = grad_cam(model, x, list(stages), torch.tensor([index], device=device))
    return Explanation(
        input=cropped if card.preprocess.channels == 3 else cropped.convert("L").convert("RGB"),
        classes=[(card.classes[i], probabilities[i].item()) for i in order],
        class_indices=order, target=card.classes[index],
        attention=[] if attention is None else [_array(w[0]) for w in attention.cls_token_maps()],
        rollout=None if attention is None else _array(
            rollout(attention, model.config.stages[-1])[0]),
        grad_cam={stage: _array(cam[0]) for stage, cam in cams.items()},
        tokens=[_array(fmap[0]) for fmap in maps])


def _array(values: Tensor) -> Floats:
    return values.float().cpu().numpy()
