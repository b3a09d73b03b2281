"""Grad-CAM (Selvaraju et al., 2017): where a stage's map supports a class."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cvt.model import CvT, join
from cvt.system.errors import InputError


def grad_cam(model: CvT, images: Tensor, stages: Sequence[int], classes: Tensor | None = None
             ) -> tuple[Tensor, dict[int, Tensor]]:
    """Logits (B, K), and for each of `stages` the class activation map (B, H, W), at least 0.

    images (B, C, H, W); stages counted from 1; classes (B,), by default each image's most
    probable one. The map is the sum of the stage's channels, weighted by the mean of their
    gradients; negative values are set to 0. If the network has a class token, the map of the last
    stage is the input of its last block, because that block's output tokens reach no logit. Raises
    InputError for an unknown stage.
    """
    count = len(model.stages)
    for stage in stages:
        if not 1 <= stage <= count:
            raise InputError(f"there is no stage {stage}; this network has stages 1 to {count}")
    if not stages:
        with torch.no_grad():
            return model(images), {}
    with torch.enable_grad():
        logits, maps = _forward(model, images, first=min(stages) - 1)
        chosen = logits.argmax(1) if classes is None else classes
        gradients = torch.autograd.grad(logits.gather(1, chosen[:, None]).sum(),
                                        [maps[stage - 1] for stage in stages])
    return logits.detach(), {
        stage: (gradient.mean((2, 3), keepdim=True) * maps[stage - 1].detach()).sum(1).relu()
        for stage, gradient in zip(stages, gradients, strict=True)}


def _forward(model: CvT, x: Tensor, first: int) -> tuple[Tensor, list[Tensor]]:
    """Logits and every stage's map; gradients begin at the map of stage `first`, counted from 0."""
    maps = []
    for i, stage in enumerate(model.stages):
        last = i == len(model.stages) - 1
        with torch.set_grad_enabled(i > first):
            x, grid = stage.enter(x)
            depth = len(stage.blocks)
            before = depth - 1 if last and stage.cls_token is not None else depth
            for j in range(before):
                x = stage.block(j, x, grid)
        if i == first:
            x = x.detach().requires_grad_()
        # A map split off from the sequence would have no gradient, so it is joined again.
        cls, fmap = stage.split(x, grid)
        maps.append(fmap)
        x = join(cls, fmap)
        for j in range(before, depth):
            x = stage.block(j, x, grid)
        if not last:
            _, x = stage.split(x, grid)
    return model.forward_head(model.norm(x)), maps
