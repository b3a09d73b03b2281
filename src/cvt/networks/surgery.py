"""The one way in which a built model is altered: some of its modules for others."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from cvt.system.errors import InputError

_M = TypeVar("_M", bound=nn.Module)
_N = TypeVar("_N", bound=nn.Module)


def swap(model: _N, old: type[_M], make: Callable[[_M], nn.Module]) -> _N:
    """Put `make(module)` in the place of every `old` in `model`, which is changed and returned.

    Names of parameters that both have stay. Raises InputError where `model` has no `old`, so that
    an alteration never silently does nothing.
    """
    places = [(parent, name, child) for parent in model.modules()
              for name, child in parent.named_children() if isinstance(child, old)]
    if not places:
        raise InputError(f"{type(model).__name__} has no {old.__name__} to swap")
    made: dict[int, nn.Module] = {}  # a module in two places stays one
    for parent, name, child in places:
        new = made.get(id(child)) or made.setdefault(id(child), make(child))
        setattr(parent, name, new.train(child.training))
    return model


def freeze_batchnorm(model: _N) -> _N:
    """Make every BatchNorm a fixed affine map, in training too: for fine-tuning on small batches.

    Its statistics, weight and bias become buffers under the same names, which no optimiser sees and
    no batch changes. `model` is changed and returned; its state dict loses `num_batches_tracked`.
    """
    return swap(model, nn.BatchNorm2d, _frozen)


def _frozen(norm: nn.BatchNorm2d) -> FrozenBatchNorm2d:
    frozen = FrozenBatchNorm2d(norm.num_features, eps=norm.eps)
    with torch.no_grad():
        for name, value in norm.state_dict().items():
            if name in frozen._buffers:
                frozen._buffers[name] = value.detach().clone()
    return frozen
