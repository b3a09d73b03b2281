"""Find the CvT in a file of weights: under which key and prefix, and in which names."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from torch import Tensor

from cvt.system.errors import InputError
from cvt.weights.names import (
    TO_NATIVE,
    Naming,
    detect_naming,
    find_networks,
    other_network,
    rename,
)
from cvt.weights.tensors import check_tensors, read_state_dicts


@dataclass(frozen=True, kw_only=True)
class Part:
    """Which part of a file of weights to load; by default the only CvT in it."""

    key: str | None = None
    """Key of the state dict, such as "state_dict_ema"; "" for the top level."""
    prefix: str | None = None
    """Prefix of the names, such as "backbone."; "" for none."""
    ignore: Collection[str] = ()
    """Patterns of names in the file to skip, such as "decoder.*"."""


ONLY = Part()
"""The only CvT of a file."""


@dataclass(frozen=True, kw_only=True)
class Weights:
    """The CvT in a file of weights."""

    path: Path
    """File that was read."""
    tensors: Mapping[str, Tensor]
    """Parameters and buffers under native names."""
    format: Naming = "native"
    """Naming scheme in the file."""
    renamed: int = 0
    """Number of names in the file that differ from the native ones."""
    key: str = ""
    """Key of the state dict."""
    prefix: str = ""
    """Prefix of the names."""
    skipped: Mapping[str, str] = field(default_factory=dict)
    """Other tensors of the state dict, and the reason why they are not loaded."""


def read_weights(path: str | Path, part: Part) -> Weights:
    """The CvT of a file of weights: the only one in it, or the one that `part` names.

    A CvT is recognised by the names of its tensors. A file without one is read as it is. Raises
    InputError if the choice is ambiguous or does not exist, and for another network that is also
    called CvT.
    """
    path = Path(path)
    state_dicts = read_state_dicts(path)
    weights = find_weights(state_dicts, path, part)
    check_tensors(state_dicts[weights.key], path)
    return weights


def find_weights(state_dicts: Mapping[str, Mapping[str, Tensor]], path: Path, part: Part
                 ) -> Weights:
    """The same in the state dicts of `path` by key."""
    if part.key is not None and part.key not in state_dicts:
        raise InputError(f"{path} has no state dict under the key {part.key!r}; its keys are "
                         f"{', '.join(f'{key[:100]!r}' for key in list(state_dicts)[:10])}")
    # One dict under several keys is one choice.
    first = {id(tensors): key for key, tensors in reversed(list(state_dicts.items()))}
    keys = first.values() if part.key is None else [part.key]
    dicts = {key: state_dicts[key] for key in state_dicts if key in keys}
    networks = {(key, prefix): naming for key, tensors in dicts.items()
                for prefix, naming in find_networks(tensors).items()}
    chosen = [(key, prefix) for key, prefix in networks
              if part.prefix is None or prefix == part.prefix]
    if len(chosen) > 1 or (networks and not chosen and len(dicts) > 1):
        raise InputError(f"{path} has {len(networks)} CvTs; choose {_choices(networks)}")
    if not networks and (other := next(filter(None, map(other_network, dicts.values())), None)):
        raise InputError(f"{path} is of another network: {other}; it cannot be loaded as a CvT of "
                         "the paper")
    if not chosen and len(dicts) > 1:
        raise InputError(f"{path} has {len(dicts)} state dicts and no CvT in them; choose "
                         f"{_choices([(key, '') for key in dicts])}")
    key, prefix = chosen[0] if chosen else (next(iter(dicts)), part.prefix or "")
    tensors = dicts[key]
    if not any(name.startswith(prefix) for name in tensors):
        raise InputError(f"{path} has no tensor whose name starts with {prefix!r}, but names such "
                         f"as {shortened(list(tensors))}" + (
                             f"; choose {_choices(networks)}" if networks else ""))
    others = [other for where, other in networks if where == key and other != prefix]
    selected, skipped = {}, {}
    for name, tensor in tensors.items():
        if any(fnmatchcase(name, pattern) for pattern in part.ignore):
            skipped[name] = "ignored, as requested"
        elif not name.startswith(prefix):
            skipped[name] = f"outside {prefix!r}"
        elif any(name.startswith(other) and len(other) > len(prefix) for other in others):
            skipped[name] = "of another CvT"
        else:
            selected[name.removeprefix(prefix)] = tensor
    if not chosen:  # wrappers of PyTorch, around a network that is not whole
        selected = {re.sub(r"^(module\.|_orig_mod\.)+", "", n): t for n, t in selected.items()}
    naming = networks[key, prefix] if chosen else detect_naming(selected)
    native = {rename(name, TO_NATIVE[naming]): t for name, t in selected.items()}
    if len(native) + len(skipped) < len(tensors):
        raise InputError(f"{path} has the same tensor under two names")
    return Weights(path=path, tensors=native, format=naming, key=key, prefix=prefix,
                   renamed=len(set(native) - set(tensors)), skipped=skipped)


def _choices(places: Collection[tuple[str, str]]) -> str:
    """The options that choose one of the state dicts and prefixes in `places`."""
    keys, prefixes = ({place[i] for place in places} for i in (0, 1))
    options = [" ".join([*([f"key={key[:100]!r}"] if len(keys) > 1 else []),
                         *([f"prefix={prefix[:100]!r}"] if len(prefixes) > 1 or len(keys) == 1
                           else [])]) for key, prefix in list(places)[:10]]
    flags = " and ".join(flag for flag, several in (
        ("--key", len(keys) > 1), ("--prefix", len(prefixes) > 1 or len(keys) == 1)) if several)
    return f"{' or '.join(options)} ({flags} of `cvt convert`)"


def shortened(names: Sequence[str], limit: int = 3) -> str:
    """The first names, and how many more there are."""
    more = f", and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
