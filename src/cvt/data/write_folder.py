"""A dataset as directories, train/CLASS/ and val/CLASS/, that can be completed later."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path, PurePath

from cvt.data.dataset import Dataset, LabeledImages
from cvt.data.parallel import in_threads
from cvt.data.small import Small
from cvt.system.errors import InputError
from cvt.system.files import replace_file

_LONGEST = 80  # characters of an image's name that its copy keeps


def check_directories(classes: tuple[str, ...]) -> None:
    """Raise InputError for a class whose name no directory can have, or that would be hidden."""
    for name in classes:
        if (PurePath(name).name != name or name.startswith(".") or "\0" in name
                or len(name.encode(errors="surrogateescape")) > 255):
            raise InputError(f"the class {name!r} cannot be a directory that is seen; rename it, "
                             "or copy with --to shards, which keeps such names")


def write_folder(out: Path, dataset: Dataset, small: Callable[[int], Small],
                 record: Callable[[list[int], dict[int, str]], object],
                 progress: Callable[[int, int], object] | None
                 ) -> tuple[list[int], dict[int, str]]:
    """Write the images of `dataset.all`, as `small` gives them, but those that are there.

    Files appear whole. Unreadable training images are left out; those of validation are written
    last, as they are, after `record` was given what is returned: so what is there is on record.
    Returns the indices that were looked at, and why some of them cannot be read.
    """
    images, train = dataset.all, len(dataset.train)
    places = _places(out, images, train)
    _make_directories({place.parent for place in places})
    there = _stems({place.parent for place in places})
    todo = [i for i, place in enumerate(places) if place not in there]
    reasons: dict[int, str] = {}
    look = partial(_put, places, small)
    for done, (i, reason) in enumerate(zip(todo, in_threads(look, todo), strict=True), 1):
        if reason is not None:
            reasons[i] = reason
        if progress:
            progress(done, len(todo))
    record(todo, reasons)
    for i in reasons:
        if i >= train:
            found = small(i)
            _write(places[i], found)
    return todo, reasons


def _put(places: list[Path], small: Callable[[int], Small], index: int) -> str | None:
    """Write an image, or say why it cannot be read."""
    found = small(index)
    if found.reason is None:
        _write(places[index], found)
    return found.reason


def _write(place: Path, found: Small) -> None:
    replace_file(place.with_name(place.name + found.suffix),
                 lambda part: part.write_bytes(found.data))


def _places(out: Path, images: LabeledImages, train: int) -> list[Path]:
    """Where each image goes, without the suffix: its own name, numbered where two have one."""
    homes = [out / half / name for half in ("train", "val") for name in images.classes]
    taken: set[tuple[int, str]] = set()
    times: Counter[tuple[int, str]] = Counter()
    places = []
    for i, (label, name) in enumerate(zip(images.labels, images.names, strict=True)):
        home = label + (i >= train) * len(images.classes)
        # No dots, so that the stem is what stands before the one dot of the copy's name.
        stem = re.sub(r"[^\w-]+", "_", PurePath(name).stem)[:_LONGEST] or "image"
        new = stem
        # Some systems take A and a for the same.
        while (home, new.casefold()) in taken:
            times[home, stem] += 1
            new = f"{stem}-{times[home, stem] + 1}"
        taken.add((home, new.casefold()))
        places.append(homes[home] / new)
    return places


def _make_directories(homes: set[Path]) -> None:
    for home in homes:
        home.mkdir(parents=True, exist_ok=True)
    if len({home.stat().st_ino for home in homes}) < len(homes):
        raise InputError("two classes have names that this disk takes for one, such as A and a; "
                         "rename one, or copy with --to shards")


def _stems(homes: set[Path]) -> set[Path]:
    """The images that are there, without their suffixes; what a kill left half is removed."""
    there = set()
    for home in homes:
        for path in home.iterdir():
            if not path.name.startswith("."):
                there.add(path.with_suffix(""))
            elif path.is_file():
                path.unlink()
    return there
