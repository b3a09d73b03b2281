"""Load weights into a model, strictly or adapted on request, with a report of every tensor."""

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
from cvt.weights.names import TO_NATIVE, Naming, detect_naming, rename
from cvt.weights.tensors import read_tensors

Adapt = Literal["head", "in_chans", "pos_embed"]


@dataclass(frozen=True, kw_only=True)
class LoadReport:
    """What happened to every tensor of a file and of a model; printed as a table."""

    path: Path
    """File or directory that was read."""
    format: Naming
    """Naming scheme of its tensors."""
    loaded: tuple[str, ...]
    """Native names of the tensors that were loaded unchanged."""
    renamed: int
    """Number of names in the file that differ from the native ones."""
    adapted: Mapping[str, str] = field(default_factory=dict)
    """Tensors that were changed to fit, and the change."""
    skipped: Mapping[str, str] = field(default_factory=dict)
    """Unexpected or mismatched tensors of the file that were not loaded, and the reason."""
    missing: Mapping[str, str] = field(default_factory=dict)
    """Tensors of the model that were not loaded, and their present values."""
    notes: tuple[str, ...] = ()
    """Remarks, such as how the activation was chosen."""

    def __str__(self) -> str:
        lines = [f"{self.path}: {len(self.loaded)} tensors in {self.format} names, {self.renamed} "
                 "renamed" + ("" if self.adapted or self.skipped or self.missing
                              else ", none missing, none unexpected")]
        rows = [(status, name, detail) for status in ("adapted", "skipped", "missing")
                for name, detail in getattr(self, status).items()]
        width = max((len(name) for _, name, _ in rows), default=0)
        lines += [f"  {status:<10}{name:<{width}}  {detail}" for status, name, detail in rows]
        return "\n".join([*lines, *(f"  note      {note}" for note in self.notes)])


def load_weights(model: nn.Module, path: str | Path, *, adapt: Collection[Adapt] = (),
                 prefix: str = "", ignore: Collection[str] = ()) -> LoadReport:
    """Load a state dict with official, transformers or native names into `model`.

    path: a `.safetensors`, `.pth`, `.pt` or `.bin` file. Loading is strict: every parameter and
    buffer of `model` is set, and no tensor may be missing, unexpected, of a mismatched shape or not
    finite. Otherwise raises InputError, and `model` is unchanged.

    adapt: what may differ. "head" keeps the model's own head if the sizes differ; "in_chans" adapts
    the first convolution to the model's channels (summed for one, else repeated and rescaled);
    "pos_embed" resizes position embeddings. prefix: removed from the names of the file, such as
    "backbone."; names without it are errors unless ignored. ignore: patterns of names in the file
    to skip, such as "decoder.*".
    """
    path = Path(path)
    tensors, skipped = _select(read_tensors(path), prefix, ignore, path)
    native, renamed, naming = to_native(tensors, path)
    fitted, report = fit(model, native, path, adapt=adapt, format=naming, renamed=renamed,
                         skipped=skipped)
    model.load_state_dict(fitted, strict=False)
    return report


def _select(tensors: Mapping[str, Tensor], prefix: str, ignore: Collection[str], path: Path
            ) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors whose names start with `prefix`, without it, and those skipped by `ignore`."""
    selected, skipped, others = {}, {}, []
    for name, tensor in tensors.items():
        if any(fnmatchcase(name, pattern) for pattern in ignore):
            skipped[name] = "ignored, as requested"
        elif name.startswith(prefix):
            selected[name.removeprefix(prefix)] = tensor
        else:
            others.append(name)
    if others:
        raise InputError(f"{path} has {len(others)} tensors whose names do not start with "
                         f"{prefix!r} ({_shortened(others)}); add them to ignore")
    return selected, skipped


def to_native(tensors: Mapping[str, Tensor], path: Path
              ) -> tuple[dict[str, Tensor], int, Naming]:
    """The tensors under native names, how many were renamed, and the naming scheme they had."""
    # Prefixes of DistributedDataParallel and torch.compile.
    plain = {re.sub(r"^(module\.|_orig_mod\.)+", "", name): t for name, t in tensors.items()}
    naming = detect_naming(plain)
    native = {rename(name, TO_NATIVE[naming]): t for name, t in plain.items()}
    if len(native) < len(tensors):
        raise InputError(f"{path} has the same tensor under two names")
    return native, len(set(native) - set(tensors)), naming


def fit(model: nn.Module, tensors: Mapping[str, Tensor], path: Path, *,
        adapt: Collection[Adapt] = (), format: Naming = "native", renamed: int = 0,
        skipped: Mapping[str, str] | None = None, notes: tuple[str, ...] = (),
        head_rows: Sequence[int] | None = None) -> tuple[dict[str, Tensor], LoadReport]:
    """The tensors adapted to `model`, and the report; `model` is not changed.

    head_rows: rows of the file's head for the model's classes, in order; empty for a new head, None
    for the head as it is. Raises InputError for a tensor that does not fit and is not in `adapt`,
    and for values that are not finite.
    """
    expected = model.state_dict()
    fitted, skipped = dict(tensors), dict(skipped or {})
    adapted: dict[str, str] = {}
    missing: dict[str, str] = {}
    heads = [name for name in (*fitted, *expected) if name in ("head.weight", "head.bias")]
    new_head = head_rows is not None and not head_rows
    if new_head or ("head" in adapt and any(
            name not in fitted or name not in expected
            or fitted[name].shape != expected[name].shape for name in heads)):
        reason = "head for other classes" if new_head else "head of another size"
        skipped |= {name: f"{_shape(fitted.pop(name))}, {reason}"
                    for name in heads if name in fitted}
        missing = {name: f"{_shape(expected[name])}, newly initialised"
                   for name in heads if name in expected}
    elif head_rows is not None and list(head_rows) != list(range(len(head_rows))):
        for name in heads:
            if name in fitted and name not in adapted:
                fitted[name] = fitted[name][list(head_rows)]
                adapted[name] = "rows in the order of the model's classes"
    for name, tensor in fitted.items():
        if name not in expected or tensor.shape == expected[name].shape:
            continue
        target = expected[name].shape
        if ("in_chans" in adapt and name == "stages.0.embed.conv.weight" and tensor.ndim == 4
                and (tensor.shape[0], *tensor.shape[2:]) == (target[0], *target[2:])):
            fitted[name] = adapt_in_chans(tensor, target[1])
        elif "pos_embed" in adapt and name.endswith(".pos_embed") and tensor.ndim == 4:
            fitted[name] = resize_pos_embed(tensor, target)
        if fitted[name].shape == target:
            adapted[name] = f"{_shape(tensor)} to {_shape(expected[name])}"
    _check(expected, fitted, missing, path)
    dtypes = {t.dtype for name, t in fitted.items() if t.dtype != expected[name].dtype}
    fitted = {name: tensor.to(expected[name].dtype) for name, tensor in fitted.items()}
    if dtypes:
        names = " and ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
        notes = (*notes, f"{names} values were converted to the dtype of the model")
    return fitted, LoadReport(
        path=path, format=format, loaded=tuple(n for n in fitted if n not in adapted),
        renamed=renamed, adapted=adapted, skipped=skipped, missing=missing, notes=notes)


def adapt_in_chans(weight: Tensor, in_chans: int) -> Tensor:
    """The weight of a convolution (O, C, k, k) for another number of input channels.

    The sum over C for one channel: a gray image gives the same output as three equal channels. For
    more, the channels are repeated and scaled by C / in_chans, to keep the size of activations.
    """
    chans = weight.shape[1]
    if in_chans == 1:
        return weight.sum(1, keepdim=True)
    repeated = weight.repeat(1, -(-in_chans // chans), 1, 1)[:, :in_chans]
    return repeated * (chans / in_chans)


def resize_pos_embed(pos_embed: Tensor, shape: torch.Size) -> Tensor:
    """A position embedding (1, C, H, W) resized to the grid of `shape`, as the model does."""
    return F.interpolate(pos_embed.float(), shape[2:], mode="bicubic", align_corners=False)


def _check(expected: Mapping[str, Tensor], fitted: Mapping[str, Tensor],
           new: Collection[str], path: Path) -> None:
    missing = [name for name in expected if name not in fitted and name not in new]
    unexpected = [name for name in fitted if name not in expected]
    mismatched = [name for name in expected
                  if name in fitted and fitted[name].shape != expected[name].shape]
    shapes = [f"{name} is {_shape(fitted[name])}, the model's {_shape(expected[name])}"
              for name in mismatched]
    problems = [f"{len(names)} {status} ({_shortened(names)})" for status, names in (
        ("missing", missing), ("unexpected", unexpected), ("mismatched", shapes)) if names]
    if problems:
        raise InputError(f"{path} is not a checkpoint of this architecture: "
                         f"{'; '.join(problems)}. Build the model with the configuration of the "
                         "checkpoint" + _adapt_hint([*mismatched, *missing, *unexpected]))
    wrong = [name for name, tensor in fitted.items()
             if tensor.dtype.is_floating_point != expected[name].dtype.is_floating_point]
    if wrong:
        raise InputError(f"{path} is corrupt: {wrong[0]} has {fitted[wrong[0]].dtype} values")
    check_finite(fitted, path)


def _adapt_hint(names: Sequence[str]) -> str:
    """The values of `adapt` that would make all of `names` fit, if there are such."""
    adapt = [value for value, start in (("head", "head."), ("in_chans", "stages.0.embed.conv."))
             if any(name.startswith(start) for name in names)]
    if any(name.endswith("pos_embed") for name in names):
        adapt.append("pos_embed")
    if len(adapt) < len({name.rsplit(".", 1)[0] for name in names}):
        return ""
    return f", or use adapt={tuple(adapt)!r}"


def check_finite(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Raise InputError if a value is infinite or NaN."""
    bad = [name for name, tensor in tensors.items() if not is_finite(tensor)]
    if bad:
        raise InputError(f"{path} has values that are not finite ({_shortened(bad)}); the training "
                         "diverged, or the file is corrupt")


def is_finite(tensor: Tensor) -> bool:
    """Whether no value is infinite or NaN."""
    if not tensor.dtype.is_floating_point:
        return True
    # The sum needs no memory. It is not finite if a value is not, but it may also overflow.
    return bool(tensor.sum().isfinite()) or bool(torch.isfinite(tensor).all())


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a scalar"


def _shortened(names: Sequence[str], limit: int = 3) -> str:
    more = f", and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
