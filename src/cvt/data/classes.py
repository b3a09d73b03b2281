"""The rule by which classes are ordered and labels are matched, the same for every source.

A class is its name: labels are matched by name, never by position. A source that states an order
keeps it, in all of its splits; elsewhere the order is the natural order of the names. Names that
could be meant for one another are rejected.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import Any

from cvt.system.errors import InputError

# Decimal reads the digits of every script and any number of them, unlike float and int.
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)")
_DIGITS = re.compile(r"(\d+)")
# Soft hyphen, zero-width characters, direction marks and the byte order mark.
_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u2060\ufeff]")


def natural_order(names: Iterable[str], where: str) -> tuple[str, ...]:
    """The distinct names in natural order: numbers by value, so 2 before 10 and a2 before a10, and
    the text between them by code point. Raises InputError as `check_names`."""
    ordered = tuple(sorted(set(names), key=_natural))
    check_names(ordered, where)
    return ordered


def check_names(names: Sequence[str], where: str) -> None:
    """Raise InputError, which begins with `where`, for names that do not tell classes apart.

    These are a name that occurs twice or is blank; different spellings of one number, such as 1, 01
    and 1.0; and names that differ only in white space, invisible characters, Unicode normalisation
    or letter case. Single characters may differ in case: A and a are classes of handwriting.
    """
    first: dict[Decimal | str, str] = {}
    for name in names:
        key = spelling(name)
        if not key and isinstance(key, str):
            raise InputError(f"{where}: the class {name!r} has no name; give it one")
        if key not in first:
            first[key] = name
            continue
        if name == first[key]:
            raise InputError(f"{where}: the class {name!r} is there twice; rename one of them")
        one, two = _shown(first[key], name)
        why = ("one number, spelled in two ways" if isinstance(key, Decimal) else
               "the same but for white space, letter case or Unicode normalisation")
        raise InputError(f"{where}: the classes {one} and {two} are {why}; give them one name if "
                         "they are one class, else rename one of them")


def match(names: Sequence[str], known: Sequence[str], who: str, whom: str, remedy: str
          ) -> list[int]:
    """Where each of `names` stands in `known`.

    ImageNet's 1,000 classes are known by WordNet id (n01440764) as well as by description. Raises
    InputError for a name that `known` lacks or has twice: "{who} the class 'x', which {whom};
    {remedy}", or, in place of the remedy, how `known` spells it.
    """
    if _equal(names, known):
        return list(range(len(known)))
    place = _places(known)
    for name in names:
        if (i := place.get(name)) is None:
            near = next((k for k in known if spelling(k) == spelling(name)), None)
            one, two = _shown(name, near or name)
            raise InputError(f"{who} the class {one}, which {whom}; "
                             + (remedy if near is None else f"it is spelled {two} there, so rename "
                                "one of them"))
        if i < 0:
            raise InputError(f"{who} the class {name!r}, which is the name of two classes there; "
                             "rename it")
    return [place[name] for name in names]


def order_of(names: Sequence[str], known: Sequence[str]) -> list[int] | str:
    """Where each of `names` stands in `known`, if they are the same classes; else the name of a
    class that only one of them has."""
    if _equal(names, known):
        return list(range(len(known)))
    place = _places(known)
    order = [place.get(name, -1) for name in names]
    if -1 in order:
        return names[order.index(-1)]
    missing = set(range(len(known))) - set(order)
    return known[min(missing)] if missing else order


def _equal(names: Sequence[str], known: Sequence[str]) -> bool:
    """Whether both are the same list, which may then have a name twice."""
    one, other = tuple(names), tuple(known)
    return one == other or (len(one) == len(other) == 1000 and {one, other} <= set(_imagenet()))


def _places(known: Sequence[str]) -> dict[str, int]:
    """The place of every name; -1 where two classes have it, as two of ImageNet's are "crane"."""
    lists: tuple[Sequence[str], ...] = (known,)
    if len(known) == 1000 and tuple(known) in _imagenet():
        lists = _imagenet()
    place: dict[str, int] = {}
    for names in lists:
        for i, name in enumerate(names):
            place[name] = i if place.get(name, i) == i else -1
    return place


@functools.cache
def _imagenet() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """WordNet ids and descriptions of ImageNet's classes, in the order of every checkpoint."""
    from timm.data import ImageNetInfo  # slow to import

    info = ImageNetInfo()
    return tuple(info.label_names()), tuple(info.label_descriptions())


def _natural(name: str) -> tuple[list[Any], str]:
    """Text and numbers by turns; then the name, for 1 and 01 are equal so far."""
    if _NUMBER.fullmatch(name):
        return ["", Decimal(name), ""], name
    parts: list[Any] = _DIGITS.split(name)
    parts[1::2] = map(Decimal, parts[1::2])
    return parts, name


def spelling(name: str) -> Decimal | str:
    """What is equal for names that could be meant for one another."""
    text = " ".join(_INVISIBLE.sub("", unicodedata.normalize("NFC", name)).split())
    if _NUMBER.fullmatch(text):
        return Decimal(text)
    return text if len(text) < 2 else unicodedata.normalize("NFC", text.lower())


def _shown(one: str, other: str) -> tuple[str, str]:
    """Both names in quotes, and in ASCII where they would look the same."""
    same = unicodedata.normalize("NFC", one) == unicodedata.normalize("NFC", other)
    show = ascii if same and one != other else repr
    return show(one), show(other)
