"""Weights into a model, strictly or fitted as asked, with a report of what was done."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cvt.system.errors import InputError
from cvt.weights.names import TO_NATIVE, Names, rename, whose
from cvt.weights.tensors import read_tensors

Adapt = Literal["head", "in_chans", "pos_embed"]


@dataclass(frozen=True, kw_only=True)
class LoadReport:
    """What happened to every tensor of a file and of a model. Printed, it is a table."""

    path: Path
    """The file or directory that was read."""
    format: Names
    """In whose names it was."""
    loaded: tuple[str, ...]
    """Our names of what was set as it stood in the file."""
    renamed: int
    """How many names of the file are not ours."""
    adapted: Mapping[str, str] = field(default_factory=dict)
    """What was set after a change, and the change."""
    skipped: Mapping[str, str] = field(default_factory=dict)
    """What the file holds and the model did not take, and why."""
    left_over: Mapping[str, str] = field(default_factory=dict)
    """What of the model the file did not set, and what it holds instead."""
    notes: tuple[str, ...] = ()
    """What else a reader should know, such as how the activation was decided."""

    def __str__(self) -> str:
        lines = [f"{self.path}: {len(self.loaded)} tensors in {self.format} names, {self.renamed} "
                 "renamed" + ("" if self.adapted or self.skipped or self.left_over
                              else ", none missing, none left over")]
        rows = [(word, name, how) for word, group in (
            ("adapted", self.adapted), ("skipped", self.skipped), ("left over", self.left_over))
            for name, how in group.items()]
        width = max((len(name) for _, name, _ in rows), default=0)
        lines += [f"  {word:<10}{name:<{width}}  {how}" for word, name, how in rows]
        return "\n".join([*lines, *(f"  note      {note}" for note in self.notes)])


def load_weights(model: nn.Module, path: str | Path, *, adapt: Collection[Adapt] = (),
                 prefix: str = "", ignore: Collection[str] = ()) -> LoadReport:
    """Load a state dict in official, transformers or native names into `model`.

    path: a `.safetensors`, `.pth`, `.pt` or `.bin` file. Strict: every parameter and buffer of
    `model` is set, nothing is left over, every shape agrees, every value is finite. Otherwise
    InputError says what is missing, left over or of another shape, and `model` is as it was.

    What else is wanted must be asked for. adapt: "head" leaves a head of another width as it is in
    the model; "in_chans" fits the first convolution to the model's channels (their sum for one,
    else repeated and rescaled); "pos_embed" resizes position embeddings. prefix: what the file's
    names begin with, such as "backbone."; others must be ignored. ignore: patterns such as
    "decoder.*" of the file's names that are skipped.
    """
    path = Path(path)
    tensors, skipped = choose(read_tensors(path), prefix, ignore, path)
    names, renamed, format = to_native(tensors, path)
    fitted, report = fit(model, names, path, adapt=adapt, format=format, renamed=renamed,
                         skipped=skipped)
    model.load_state_dict(fitted, strict=False)
    return report


def choose(tensors: Mapping[str, Tensor], prefix: str, ignore: Collection[str], path: Path
           ) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of `path` without `prefix`, and those that `ignore` skips."""
    chosen, skipped = {}, {}
    others = []
    for name, tensor in tensors.items():
        if any(fnmatchcase(name, pattern) for pattern in ignore):
            skipped[name] = "ignored, as asked"
        elif name.startswith(prefix):
            chosen[name.removeprefix(prefix)] = tensor
        else:
            others.append(name)
    if others:
        raise InputError(f"{path} holds {len(others)} tensors whose names do not begin with "
                         f"{prefix!r} ({_some(others)}); name them in ignore")
    return chosen, skipped


def to_native(tensors: Mapping[str, Tensor], path: Path
              ) -> tuple[dict[str, Tensor], int, Names]:
    """The tensors under our names, how many were renamed, and whose names they had."""
    # DistributedDataParallel and torch.compile each put a word of their own in front.
    plain = {re.sub(r"^(module\.|_orig_mod\.)+", "", name): t for name, t in tensors.items()}
    format = whose(plain)
    ours = {rename(name, TO_NATIVE[format]): t for name, t in plain.items()}
    if len(ours) < len(tensors):
        raise InputError(f"{path} holds the same weights under two names")
    return ours, len(set(ours) - set(tensors)), format


def fit(model: nn.Module, tensors: Mapping[str, Tensor], path: Path, *,
        adapt: Collection[Adapt] = (), format: Names = "native", renamed: int = 0,
        skipped: Mapping[str, str] | None = None, notes: tuple[str, ...] = (),
        head: Sequence[int] | None = None) -> tuple[dict[str, Tensor], LoadReport]:
    """The tensors as `model` takes them, and the report of it; `model` is not touched.

    head: the rows of the file's head that the model's classes have, in order; none for a new head,
    None for the head as it stands. Raises InputError for whatever does not fit and `adapt` does not
    name, and for values that are not finite.
    """
    needed = model.state_dict()
    found, skipped = dict(tensors), dict(skipped or {})
    adapted: dict[str, str] = {}
    left_over: dict[str, str] = {}
    heads = [name for name in (*found, *needed) if name in ("head.weight", "head.bias")]
    new = head is not None and not head
    if new or ("head" in adapt and any(
            name not in found or name not in needed or found[name].shape != needed[name].shape
            for name in heads)):
        what = "a head of other classes" if new else "a head of another width"
        skipped |= {name: f"{shape_of(found.pop(name))}, {what}" for name in heads if name in found}
        left_over = {name: f"{shape_of(needed[name])}, newly initialised"
                     for name in heads if name in needed}
    elif head is not None and list(head) != list(range(len(head))):
        for name in heads:
            if name in found and name not in adapted:
                found[name] = found[name][list(head)]
                adapted[name] = "rows in the order of the model's classes"
    for name, tensor in found.items():
        if name not in needed or tensor.shape == needed[name].shape:
            continue
        target = needed[name]
        if "in_chans" in adapt and name == "stages.0.embed.conv.weight" and _chans_apart(tensor,
                                                                                        target):
            found[name] = fit_in_chans(tensor, target.shape[1])
        elif "pos_embed" in adapt and name.endswith(".pos_embed") and tensor.ndim == 4:
            found[name] = F.interpolate(tensor.float(), target.shape[2:], mode="bicubic",
                                        align_corners=False)
        if found[name].shape == target.shape:
            adapted[name] = f"{shape_of(tensor)} to {shape_of(target)}"
    _check(needed, found, left_over, path)
    dtypes = {tensor.dtype for name, tensor in found.items() if tensor.dtype != needed[name].dtype}
    found = {name: tensor.to(needed[name].dtype) for name, tensor in found.items()}
    if dtypes:
        words = " and ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
        notes = (*notes, f"values in {words} were converted to the model's type")
    return found, LoadReport(
        path=path, format=format, loaded=tuple(n for n in found if n not in adapted),
        renamed=renamed, adapted=adapted, skipped=skipped, left_over=left_over, notes=notes)


def fit_in_chans(weight: Tensor, in_chans: int) -> Tensor:
    """A convolution's weight (O, C, k, k) for another number of input channels.

    For one, the sum over C: a gray image gives what it gave as three equal channels. For more,
    the channels repeated and scaled by C / in_chans, which keeps the size of the activations.
    """
    chans = weight.shape[1]
    if in_chans == 1:
        return weight.sum(1, keepdim=True)
    repeated = weight.repeat(1, -(-in_chans // chans), 1, 1)[:, :in_chans]
    return repeated * (chans / in_chans)


def _chans_apart(one: Tensor, other: Tensor) -> bool:
    return one.ndim == 4 and one.shape[0] == other.shape[0] and one.shape[2:] == other.shape[2:]


def _check(needed: Mapping[str, Tensor], found: Mapping[str, Tensor],
           left_over: Collection[str], path: Path) -> None:
    missing = [name for name in needed if name not in found and name not in left_over]
    extra = [name for name in found if name not in needed]
    shapes = [f"{name} is {shape_of(found[name])}, the model's {shape_of(needed[name])}"
              for name in needed if name in found and found[name].shape != needed[name].shape]
    problems = [f"{len(names)} {what} ({_some(names)})" for what, names in (
        ("missing", missing), ("left over", extra), ("of another shape", shapes)) if names]
    if problems:
        raise InputError(f"{path} is not a checkpoint of this architecture: "
                         f"{'; '.join(problems)}. Build the model with the configuration that the "
                         "checkpoint was made with" + _ask(shapes, missing, extra))
    odd = [name for name, tensor in found.items()
           if tensor.dtype.is_floating_point != needed[name].dtype.is_floating_point]
    if odd:
        raise InputError(f"{path} is damaged: {odd[0]} holds {found[odd[0]].dtype} values")
    bad = [name for name, tensor in found.items() if not is_finite(tensor)]
    if bad:
        raise InputError(f"{path} holds values that are not finite ({_some(bad)}); the training "
                         "that wrote it diverged, or the file is damaged")


def _ask(shapes: list[str], missing: list[str], extra: list[str]) -> str:
    names = [text.split(" ", 1)[0] for text in shapes] + missing + extra
    wanted = [word for word, starts in (("head", "head."), ("in_chans", "stages.0.embed.conv."))
              if any(name.startswith(starts) for name in names)]
    if any(name.endswith("pos_embed") for name in names):
        wanted.append("pos_embed")
    if len(wanted) < len({name.rsplit(".", 1)[0] for name in names}):
        return ""  # more is wrong than can be adapted
    return f", or ask for adapt={tuple(wanted)!r}"


def is_finite(tensor: Tensor) -> bool:
    """Whether no value is infinite or NaN."""
    if not tensor.dtype.is_floating_point:
        return True
    # A sum is not finite if a value is not, and needs no memory; it may overflow on its own.
    return bool(tensor.sum().isfinite()) or bool(torch.isfinite(tensor).all())


def shape_of(tensor: Tensor) -> str:
    """The shape in words: 64x3x7x7."""
    return "x".join(map(str, tensor.shape)) or "a scalar"


def _some(names: list[str], most: int = 3) -> str:
    more = f", and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
