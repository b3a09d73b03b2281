"""Frozen dataclasses from and to plain data: strict keys, checked types, JSON and YAML files."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import yaml

from cvt.system.errors import InputError, did_you_mean, one_line
from cvt.system.files import replace_file

_T = TypeVar("_T")


def from_mapping(cls: type[_T], data: Mapping[str, Any], where: str) -> _T:
    """Build the dataclass `cls` from plain data; lists become tuples.

    Raises InputError, with `where` in its message, for an unknown key (with the closest known one)
    and for a missing required key.
    """
    if not isinstance(data, Mapping):
        raise InputError(f"{where} is {data!r}, not a mapping")
    known = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in data:
        if key not in known:
            raise InputError(f"{where} has the unknown key {key!r}; "
                             f"{did_you_mean(str(key), known)}")
    for name, f in known.items():
        if (name not in data and f.default is dataclasses.MISSING
                and f.default_factory is dataclasses.MISSING):
            raise InputError(f"{where} lacks the key {name!r}")
    return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in data.items()})


def read_mapping(path: Path) -> dict[str, Any]:
    """Read a JSON or YAML file that contains a mapping. Raises InputError for any other."""
    try:
        text = path.read_text(encoding="utf-8")
        # YAML reads 1e-05 as a string, so JSON needs its own parser.
        data = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read as {path.suffix or 'YAML'}: {one_line(error)}"
                         ) from None
    if not isinstance(data, dict):
        raise InputError(f"{path} has a {type(data).__name__}, not a mapping of keys to values")
    return data


def write_mapping(data: Mapping[str, Any], path: Path) -> None:
    """Write plain data as JSON or YAML, depending on the suffix of `path`."""
    if path.suffix == ".json":
        text = json.dumps(data, indent=2) + "\n"
    elif path.suffix in (".yaml", ".yml"):
        text = yaml.safe_dump(_lists(data), sort_keys=False)
    else:
        raise InputError(f"{path} has the suffix {path.suffix!r}; use .json or .yaml")
    replace_file(path, lambda part: part.write_text(text, encoding="utf-8"))


def _lists(value: Any) -> Any:
    """`value` with tuples as lists, which safe YAML needs."""
    if isinstance(value, Mapping):
        return {k: _lists(v) for k, v in value.items()}
    return [_lists(v) for v in value] if isinstance(value, (list, tuple)) else value


def check(good: bool, message: str) -> None:
    """Raise InputError with `message` unless `good`."""
    if not good:
        raise InputError(message)


def check_default(config: Any, name: str, used: bool, why: str) -> None:
    """Raise InputError for a non-default value of a field that is not `used`, and say `why`."""
    value, default = getattr(config, name), getattr(type(config), name)
    check(used or value == default, f"{name}={value} has no effect, because {why}; leave it out or "
          f"set it to its default, {default}")


def check_types(config: Any) -> None:
    """Raise InputError for a field that is not of its annotated type: "3" or True for an int."""
    for name, hint in get_type_hints(type(config)).items():
        value = getattr(config, name)
        if get_origin(hint) is Literal:
            known = [str(choice) for choice in get_args(hint)]
            check(value in get_args(hint), f"{name}={value!r}; {did_you_mean(str(value), known)}")
        else:
            expected = getattr(hint, "__name__", None) if not get_args(hint) else str(hint)
            check(_is(value, hint), f"{name}={value!r} must be of type {expected}")


def _is(value: Any, hint: Any) -> bool:
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if isinstance(hint, UnionType):
        return any(_is(value, choice) for choice in get_args(hint))
    if get_origin(hint) is tuple:
        kinds = get_args(hint)
        return isinstance(value, tuple) and (
            all(_is(v, kinds[0]) for v in value) if kinds[-1] is Ellipsis
            else len(value) == len(kinds) and all(map(_is, value, kinds)))
    if get_origin(hint) is Mapping:
        return isinstance(value, Mapping) and all(
            all(map(_is, entry, get_args(hint))) for entry in value.items())
    if hint is float:
        return (isinstance(value, (int, float)) and not isinstance(value, bool)
                and math.isfinite(value))
    return isinstance(value, hint) and (hint is bool or not isinstance(value, bool))
