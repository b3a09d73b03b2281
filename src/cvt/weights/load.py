"""Weights into a model, strictly, with a report of what was done."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor, nn

from cvt.errors import InputError
from cvt.weights.names import OFFICIAL, is_official, rename
from cvt.weights.tensors import read_tensors


@dataclass(frozen=True, kw_only=True)
class LoadReport:
    """What `load_weights` did."""

    path: Path
    """The file that was read."""
    format: Literal["official", "native"]
    """Whose names it used."""
    loaded: tuple[str, ...]
    """Our names of the parameters and buffers that were set: all of the model's."""
    renamed: int
    """How many of them stood under another name."""

    def __str__(self) -> str:
        return (f"{self.path}: {len(self.loaded)} tensors in {self.format} names, "
                f"{self.renamed} renamed, none missing, none left over")


def load_weights(model: nn.Module, path: str | Path) -> LoadReport:
    """Load an official or native state dict (`.pth`, `.pt`, `.bin`, `.safetensors`) into `model`.

    Strict: every parameter and buffer of `model` is set, nothing is left over, every shape agrees;
    otherwise InputError says what is missing, left over or of another shape, and `model` is as it
    was.
    """
    path = Path(path)
    found = read_tensors(path)
    official = is_official(found)
    tensors = {rename(name, OFFICIAL) if official else name: t for name, t in found.items()}
    if len(tensors) < len(found):
        raise InputError(f"{path} holds the same weights under official and native names")
    check_names(model, tensors, path)
    model.load_state_dict(tensors)
    return LoadReport(path=path, format="official" if official else "native",
                      loaded=tuple(tensors), renamed=len(set(tensors) - set(found)))


def check_names(model: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Raise InputError unless `tensors` has exactly the names and shapes of `model`."""
    needed = model.state_dict()
    missing = [name for name in needed if name not in tensors]
    extra = [name for name in tensors if name not in needed]
    shapes = [f"{name} is {_shape(tensors[name])}, the model's {_shape(needed[name])}"
              for name in needed if name in tensors and tensors[name].shape != needed[name].shape]
    problems = [f"{len(names)} {what} ({_some(names)})" for what, names in (
        ("missing", missing), ("left over", extra), ("of another shape", shapes)) if names]
    if problems:
        raise InputError(f"{path} is not a checkpoint of this architecture: "
                         f"{'; '.join(problems)}. Build the model with the configuration that the "
                         "checkpoint was made with")


def _some(names: list[str], most: int = 3) -> str:
    more = f", and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a scalar"
