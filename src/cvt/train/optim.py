"""The optimiser's parameter groups and the learning rate of every step."""

from __future__ import annotations

import math

import torch
from timm.optim import param_groups_weight_decay

from cvt.model import CvT
from cvt.train.recipe import OptimConfig


def build_optimizer(model: CvT, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW; norms, biases, class token and position embeddings are not decayed.

    Depthwise kernels are, as in the official code.
    """
    groups = param_groups_weight_decay(model, config.weight_decay,
                                       no_weight_decay_list=model.no_weight_decay())
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas)


def learning_rate(config: OptimConfig, step: int, steps: int, steps_per_epoch: int) -> float:
    """Learning rate of `step` (from 0) in a run of `steps`.

    Rises linearly from warmup_lr to lr, then falls along half a cosine, which reaches min_lr with
    the last step.
    """
    warmup = round(config.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return config.warmup_lr + (config.lr - config.warmup_lr) * step / warmup
    done = (step - warmup) / max(1, steps - 1 - warmup)
    return config.min_lr + (config.lr - config.min_lr) * (1 + math.cos(math.pi * done)) / 2
