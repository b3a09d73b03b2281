"""How classes are ordered and labels are matched, the same for every source.

A class is its name: labels are matched by name, never by position. A source that states an order
keeps it in all of its splits; otherwise the names are in natural order. Ambiguous names, which may
be meant to be the same, are rejected.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import Any

from cvt.system.errors import InputError, did_you_mean
from cvt.system.text import printable, utf8

# Decimal reads the digits of every script and any number of them, unlike float and int.
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)")
_DIGITS = re.compile(r"(\d+)")
# Soft hyphen, zero-width characters, direction marks and the byte order mark.
_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u2060\ufeff]")


def natural_order(names: Iterable[str], where: str) -> tuple[str, ...]:
    """The distinct names in natural order: numbers by value, so 2 before 10 and a2 before a10, and
    other text by code point. Raises InputError as `check_names` does."""
    ordered = tuple(sorted(set(names), key=_natural_key))
    check_names(ordered, where)
    return ordered


def _natural_key(name: str) -> tuple[list[Any], str]:
    """Alternating text, in NFC, and numbers; then the name itself, because 1 and 01 are equal so
    far."""
    if _NUMBER.fullmatch(name):
        return ["", Decimal(name), ""], name
    parts: list[Any] = _DIGITS.split(_nfc(name))
    parts[1::2] = map(Decimal, parts[1::2])
    return parts, name


def check_names(names: Sequence[str], where: str) -> None:
    """Raise InputError, starting with `where`, for class names that are ambiguous.

    Rejected are names that are blank or duplicated; different spellings of one number, such as 1,
    01 and 1.0; and names that differ only in white space, invisible characters, Unicode
    normalization or letter case. Single characters may differ in case: A and a are classes of
    handwriting.
    """
    first: dict[Decimal | str, str] = {}
    for name in names:
        key = canonical_name(name)
        if not key and isinstance(key, str):
            raise InputError(f"{where}: the class {name!r} has no name; give it one")
        if key not in first:
            first[key] = name
            continue
        if name == first[key]:
            raise InputError(f"{where}: the class {name!r} is listed twice; rename one of them")
        one, two = _quoted(first[key], name)
        why = ("the same number" if isinstance(key, Decimal) else
               "the same but for white space, letter case or Unicode normalisation")
        raise InputError(f"{where}: the classes {one} and {two} are {why}; give them one name if "
                         "they are one class, else rename one of them")


def canonical_name(name: str) -> Decimal | str:
    """A key that is equal for ambiguous names: numbers by value, text without white space, case
    and invisible characters."""
    text = " ".join(_INVISIBLE.sub("", unicodedata.normalize("NFC", name)).split())
    if _NUMBER.fullmatch(text):
        return Decimal(text)
    return text if len(text) < 2 else unicodedata.normalize("NFC", text.lower())


def find_class(name: str, classes: Sequence[str]) -> int:
    """The index of the class `name`, the first one if several have it.

    The name may differ in Unicode normalization, and may be written as commands and responses show
    it. Raises InputError, with the closest name, if there is none.
    """
    for same in (str, _nfc, utf8, printable):
        keys = [same(known) for known in classes]
        if same(name) in keys:
            return keys.index(same(name))
    raise InputError(f"there is no class {name!r}; {did_you_mean(name, map(utf8, classes))}")


def _nfc(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def match_classes(names: Sequence[str], known: Sequence[str], has: str, lacks: str, remedy: str
                  ) -> list[int]:
    """The index in `known` of each of `names`.

    Names that differ only in Unicode normalization are the same, since macOS stores another one
    than Linux and Windows. ImageNet's 1,000 classes match by WordNet id (n01440764) as well as by
    description. For a name that `known` lacks or has twice, raises InputError "{has} the class 'x',
    which {lacks}; {remedy}"; if `known` spells the name differently, the message says so in place
    of the remedy.
    """
    if _equal(names, known):
        return list(range(len(known)))
    indices = _indices(known)
    for name in names:
        if (i := indices.get(_nfc(name))) is None:
            near = next((k for k in known if canonical_name(k) == canonical_name(name)), None)
            one, two = _quoted(name, near or name)
            raise InputError(f"{has} the class {one}, which {lacks}; "
                             + (remedy if near is None else f"it is spelled {two} there, so rename "
                                "one of them"))
        if i < 0:
            raise InputError(f"{has} the class {name!r}, which is the name of two classes there; "
                             "rename it")
    return [indices[_nfc(name)] for name in names]


def class_order(names: Sequence[str], known: Sequence[str]) -> list[int] | str:
    """The index in `known` of each of `names` if both have the same classes, otherwise the name of
    a class that only one of them has."""
    if _equal(names, known):
        return list(range(len(known)))
    indices = _indices(known)
    order = [indices.get(_nfc(name), -1) for name in names]
    if -1 in order:
        return names[order.index(-1)]
    missing = set(range(len(known))) - set(order)
    return known[min(missing)] if missing else order


def _equal(names: Sequence[str], known: Sequence[str]) -> bool:
    """Whether both are the same list, which may have duplicated names then."""
    one, other = tuple(names), tuple(known)
    return one == other or (len(one) == len(other) == 1000 and {one, other} <= set(_imagenet()))


def _indices(known: Sequence[str]) -> dict[str, int]:
    """The index of each name in NFC; -1 for a name of two classes, such as ImageNet's "crane"."""
    lists: tuple[Sequence[str], ...] = (known,)
    if len(known) == 1000 and tuple(known) in _imagenet():
        lists = _imagenet()
    indices: dict[str, int] = {}
    for names in lists:
        for i, name in enumerate(map(_nfc, names)):
            indices[name] = i if indices.get(name, i) == i else -1
    return indices


@functools.cache
def _imagenet() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """WordNet ids and descriptions of ImageNet's classes, in the order of every checkpoint."""
    from timm.data import ImageNetInfo  # slow to import

    info = ImageNetInfo()
    return tuple(info.label_names()), tuple(info.label_descriptions())


def _quoted(one: str, other: str) -> tuple[str, str]:
    """Both names in quotes, escaped to ASCII if they would look the same."""
    same = unicodedata.normalize("NFC", one) == unicodedata.normalize("NFC", other)
    show = ascii if same and one != other else repr
    return show(one), show(other)
