"""Read `.pdparams` files of PaddlePaddle, pickles of NumPy arrays, without unpickling them.

The opcodes are followed here, one by one, and nothing that a pickle names is imported or called.
Sources: `pickletools`; numpy, ndarray.__reduce__; paddle.save.
"""

from __future__ import annotations

import mmap
import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cvt.system.errors import InputError

PDPARAMS = ".pdparams"

_NAMES = "StructuredToParameterName@@"  # paddle.save adds this table of names
_LITERALS = ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "SHORT_BINUNICODE", "BINUNICODE",
             "BINUNICODE8", "SHORT_BINBYTES", "BINBYTES", "BINBYTES8")
_DTYPES = frozenset(("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "b1"))


@dataclass
class _Global:
    """A function or class that the pickle names."""

    name: str


@dataclass
class _Array:
    """An ndarray, and then its shape, dtype and bytes."""

    state: Any = None


@dataclass
class _Dtype:
    """A NumPy dtype, such as "f4"."""

    name: Any


def read_pdparams(path: Path) -> dict[str, Tensor]:
    """The tensors of a file of paddle.save(model.state_dict()) in PyTorch's layout and terms.

    Linear weights, the only ones of two axes in a CvT, are transposed, and `_mean` and `_variance`
    of BatchNorm are named `running_mean` and `running_var`. Raises InputError for a pickle of
    anything but a dict of arrays, and ValueError and the like for a corrupt one.
    """
    data = _content(path)
    if not isinstance(data, dict):
        raise InputError(f"{path} is not a dict of arrays, as paddle.save writes it")
    tensors = {}
    budget = path.stat().st_size
    for name, value in data.items():
        if name == _NAMES:
            continue
        if isinstance(value, tuple) and len(value) == 2:  # a tensor and its name, of some versions
            value = value[1]
        if not isinstance(value, _Array):
            raise InputError(f"{path} has {name[:100]!r}, which is not an array; give the file of "
                             "paddle.save(model.state_dict())")
        tensor = _tensor(value.state, budget)
        budget -= tensor.nbytes
        if tensor.ndim == 2 and name.rpartition(".")[2] == "weight":
            tensor = tensor.t()
        for theirs, ours in (("._mean", ".running_mean"), ("._variance", ".running_var")):
            if name.endswith(theirs):
                name = name.removesuffix(theirs) + ours
        tensors[name] = tensor
    return tensors


def _tensor(state: Any, budget: int) -> Tensor:
    """The array that was given `state`: (version, shape, dtype, Fortran order, bytes).

    budget: its maximum size in bytes; arrays do not share theirs.
    """
    _, shape, dtype, fortran, data = state
    if not (isinstance(dtype, _Dtype) and dtype.name in _DTYPES and isinstance(data, bytes)
            and len(data) <= budget and all(isinstance(axis, int) for axis in shape)):
        raise ValueError("an array without a shape, a dtype of numbers and bytes of its own")
    array = np.frombuffer(data, np.dtype(f"<{dtype.name}"))
    return torch.from_numpy(array.copy().reshape(shape, order="F" if fortran else "C"))


def _content(path: Path) -> Any:
    """What the pickle describes; arrays are left as `_Array`.

    Raises InputError for a name that arrays do not need.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}
    budget = [path.stat().st_size]  # a small pickle can refer to the same text very many times

    def since_mark() -> list[Any]:
        start = marks.pop()
        items = stack[start:]
        del stack[start:]
        return items

    def update(items: list[Any]) -> None:
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(stack[-1], dict) or not isinstance(key, (str, int)):
                raise ValueError("a key that is not a word or a number")
            stack[-1][key] = value

    def call() -> None:
        arguments, function = stack.pop(), stack.pop()
        if not isinstance(function, _Global):
            raise ValueError("a call of something without a name")
        result = _CALLS[function.name](*arguments)
        if isinstance(result, bytes):
            budget.append(budget.pop() - len(result))
        if budget[-1] < 0:
            raise ValueError("more bytes than the file has")
        stack.append(result)

    def build() -> None:
        state = stack.pop()
        if isinstance(stack[-1], _Array):
            stack[-1].state = state
        elif not isinstance(stack[-1], _Dtype) or state[1] not in ("<", "|"):
            raise ValueError("a state for something that is not an array of little-endian numbers")

    def name(module: Any, attribute: Any) -> None:
        if not isinstance(module, str) or not isinstance(attribute, str):
            raise ValueError("a name that is not a word")
        full = f"{module}.{attribute}"
        if full not in _CALLS and full != "numpy.ndarray":
            raise InputError(f"{path} imports {full[:200]!r} when loaded, which arrays do not need "
                             "and which could run code; it is rejected")
        stack.append(_Global(full))

    def tuple_of(count: int) -> None:
        items = tuple(stack[-count:])
        del stack[-count:]
        stack.append(items)

    steps: Mapping[str, Callable[[Any], object]] = {
        "PROTO": lambda _: None, "FRAME": lambda _: None, "STOP": lambda _: None,
        "MARK": lambda _: marks.append(len(stack)),
        "NONE": lambda _: stack.append(None),
        "NEWTRUE": lambda _: stack.append(True), "NEWFALSE": lambda _: stack.append(False),
        "EMPTY_DICT": lambda _: stack.append({}), "EMPTY_TUPLE": lambda _: stack.append(()),
        "TUPLE": lambda _: stack.append(tuple(since_mark())),
        "TUPLE1": lambda _: tuple_of(1), "TUPLE2": lambda _: tuple_of(2),
        "TUPLE3": lambda _: tuple_of(3),
        "SETITEM": lambda _: update([stack.pop(-2), stack.pop()]),
        "SETITEMS": lambda _: update(since_mark()),
        "MEMOIZE": lambda _: memo.update({len(memo): stack[-1]}),
        "REDUCE": lambda _: call(), "BUILD": lambda _: build(),
        "GLOBAL": lambda value: name(*value.split(" ", 1)),
        "STACK_GLOBAL": lambda _: name(stack.pop(-2), stack.pop()),
        **dict.fromkeys(("BINPUT", "LONG_BINPUT"), lambda i: memo.update({i: stack[-1]})),
        **dict.fromkeys(("BINGET", "LONG_BINGET"), lambda i: stack.append(memo[i])),
        **dict.fromkeys(_LITERALS, stack.append),
    }
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as pickled:
        for opcode, value, _ in pickletools.genops(pickled):  # type: ignore[arg-type]
            if opcode.name not in steps:
                raise ValueError(f"the opcode {opcode.name}, which arrays do not need")
            steps[opcode.name](value)
    return stack.pop()


def _encoded(text: str, encoding: str) -> bytes:
    """Bytes, which pickles of protocol 2 keep as text."""
    if encoding != "latin1":
        raise ValueError(f"bytes in the encoding {encoding[:20]!r}")
    return text.encode("latin1")


# What arrays need: each name, and what stands here for calling it.
_CALLS: Mapping[str, Callable[..., Any]] = {
    **{f"numpy.{core}.multiarray._reconstruct": lambda *_: _Array() for core in ("core", "_core")},
    "numpy.dtype": lambda name, *_: _Dtype(name),
    "_codecs.encode": _encoded,
    "collections.OrderedDict": lambda *_: {},
    "builtins.tuple": lambda items=(): items,
    "__builtin__.tuple": lambda items=(): items,
}
