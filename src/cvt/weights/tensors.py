"""Reading and writing tensors on disk. Nothing read here can execute code."""

from __future__ import annotations

import io
import json
import math
import mmap
import pickle
import pickletools
import re
import struct
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from cvt.system.errors import InputError
from cvt.system.files import replace_file

PICKLES = (".pth", ".pt", ".bin")
SUFFIXES = (".safetensors", *PICKLES)
# The suffix of a list that says in which of several files each tensor is.
INDEX = ".index.json"

# What a pickle of tensors and plain data names; nothing else is looked up.
_PLAIN = frozenset((
    "collections.OrderedDict", "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_parameter", "torch._tensor._rebuild_from_type_v2", "torch.Size",
    *(f"torch.{kind}Storage" for kind in ("Float", "Double", "Half", "BFloat16", "Long", "Int",
                                          "Short", "Char", "Byte", "Bool"))))
_DTYPES = frozenset((torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64,
                     torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool))

# How many objects a tuple of a pickle may hold, at any depth. A shape has four; a tuple is hashed
# where it is a key, and one of a hundred bytes can take the age of the universe.
_MOST = 1000

# What the readers raise for a file that is not what it should be.
_DAMAGE = (SafetensorError, pickle.UnpicklingError, zipfile.BadZipFile, struct.error, OSError,
           RuntimeError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError,
           AssertionError, EOFError, MemoryError)


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """The state dict in a `.safetensors`, `.pth`, `.pt` or `.bin` file, on the CPU.

    Files are mapped into memory where their format allows, so a tensor costs memory when it is
    first touched; do not change such a file in place. A list of several files (`.index.json`) is
    followed. Pickles are read by `torch.load(weights_only=True)`, and only if they name nothing
    but tensors and plain data. A dict that holds the weights one level down, under "state_dict" or
    "model", is unwrapped. Raises InputError for a file that is damaged, of another kind, or
    without tensors; OSError where there is no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}")
    if path.name.endswith(INDEX):
        return _read_parts(path)
    if path.suffix == ".safetensors":
        try:
            tensors = load_file(path)
        except _DAMAGE as error:
            raise InputError(f"{path} is damaged or not a safetensors file: {_reason(error)}"
                             ) from None
    elif path.suffix in PICKLES:
        tensors = _state_dict(read_pickled(path), path)
    else:
        raise InputError(f"{path} has the suffix {path.suffix!r}; weights are read from "
                         f"{', '.join(SUFFIXES)} files")
    _refuse_odd(tensors, path)
    return tensors


def read_pickled(path: Path) -> Any:
    """What `torch.save` wrote, if it is tensors and plain data; on the CPU.

    Raises InputError for a damaged file and for one that holds more, which could run code.
    """
    with path.open("rb") as file:
        zipped = file.read(4) == b"PK\3\4"  # as torch.load decides
    try:
        _refuse_archive(path) if zipped else _refuse_older(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except InputError:
        raise
    except _DAMAGE as error:
        raise InputError(f"{path} cannot be read as plain weights: {_reason(error)}. It is "
                         "damaged, or holds more than tensors, which is refused because it could "
                         "run code") from None


def read_index(path: Path) -> dict[str, str]:
    """The file that holds each tensor, from an index. Raises InputError for a wrong one.

    Every file is named plainly, so it can only lie beside the index.
    """
    try:
        places = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        files = set(places.values())
    except _DAMAGE as error:
        raise InputError(f"{path} is damaged: it has no weight_map ({_reason(error)})") from None
    for name in files:
        if not isinstance(name, str) or not re.fullmatch(r"[\w-][\w.-]*", name, re.ASCII) or (
                not name.endswith(SUFFIXES)):
            raise InputError(f"{path} names the file {str(name)[:200]!r}; the parts of a "
                             f"checkpoint are {', '.join(SUFFIXES)} files beside their index")
    return places


def write_tensors(tensors: Mapping[str, Tensor], path: str | Path) -> None:
    """Write a `.safetensors` file, or a pickle for another suffix; whole or not at all.

    A pickle is what `torch.save` writes of a plain dict.
    """
    contiguous = {name: t.detach().contiguous() for name, t in tensors.items()}
    if Path(path).suffix in PICKLES:
        replace_file(path, lambda part: torch.save(contiguous, part))
    else:
        # transformers looks for the format's name in a file's metadata.
        replace_file(path, lambda part: save_file(contiguous, part, {"format": "pt"}))


def _read_parts(path: Path) -> dict[str, Tensor]:
    """All tensors of the files that an index names."""
    places = read_index(path)
    tensors: dict[str, Tensor] = {}
    for name in sorted(set(places.values())):
        if not (path.parent / name).is_file():
            raise InputError(f"{path} names {name}, which is not beside it; copy it there")
        tensors |= read_tensors(path.parent / name)
    if set(tensors) != set(places):
        odd = min(set(tensors) ^ set(places))
        raise InputError(f"{path} and the files it names disagree about {odd[:200]!r}")
    return tensors


def _state_dict(data: Any, path: Path) -> dict[str, Tensor]:
    """The mapping from names to tensors in what a pickle held."""
    # A pickle can give a dict or a tensor attributes that hide its methods, hence the classes'.
    for key in ("state_dict", "model"):
        if isinstance(data, dict) and isinstance(dict.get(data, key), dict):
            data = dict.get(data, key)
    items = list(dict.items(data)) if isinstance(data, dict) else []
    if not items or not all(isinstance(name, str) and isinstance(t, Tensor) for name, t in items):
        raise InputError(f"{path} holds no state dict, a mapping from names to tensors")
    return {name: Tensor.detach(tensor) for name, tensor in items}


def _refuse_odd(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Raise InputError for names and tensors that no model has."""
    whole = path.stat().st_size
    total = 0
    for name, t in tensors.items():
        if not name.isprintable() or len(name) > 500:
            raise InputError(f"{path} is damaged: it holds a tensor named {name[:50]!r}")
        if t.layout is not torch.strided or not t.is_cpu or t.dtype not in _DTYPES:
            raise InputError(f"{path} holds {name} as a sparse tensor, without values or as "
                             f"{str(t.dtype).removeprefix('torch.')}; write it as a plain one")
        # Strides of zero and empty axes make any shape out of nothing, and tensors that share
        # their memory any number of them.
        size = math.prod(max(axis, 1) for axis in t.shape) * t.element_size()
        total += size
        if size > whole or total > 10 * whole:
            raise InputError(f"{path} is damaged: its {whole:,} bytes cannot hold {name}, "
                             f"{'x'.join(map(str, t.shape))}")


def _refuse_archive(path: Path) -> None:
    """Raise InputError for an archive that unpacks to more than it is, or a pickle that calls."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        # torch.save stores, never compresses, so that tensors can be mapped.
        if (any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
                or sum(entry.file_size for entry in entries) > path.stat().st_size):
            raise InputError(f"{path} unpacks to more than its {path.stat().st_size:,} bytes; "
                             "torch.save writes no such file, so it is refused")
        for entry in entries:
            if entry.filename.endswith("constants.pkl"):
                raise InputError(f"{path} is a program of TorchScript, which would be run to be "
                                 "read; save its state_dict() instead")
            if entry.filename.endswith("data.pkl"):
                _refuse_calls(io.BytesIO(archive.read(entry)), path)


def _refuse_older(path: Path) -> None:
    """The same for what torch.save wrote before 1.6: five pickles, then the values."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for _ in range(5):
            _refuse_calls(data, path)


def _refuse_calls(file: IO[bytes] | mmap.mmap, path: Path) -> None:
    for name in _globals(file):
        if name not in _PLAIN:
            raise InputError(f"{path} asks for {name[:200]!r} while it is read, which tensors do "
                             "not need and which could run code; it is refused")


def _globals(file: IO[bytes] | mmap.mmap) -> Iterator[str]:
    """The functions and classes that the next pickle in `file` names; none is looked up.

    Raises ValueError for tuples that hold too much, and whatever `pickletools` does.
    """
    sizes: list[int] = []  # of what the pickle puts on its stack, in objects; 0 is a mark
    memo: dict[Any, int] = {}
    for opcode, value, _ in pickletools.genops(file):  # type: ignore[arg-type]
        name = opcode.name
        if name in ("GLOBAL", "INST"):
            yield str(value).replace(" ", ".")
        elif name == "PROTO" and value != 2:
            raise ValueError(f"pickle protocol {value}, where torch.save writes 2")
        if "PUT" in name:
            memo[value] = sizes[-1]
        else:
            size = memo[value] if "GET" in name else 1
            before = [kind.name for kind in opcode.stack_before]
            if "mark" in before:
                while top := sizes.pop():
                    size += top
                before = before[:before.index("mark")]
            size += sum(sizes.pop() for _ in before)
            sizes += [0 if name == "MARK" else size] * len(opcode.stack_after)
            if "TUPLE" in name and size > _MOST:
                raise ValueError(f"a tuple of more than {_MOST} things")


def _reason(error: BaseException) -> str:
    """An exception in one line that can be printed."""
    words = str(error).strip().splitlines() or [type(error).__name__]
    return "".join(c if c.isprintable() else "?" for c in words[0][:300])
