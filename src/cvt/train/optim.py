"""The optimiser's parameter groups and the learning rate of every step."""

from __future__ import annotations

import math
import re
from typing import Any

import torch
from timm.optim import Muon
from torch import nn

from cvt.model import CvT
from cvt.train.config import OptimConfig

SCALE = "lr_scale"  # key of a parameter group: its learning rate as a fraction of the run's


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """AdamW, SGD or Muon over all parameters that require a gradient.

    Norms, biases, class token and position embeddings are not decayed; depthwise kernels are, as in
    the official code. A group's `lr_scale` follows from its layer and `config.layer_decay`.
    """
    groups = parameter_groups(model, config)
    if config.name == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum)
    if config.name == "muon":
        return Muon(groups, lr=config.lr, momentum=config.momentum, betas=config.betas)
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas)


def parameter_groups(model: nn.Module, config: OptimConfig) -> list[dict[str, Any]]:
    """Parameter groups by layer, from the input to the classifier, and by weight decay.

    For Muon, the matrices of all linear layers except the classifier form their own groups, with
    `use_muon`; all others have `use_fallback`, and are updated by AdamW.
    """
    undecayed: set[str] = getattr(model, "no_weight_decay", set)()  # a ResNet names none
    # Only a CvT has layers of different depth here.
    layer = _layers(model) if isinstance(model, CvT) else dict.fromkeys(
        (name for name, _ in model.named_parameters()), 0)
    top = max(layer.values())
    head: nn.Module = model.get_classifier()  # type: ignore[operator]
    outputs = {id(parameter) for parameter in head.parameters()}
    muon = config.name == "muon"
    groups: dict[tuple[int, bool, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decayed = parameter.ndim > 1 and name not in undecayed
        depth = layer[name] if config.layer_decay < 1 else top
        fallback = muon and not (parameter.ndim == 2 and id(parameter) not in outputs)
        group = groups.setdefault((depth, decayed, fallback), {
            "params": [], "weight_decay": config.weight_decay if decayed else 0.0,
            SCALE: config.layer_decay ** (top - depth)} | (
                # With Nesterov's momentum timm's AdamW would be NAdamW, and without use_muon it
                # would take matrices that it thinks too small or too long.
                {"use_fallback": fallback, "use_muon": not fallback, "nesterov": not fallback}
                if muon else {}))
        group["params"].append(parameter)
    return [groups[key] for key in sorted(groups)]


def _layers(model: CvT) -> dict[str, int]:
    """The layer of every parameter: 0 for the stem, then the blocks, last the norm and the head.

    Embedding and class token of a later stage belong to its first block.
    """
    first = [1 + sum(stage.depth for stage in model.config.stages[:i])
             for i in range(len(model.config.stages))]
    top = first[-1] + model.config.stages[-1].depth
    layers = {}
    for name, _ in model.named_parameters():
        if match := re.match(r"stages\.(\d+)\.blocks\.(\d+)\.", name):
            layers[name] = first[int(match[1])] + int(match[2])
        elif match := re.match(r"stages\.(\d+)\.", name):
            layers[name] = first[int(match[1])] if int(match[1]) else 0
        else:
            layers[name] = top
    return layers


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set each group's learning rate to `lr` times its scale."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group[SCALE]


def warmup_steps(config: OptimConfig, steps_per_epoch: int) -> int:
    """Number of warm-up steps."""
    return round(config.warmup_epochs * steps_per_epoch) if config.warmup_steps is None else (
        config.warmup_steps)


def learning_rate(config: OptimConfig, step: int, steps: int, steps_per_epoch: int) -> float:
    """Learning rate of `step` (from 0) in a run of `steps`.

    Linear warm-up from warmup_lr to lr, then cosine or linear decay to min_lr at the last step, or
    constant.
    """
    warmup = warmup_steps(config, steps_per_epoch)
    if step < warmup:
        return config.warmup_lr + (config.lr - config.warmup_lr) * step / warmup
    if config.schedule == "constant":
        return config.lr
    done = (step - warmup) / max(1, steps - 1 - warmup)
    left = 1 - done if config.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
    return config.min_lr + (config.lr - config.min_lr) * left
