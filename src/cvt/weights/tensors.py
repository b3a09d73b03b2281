"""Reading and writing tensors on disk. Nothing read here can execute code."""

from __future__ import annotations

import pickle
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from cvt.atomic import replace_file
from cvt.errors import InputError


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """The state dict in a `.safetensors`, `.pth`, `.pt` or `.bin` file, on the CPU.

    Pickles are read by `torch.load(weights_only=True)`, which refuses anything but plain data. A
    dict that holds the weights one level down, under "state_dict" or "model", is unwrapped. Raises
    InputError for a file that is damaged, of another kind, or without tensors; OSError where there
    is no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise InputError(f"{path} is damaged or not a safetensors file: {error}") from None
    if path.suffix not in (".pth", ".pt", ".bin"):
        raise InputError(f"{path} has the suffix {path.suffix!r}; weights are read from "
                         ".safetensors, .pth, .pt and .bin files")
    data = read_pickled(path)
    for key in ("state_dict", "model"):
        if isinstance(data, Mapping) and isinstance(data.get(key), Mapping):
            data = data[key]
    if (not isinstance(data, Mapping) or not data
            or not all(isinstance(v, Tensor) for v in data.values())):
        raise InputError(f"{path} holds no state dict, a mapping from names to tensors")
    return {str(name): tensor for name, tensor in data.items()}


def read_pickled(path: Path) -> Any:
    """What `torch.save` wrote, if it is tensors and plain data; on the CPU.

    Raises InputError for a damaged file and for one that holds more, which could run code.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, zipfile.BadZipFile, ValueError,
            KeyError, AttributeError, TypeError, IndexError, AssertionError, struct.error) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"{path} cannot be read as plain weights: {reason}. It is damaged, or "
                         "holds more than tensors, which is refused because it could run code"
                         ) from None


def write_tensors(tensors: Mapping[str, Tensor], path: str | Path) -> None:
    """Write a `.safetensors` file; `path` appears whole or not at all."""
    contiguous = {name: t.detach().contiguous() for name, t in tensors.items()}
    replace_file(path, lambda part: save_file(contiguous, part))
