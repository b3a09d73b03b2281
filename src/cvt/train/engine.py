"""Where and in which precision a step is computed."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from timm.data import Mixup
from torch import Tensor, nn

from cvt.data.config import AugmentConfig
from cvt.data.loader import Batch
from cvt.device import autocast
from cvt.model import CvT
from cvt.train.recipe import Recipe


class Engine:
    """One optimiser step on one device: mix, forward, backward, clip, update."""

    def __init__(self, recipe: Recipe, model: CvT, optimizer: torch.optim.Optimizer) -> None:
        self.recipe = recipe
        self.device = next(model.parameters()).device
        self.optimizer = optimizer
        self.parameters = list(model.parameters())
        self.mix = _mix(recipe.augment, model.config.num_classes)
        self.network: Callable[[Tensor], Tensor] = torch.compile(model) if recipe.compile else model

    def step(self, batch: Batch, lr: float) -> float:
        """Update the weights with learning rate `lr`; the loss before the update.

        A loss that is not finite is returned without an update.
        """
        images, labels = (t.to(self.device, non_blocking=True) for t in batch)
        images, targets = self.mix(images, labels)
        parts = self.recipe.optim.accumulate
        total = torch.zeros((), device=self.device)
        for x, target in zip(images.chunk(parts), targets.chunk(parts), strict=True):
            with autocast(self.device, self.recipe.precision):
                logits = self.network(x)
            loss = F.cross_entropy(logits.float(), target,
                                   label_smoothing=self.recipe.augment.label_smoothing) / parts
            loss.backward()
            total += loss.detach()
        value = total.item()  # waits for the device, so once a step
        if math.isfinite(value):
            if self.recipe.optim.clip_grad:
                nn.utils.clip_grad_norm_(self.parameters, self.recipe.optim.clip_grad)
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            self.optimizer.step()
        self.optimizer.zero_grad()
        return value


def _mix(augment: AugmentConfig, num_classes: int) -> Callable[[Tensor, Tensor], Batch]:
    """Mixup and CutMix of a batch, labels becoming probabilities (B, K); or neither."""
    if not augment.mixes:
        return lambda images, labels: (images, labels)
    return Mixup(
        mixup_alpha=augment.mixup, cutmix_alpha=augment.cutmix, prob=augment.mix_prob,
        label_smoothing=0.0, num_classes=num_classes)
