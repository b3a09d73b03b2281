"""Replace modules of a built model."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from cvt.system.errors import InputError

_M = TypeVar("_M", bound=nn.Module)
_N = TypeVar("_N", bound=nn.Module)


def swap(model: _N, old: type[_M], make: Callable[[_M], nn.Module]) -> _N:
    """Replace every module of type `old` by `make(module)`; `model` is changed and returned.

    Raises InputError if `model` has no `old`, so that it never silently does nothing.
    """
    places = [(parent, name, child) for parent in model.modules()
              for name, child in parent.named_children() if isinstance(child, old)]
    if not places:
        raise InputError(f"{type(model).__name__} has no {old.__name__} to swap")
    made: dict[int, nn.Module] = {}  # a shared module stays shared
    for parent, name, child in places:
        new = made.get(id(child)) or made.setdefault(id(child), make(child))
        setattr(parent, name, new.train(child.training))
    return model


def freeze_batchnorm(model: _N) -> _N:
    """Replace every BatchNorm by a fixed affine map, for fine-tuning with small batches.

    Statistics, weight and bias become buffers of the same names, which neither an optimiser nor a
    batch changes. `model` is changed and returned; its state dict loses `num_batches_tracked`.
    """
    def frozen(norm: nn.BatchNorm2d) -> FrozenBatchNorm2d:
        fixed = FrozenBatchNorm2d(norm.num_features, eps=norm.eps)
        for name, value in norm.state_dict().items():
            if name in fixed._buffers:
                fixed._buffers[name] = value.clone()
        return fixed

    return swap(model, nn.BatchNorm2d, frozen)
