"""One image, explained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from cvt.data.prepare import check_channels, frame, normalised
from cvt.explain.attention import look, rollout
from cvt.explain.colours import Floats, overlay, token_colours
from cvt.explain.gradcam import grad_cam
from cvt.model import CvT
from cvt.system.errors import InputError, did_you_mean
from cvt.weights.card import ModelCard


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """What a network says of one image, and where in it that comes from."""

    seen: Image.Image
    """The image as the network sees it, RGB."""
    classes: Sequence[tuple[str, float]]
    """Every class and its probability, the most probable first."""
    order: Sequence[int]
    """Which logits those are."""
    target: str
    """The class that Grad-CAM is of."""
    attention: Sequence[Floats]
    """Of the class token in each block of the last stage, (N, H, W) on the grid of keys; empty
    without a class token."""
    rollout: Floats | None
    """Attention rollout on the last stage's grid (H, W); None without a class token."""
    grad_cam: Mapping[int, Floats]
    """Class activation map (H, W) of each stage asked for, counted from 1."""
    tokens: Sequence[Floats]
    """Every stage's map (C, H, W)."""

    def images(self) -> dict[str, Image.Image]:
        """Every map as an image of the size that the network sees, by the name of its file."""
        size = self.seen.size
        found = {"input": self.seen}
        if self.rollout is not None:
            found["rollout"] = overlay(self.seen, self.rollout)
        for stage, values in self.grad_cam.items():
            found[f"grad_cam_stage{stage}"] = overlay(self.seen, values)
        for stage, tokens in enumerate(self.tokens, 1):
            # Each token stays a square: nothing lies between tokens.
            found[f"tokens_stage{stage}"] = token_colours(tokens).resize(
                size, Image.Resampling.NEAREST)
        for block, heads in enumerate(self.attention, 1):
            found[f"attention_block{block}_mean"] = overlay(self.seen, heads.mean(0))
            for head, values in enumerate(heads, 1):
                found[f"attention_block{block}_head{head}"] = overlay(self.seen, values)
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain lists: maps row by row; tokens, which are large, are left out."""
        return {
            "classes": [{"name": name, "probability": p} for name, p in self.classes],
            "target": self.target,
            "attention": [heads.tolist() for heads in self.attention],
            "rollout": None if self.rollout is None else self.rollout.tolist(),
            "grad_cam": {str(stage): values.tolist() for stage, values in self.grad_cam.items()},
        }


def explain(model: CvT, card: ModelCard, image: Image.Image, *, target: str | None = None,
            stages: Sequence[int] | None = None) -> Explanation:
    """Explain what `model`, in evaluation mode, says of an image (RGB).

    target: the class that Grad-CAM is of, by default the most probable. stages: those to compute
    Grad-CAM for, counted from 1, by default all. Raises InputError for a class or a stage that is
    not there.
    """
    if not card.classes:
        raise InputError("this model has no classifier, so there is no class to explain")
    if target is not None and target not in card.classes:
        raise InputError(f"there is no class {target!r}; {did_you_mean(target, card.classes)}")
    device = next(model.parameters()).device
    check_channels(card.preprocess)
    seen = frame(card.preprocess, image)
    x = torch.from_numpy(normalised(card.preprocess, seen))[None].to(device)
    with torch.inference_mode():
        logits, maps, looked = look(model, x)
    stages = range(1, len(model.stages) + 1) if stages is None else stages
    probabilities = logits[0].cpu().double().softmax(0)
    order = probabilities.argsort(descending=True, stable=True).tolist()
    # By number where it can be: two classes of ImageNet share a name.
    chosen = order[0] if target is None else card.classes.index(target)
    _, cams = grad_cam(model, x, list(stages), torch.tensor([chosen], device=device))
    return Explanation(
        seen=seen if card.preprocess.channels == 3 else seen.convert("L").convert("RGB"),
        classes=[(card.classes[i], probabilities[i].item()) for i in order],
        order=order, target=card.classes[chosen],
        attention=[] if looked is None else [_array(w[0]) for w in looked.of_class_token()],
        rollout=None if looked is None else _array(rollout(looked, model.config.stages[-1])[0]),
        grad_cam={stage: _array(cam[0]) for stage, cam in cams.items()},
        tokens=[_array(fmap[0]) for fmap in maps])


def _array(values: Tensor) -> Floats:
    return values.float().cpu().numpy()
