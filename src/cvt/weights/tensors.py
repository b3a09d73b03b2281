"""Read and write files of tensors. Reading never executes code from a file."""

from __future__ import annotations

import io
import json
import math
import mmap
import pickle
import pickletools
import re
import struct
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from cvt.system.errors import InputError, first_line
from cvt.system.files import replace_file
from cvt.weights.paddle import PDPARAMS, read_pdparams

PICKLES = (".pth", ".pt", ".bin")
SUFFIXES = (".safetensors", *PICKLES)  # of the files that are written
# Pickles of PyTorch under the names of timm's training script and of Lightning, and PaddlePaddle's.
READ_ONLY = (".pth.tar", ".ckpt", PDPARAMS)
# Suffix of an index of a checkpoint in several files: the file of each tensor.
INDEX = ".index.json"

# Weights of a model trained here, and those in directories of transformers and timm.
BEST = "best.safetensors"
SAFETENSORS = "model.safetensors"
# Weights in a directory or repository, in order of preference: safetensors before pickles.
WEIGHT_FILES = (SAFETENSORS, BEST, SAFETENSORS + INDEX, "pytorch_model.bin",
                "pytorch_model.bin" + INDEX)

# Globals in a pickle of tensors and plain data; a pickle with any other is rejected.
_ALLOWED_GLOBALS = frozenset((
    "collections.OrderedDict", "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_parameter", "torch._tensor._rebuild_from_type_v2", "torch.Size",
    *(f"torch.{kind}Storage" for kind in ("Float", "Double", "Half", "BFloat16", "Long", "Int",
                                          "Short", "Char", "Byte", "Bool"))))
# Settings of a training script; loaded as `_Inert`, whatever they contain.
_INERT_GLOBALS = frozenset(("argparse.Namespace", "pathlib.PosixPath", "pathlib.WindowsPath",
                            "pathlib._local.PosixPath", "pathlib._local.WindowsPath"))
_DTYPES = frozenset((torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64,
                     torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool))

# Maximum number of objects in a tuple of a pickle, at any depth. A shape has four. Tuples may be
# hashed, and hashing a nested one of a hundred bytes can take practically forever. A flat tuple
# that is used once, such as the names of classes, may be larger: that takes as long as reading it.
_MAX_TUPLE = 1000

# Depth at which state dicts are looked for in the content of a pickle.
_MAX_DEPTH = 4

# What the readers raise for a corrupt file.
_READ_ERRORS = (SafetensorError, pickle.UnpicklingError, zipfile.BadZipFile, struct.error, OSError,
           RuntimeError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError,
           AssertionError, EOFError, MemoryError)


class _Inert:
    """Takes the place of an object that is not needed; keeps nothing of it."""

    def __new__(cls, *_: Any) -> _Inert:
        return object.__new__(cls)

    def __setstate__(self, _: Any) -> None:
        pass


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """The state dict of a file that has one; see `read_state_dicts`. InputError if it has more."""
    found = read_state_dicts(path)
    if len(found) > 1:
        raise InputError(f"{path} has {len(found)} state dicts, under the keys "
                         f"{', '.join(f'{key[:100]!r}' for key in list(found)[:10])}; choose one")
    tensors = next(iter(found.values()))
    check_tensors(tensors, Path(path))
    return tensors


def read_state_dicts(path: str | Path) -> dict[str, dict[str, Tensor]]:
    """Read the state dicts of a file of weights, on the CPU, by their keys ("" at the top level).

    path: a file ending in one of `SUFFIXES` or `READ_ONLY`. Files are memory-mapped if their format
    allows it, so a tensor takes memory on first access; do not change such a file in place. An
    index of several files (`.index.json`) is followed. Pickles are read with
    `torch.load(weights_only=True)`, and only if they contain nothing but tensors and plain data;
    the arguments of a training script (argparse.Namespace) are skipped. A key is joined from those
    of nested dicts ("a.b"). Raises InputError for a file that is corrupt, of another kind, or
    without tensors, and FileNotFoundError. `check_tensors` must accept a state dict before use.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}")
    if path.name.endswith(INDEX):
        found = {"": _read_parts(path)}
    elif path.suffix == ".safetensors":
        try:
            found = {"": load_file(path)}
        except _READ_ERRORS as error:
            raise InputError(f"{path} is corrupt or not a safetensors file: {first_line(error)}"
                             ) from None
    elif path.name.endswith((*PICKLES, *READ_ONLY)):
        found = _state_dicts(_read_pdparams(path) if path.suffix == PDPARAMS else
                             _read_pickle(path))
    else:
        raise InputError(f"{path} has the suffix {path.suffix!r}; weights are read from "
                         f"{', '.join((*SUFFIXES, *READ_ONLY))} files")
    if not found:
        raise InputError(f"{path} has no state dict, a mapping from names to tensors")
    for name in (name for tensors in found.values() for name in tensors):
        if not name.isprintable() or len(name) > 500:
            raise InputError(f"{path} is corrupt: it has a tensor named {name[:50]!r}")
    return found


def _read_pdparams(path: Path) -> dict[str, Tensor]:
    try:
        return read_pdparams(path)
    except InputError:
        raise
    except _READ_ERRORS as error:
        raise InputError(f"{path} is corrupt or not a file of PaddlePaddle: {first_line(error)}"
                         ) from None


def _read_pickle(path: Path) -> Any:
    """Tensors and plain data from a file of `torch.save`, on the CPU.

    Raises InputError for a corrupt file, and for one with other objects, which could run code.
    """
    with path.open("rb") as file:
        zipped = file.read(4) == b"PK\3\4"  # as in torch.load
    try:
        inert = _check_archive(path) if zipped else _check_legacy(path)
        with torch.serialization.safe_globals([(_Inert, name) for name in sorted(inert)]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except InputError:
        raise
    except _READ_ERRORS as error:
        raise InputError(f"{path} cannot be read as plain weights: {first_line(error)}. It is "
                         "corrupt, or has objects other than tensors, which are rejected because "
                         "they could run code") from None


def read_index(path: Path) -> dict[str, str]:
    """Map each tensor to its file, from an index. Raises InputError for an invalid one.

    Names are plain file names, so that all files are in the directory of the index.
    """
    try:
        weight_map = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        files = set(weight_map.values())
    except _READ_ERRORS as error:
        raise InputError(f"{path} is corrupt: it has no weight_map ({first_line(error)})"
                         ) from None
    for name in files:
        if not isinstance(name, str) or not re.fullmatch(r"[\w-][\w.-]*", name, re.ASCII) or (
                not name.endswith(SUFFIXES)):
            raise InputError(f"{path} names the file {str(name)[:200]!r}; the parts of a "
                             f"checkpoint are {', '.join(SUFFIXES)} files next to their index")
    return weight_map


def write_tensors(tensors: Mapping[str, Tensor], path: str | Path) -> None:
    """Write a `.safetensors` file, or with `torch.save` a dict if the suffix is a pickle's."""
    contiguous = {name: t.detach().contiguous() for name, t in tensors.items()}
    if Path(path).suffix in PICKLES:
        replace_file(path, lambda part: torch.save(contiguous, part))
    else:
        # transformers requires the format in the metadata.
        replace_file(path, lambda part: save_file(contiguous, part, {"format": "pt"}))


def _read_parts(path: Path) -> dict[str, Tensor]:
    """All tensors of the files in an index."""
    weight_map = read_index(path)
    tensors: dict[str, Tensor] = {}
    for name in sorted(set(weight_map.values())):
        if not (path.parent / name).is_file():
            raise InputError(f"{path} names {name}, which is not next to it; copy it there")
        tensors |= read_tensors(path.parent / name)
    if set(tensors) != set(weight_map):
        different = min(set(tensors) ^ set(weight_map))
        raise InputError(f"{path} and the files it names disagree about {different[:200]!r}")
    return tensors


def _state_dicts(data: Any) -> dict[str, dict[str, Tensor]]:
    """The state dicts in the content of a pickle, by their keys."""
    found: dict[str, dict[str, Tensor]] = {}
    seen: dict[int, str] = {}  # a small pickle can refer to one dict from very many places

    def look(value: Any, keys: tuple[str, ...]) -> None:
        key = ".".join(keys)
        if not isinstance(value, dict) or id(value) in seen:
            if (again := found.get(seen.get(id(value), key))) is not None:
                found[key] = again
            return
        seen[id(value)] = key
        # A pickle can set attributes that hide methods of a dict or a tensor.
        items = list(dict.items(value))
        if not all(isinstance(name, str) for name, _ in items):
            return
        if items and all(isinstance(t, Tensor) for _, t in items):
            found[key] = {name: Tensor.detach(tensor) for name, tensor in items}
        elif len(keys) < _MAX_DEPTH:
            for name, inner in items:
                look(inner, (*keys, name))

    look(data, ())
    return found


def check_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Raise InputError for tensors that no model has."""
    if path.name.endswith(INDEX):
        return  # its files were checked
    file_size = path.stat().st_size
    total = 0
    for name, t in tensors.items():
        if t.layout is not torch.strided or not t.is_cpu or t.dtype not in _DTYPES:
            raise InputError(f"{path} has {name} as a sparse tensor, without values or as "
                             f"{str(t.dtype).removeprefix('torch.')}; save it as a dense tensor")
        # Strides of zero, empty axes and shared memory can declare any size in a small file.
        size = math.prod(max(axis, 1) for axis in t.shape) * t.element_size()
        total += size
        if size > file_size or total > 10 * file_size:
            raise InputError(f"{path} is corrupt: its {file_size:,} bytes cannot contain {name}, "
                             f"{'x'.join(map(str, t.shape))}")


def _check_archive(path: Path) -> set[str]:
    """Raise InputError for an archive larger than its file, or with a pickle that runs code.

    Returns the names to load as `_Inert`.
    """
    inert: set[str] = set()
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        # torch.save never compresses, so that tensors can be memory-mapped.
        if (any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
                or sum(entry.file_size for entry in entries) > path.stat().st_size):
            raise InputError(f"{path} unpacks to more than its {path.stat().st_size:,} bytes; "
                             "it was not written by torch.save and is rejected")
        for entry in entries:
            if entry.filename.endswith("constants.pkl"):
                raise InputError(f"{path} is a TorchScript program, and loading it would run "
                                 "code; save its state_dict() instead")
            if entry.filename.endswith("data.pkl"):
                inert |= _check_globals(io.BytesIO(archive.read(entry)), path)
    return inert


def _check_legacy(path: Path) -> set[str]:
    """The same for the format before PyTorch 1.6: five pickles, then the values."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return set[str]().union(*(_check_globals(data, path) for _ in range(5)))


def _check_globals(file: IO[bytes] | mmap.mmap, path: Path) -> set[str]:
    with warnings.catch_warnings():
        # A text of protocol 0 may have any escape sequence, of which Python warns.
        warnings.simplefilter("ignore", DeprecationWarning)
        names = set(_globals(file))
    for name in sorted(names - _INERT_GLOBALS):
        if name not in _ALLOWED_GLOBALS:
            raise InputError(f"{path} imports {name[:200]!r} when loaded, which tensors do not "
                             "need and which could run code; it is rejected")
    return names & _INERT_GLOBALS


def _globals(file: IO[bytes] | mmap.mmap) -> Iterator[str]:
    """Names of functions and classes in the next pickle of `file`; none is imported.

    Raises ValueError for too large tuples, and the errors of `pickletools`.
    """
    sizes: list[int] = []  # number of objects in each item of the pickle's stack; 0 is a mark
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
            items = 0
            if "mark" in before:
                while item := sizes.pop():
                    size += item
                    items += 1
                before = before[:before.index("mark")]
            size += sum(sizes.pop() for _ in before)
            flat = size == 1 + items + len(before)
            sizes += [0 if name == "MARK" else size] * len(opcode.stack_after)
            again = "GET" in name or name == "DUP"
            if size > _MAX_TUPLE and (again or ("TUPLE" in name and not flat)):
                raise ValueError(f"a tuple of more than {_MAX_TUPLE} objects")
