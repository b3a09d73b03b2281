"""Images in tar archives, as WebDataset lays them out, each to be reached alone.

Members of one name are one sample: 000017.jpg and 000017.cls, whose text is the class (its name, or
the number of its line in classes.txt, from 0), or 000017.json with a "label", where a text is a
name before it is a number. An index of where each image lies is built once and kept beside the
archives.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from cvt.data.archives import Member, members
from cvt.data.classes import check_names, natural_order, spelling
from cvt.data.dataset import AS_IMAGENET, Dataset, LabeledImages, check_trained, split
from cvt.data.images import SUFFIXES
from cvt.system.errors import InputError
from cvt.system.files import replace_file

INDEX, CLASSES = "index.npz", "classes.txt"
_MOST_LABEL = 1 << 20  # bytes of a .cls or .json member


def shards(root: Path, val_fraction: float = 0.2, seed: int = 0) -> Dataset:
    """The archives `root`/train*.tar or `root`/train/*.tar, and those of val; or all `root`/*.tar,
    of which a `val_fraction` of each class is held out.

    `root`/classes.txt has the name of each class, a line each, in their order; without it the
    classes are what the archives say, in natural order. Raises InputError for archives that are
    compressed or damaged, for images without a class, where there are fewer than two classes, for
    names that do not tell classes apart, and for numbers that could be names as well as lines.
    """
    if not root.is_dir():
        raise InputError(f"data.root={root} is not a directory; give one with .tar archives")
    halves = {half: sorted((*root.glob(f"{half}*.tar"), *(root / half).glob("*.tar")))
              for half in ("train", "val")}
    if bool(halves["train"]) != bool(halves["val"]):
        there, other = ("train", "val") if halves["train"] else ("val", "train")
        raise InputError(f"{root} has archives for {there} but none for {other}; add "
                         f"{other}-000000.tar, or name them otherwise, and data.val_fraction of "
                         "each class is held out")
    archives = {"all": sorted(root.glob("*.tar"))} if not halves["train"] else halves
    if not any(archives.values()):
        raise InputError(f"{root} has no .tar archives; compressed ones must be unpacked, for an "
                         "image in them cannot be reached alone")
    index = _index(root, [path for paths in archives.values() for path in paths])
    classes, place = _classes(root, index)
    found = {half: _images(index, classes, place, paths) for half, paths in archives.items()}
    if "all" in found:
        return split(found["all"], val_fraction, seed, str(root))
    if not (root / CLASSES).is_file():
        check_trained(found["train"], found["val"], str(root))
    return Dataset(train=found["train"], val=found["val"], preprocess=AS_IMAGENET)


@dataclass(frozen=True, kw_only=True)
class _Index:
    """Where the images are: arrays of equal length but for `archives`."""

    archives: tuple[str, ...]  # paths relative to the root, with size and time of change
    root: Path
    archive: NDArray[np.int32]  # of each image, a place in archives
    offset: NDArray[np.int64]  # bytes
    size: NDArray[np.int64]
    name: NDArray[np.str_]
    label: NDArray[np.str_]  # as written
    text: NDArray[np.bool_]  # whether it is a text of JSON, which is a name before it is a number


def _index(root: Path, archives: Sequence[Path]) -> _Index:
    stamps = tuple(f"{path.relative_to(root)} {path.stat().st_size} {path.stat().st_mtime_ns}"
                   for path in archives)
    kept = _load(root, stamps)
    if kept:
        return kept
    rows = [(number, *row) for number, path in enumerate(archives) for row in _members(path)]
    if not rows:
        raise InputError(f"the archives in {root} hold no images; a sample is an image and a "
                         "file of the same name that ends in .cls or .json")
    archive, name, offset, size, label, text = zip(*rows, strict=True)
    index = _Index(archives=stamps, root=root, archive=np.array(archive, np.int32),
                   offset=np.array(offset, np.int64), size=np.array(size, np.int64),
                   name=np.array(name), label=np.array(label), text=np.array(text, bool))
    _keep(index)
    return index


def _keep(index: _Index) -> None:
    def write(part: Path) -> None:
        with part.open("wb") as file:
            np.savez(file, archives=np.array(index.archives), archive=index.archive,
                     offset=index.offset, size=index.size, name=index.name, label=index.label,
                     text=index.text)

    try:
        replace_file(index.root / INDEX, write)
    except OSError:
        return  # a disk to read from only; it is built anew the next time


def _load(root: Path, stamps: tuple[str, ...]) -> _Index | None:
    """The index beside the archives, where it is theirs."""
    try:
        # Opened here, for numpy leaves a damaged file open.
        with (root / INDEX).open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            if tuple(file["archives"].tolist()) != stamps:
                return None
            return _Index(archives=stamps, root=root, **{
                key: file[key] for key in ("archive", "offset", "size", "name", "label", "text")})
    except (OSError, ValueError, LookupError, EOFError, zipfile.BadZipFile):
        return None


def _members(path: Path) -> Iterator[tuple[str, int, int, str, bool]]:
    """Name, offset, size, class and kind of class of each image of an archive, in its order."""
    images: dict[str, Member] = {}
    labels: dict[str, tuple[str, bool]] = {}
    for member in members(path):
        stem = PurePosixPath(member.name)
        key = str(stem.with_name(stem.name.split(".")[0]))
        if stem.suffix.lower() in SUFFIXES:
            if key in images:
                raise InputError(f"{path} has two images called {key}")
            images[key] = member
        elif (stem.suffix in (".cls", ".json") and member.size <= _MOST_LABEL
              and (label := _label(member.read(), stem.suffix)) is not None
              and (key not in labels or stem.suffix == ".cls")):  # which decides, of the two
            labels[key] = label
    for key, member in images.items():
        if key not in labels:
            raise InputError(f"{path}: {member.name} has no class; it takes {key}.cls, or "
                             f'{key}.json with a "label"')
        yield member.name, member.offset, member.size, *labels[key]


def _label(content: bytes, suffix: str) -> tuple[str, bool] | None:
    """The class, and whether it is a text of JSON; None for what is none."""
    try:
        text = content.decode("utf-8-sig")
        found = text if suffix == ".cls" else json.loads(text)
    except (ValueError, RecursionError):
        return None
    label = found.get("label") if isinstance(found, dict) else found if suffix == ".cls" else None
    if isinstance(label, float) and label.is_integer():
        label = int(label)
    if isinstance(label, bool) or not isinstance(label, (int, str)) or not str(label).strip():
        return None
    return str(label).strip(), suffix == ".json" and isinstance(label, str)


def _classes(root: Path, index: _Index) -> tuple[tuple[str, ...], dict[tuple[str, bool], int]]:
    """The classes, and the place among them of each label as written."""
    written = sorted(set(zip(index.label.tolist(), index.text.tolist(), strict=True)))
    file = root / CLASSES
    if file.is_file():
        names = _lines(file)
        place = _lookup(names, written, root)
    else:
        names = natural_order((label for label, _ in written), str(root))
        number = {name: i for i, name in enumerate(names)}
        place = {key: number[key[0]] for key in written}
    if len(names) < 2:
        raise InputError(f"{root} has the one class {names[0]!r}; classifying takes at least two")
    return names, place


def _lines(file: Path) -> tuple[str, ...]:
    """The names in classes.txt, of which spaces at the ends and empty lines at the end are none."""
    try:
        names = file.read_text(encoding="utf-8-sig").rstrip().split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not text in UTF-8 ({error}); save it so") from None
    names = [name.strip() for name in names]
    if "" in names:
        raise InputError(f"{file}: line {names.index('') + 1} is empty, and numbers count lines; "
                         "give the class a name, or take the line out")
    check_names(names, str(file))
    return tuple(names)


def _lookup(names: tuple[str, ...], written: Sequence[tuple[str, bool]], root: Path
            ) -> dict[tuple[str, bool], int]:
    """The place among `names` of each label. Labels that are numbers are all names, or else all
    numbers of lines."""
    place = {name: i for i, name in enumerate(names)}
    spelled = {spelling(name): i for i, name in enumerate(names)}
    numbers = {str(i): i for i in range(len(names))}
    # Zeros in front do not matter; signs, fractions and the digits of other scripts count no lines.
    counted = {key: numbers.get(key[0].lstrip("0") or "0") for key in written
               if isinstance(spelling(key[0]), Decimal) and not (key[1] and key[0] in place)}
    as_names = all(spelling(label) in spelled for label, _ in counted)
    as_numbers = None not in counted.values()
    for (label, _), i in counted.items() if as_names and as_numbers else ():
        if i != spelled[spelling(label)]:
            raise InputError(f"{root} has images of the class {label!r}, which may be the name "
                             f"or the number of a line in {CLASSES}; write names as text in "
                             f'.json files, {{"label": "{label}"}}, or let no name be a number')
    lines = counted if as_numbers and not as_names else {}
    found = {key: lines.get(key, place.get(key[0])) for key in written}
    if lost := [key for key, i in found.items() if i is None]:
        # A number without a line first: it is what keeps the others from being numbers.
        label, _ = min(lost, key=lambda key: counted.get(key) is not None)
        near = spelled.get(spelling(label))
        raise InputError(f"{root} has images of the class {label!r}, and {CLASSES} has "
                         f"{len(names)} names, which lack it; "
                         + ("add it at the end, or write another class" if near is None else
                            f"write {names[near]!r}, as {CLASSES} spells it"))
    return {key: i for key, i in found.items() if i is not None}


def _images(index: _Index, classes: tuple[str, ...], place: Mapping[tuple[str, bool], int],
              archives: Sequence[Path]) -> LabeledImages:
    paths = [index.root / stamp.rsplit(" ", 2)[0] for stamp in index.archives]
    mine = np.isin(index.archive, [i for i, path in enumerate(paths) if path in archives])
    where = (index.archive[mine], index.offset[mine], index.size[mine])
    keys = zip(index.label[mine].tolist(), index.text[mine].tolist(), strict=True)
    return LabeledImages(
        classes=classes, labels=tuple(place[key] for key in keys),
        names=[f"{paths[a]}:{name}" for a, name in zip(where[0], index.name[mine].tolist(),
                                                       strict=True)],
        fetch=partial(_fetch, paths, *where), size=where[2].item)


# A module function, not a closure: images travel to worker processes, which pickle them.
def _fetch(paths: Sequence[Path], archive: NDArray[np.int32], offset: NDArray[np.int64],
           size: NDArray[np.int64], index: int) -> bytes:
    with paths[archive[index]].open("rb") as file:
        file.seek(offset[index])
        return file.read(size[index])
