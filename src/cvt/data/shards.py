"""Pictures in tar archives, as WebDataset lays them out, each to be reached alone.

Members of one name are one sample: 000017.jpg and 000017.cls, whose text is the class (a number
into classes.txt, or its name), or 000017.json with a "label". An index of where each picture lies
is built once and kept beside the archives.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from cvt.atomic import replace_file
from cvt.data.archives import Member, members
from cvt.data.images import SUFFIXES
from cvt.data.pictures import AS_IMAGENET, Dataset, Pictures, split
from cvt.errors import InputError

INDEX, CLASSES = "index.npz", "classes.txt"
_MOST_LABEL = 1 << 20  # bytes of a .cls or .json member


def shards(root: Path, val_fraction: float = 0.2, seed: int = 0) -> Dataset:
    """The archives `root`/train*.tar or `root`/train/*.tar, and those of val; or all `root`/*.tar,
    of which a `val_fraction` of each class is held out.

    `root`/classes.txt has the name of each class, a line each; without it names and numbers are
    taken from the archives. Raises InputError for archives that are compressed or damaged, for
    pictures without a class, and where there are fewer than two classes.
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
        raise InputError(f"{root} has no .tar archives; compressed ones must be unpacked, for a "
                         "picture in them cannot be reached alone")
    index = _index(root, [path for paths in archives.values() for path in paths])
    classes = _classes(root, index)
    found = {half: _pictures(index, classes, paths) for half, paths in archives.items()}
    if "all" in found:
        return split(found["all"], val_fraction, seed, str(root))
    return Dataset(train=found["train"], val=found["val"], preprocess=AS_IMAGENET)


@dataclass(frozen=True, kw_only=True)
class _Index:
    """Where the pictures are: arrays of equal length but for `archives`."""

    archives: tuple[str, ...]  # paths relative to the root, with size and time of change
    root: Path
    archive: NDArray[np.int32]  # of each picture, a place in archives
    offset: NDArray[np.int64]  # bytes
    size: NDArray[np.int64]
    name: NDArray[np.str_]
    label: NDArray[np.str_]  # as written


def _index(root: Path, archives: Sequence[Path]) -> _Index:
    stamps = tuple(f"{path.relative_to(root)} {path.stat().st_size} {path.stat().st_mtime_ns}"
                   for path in archives)
    kept = _load(root, stamps)
    if kept:
        return kept
    rows = [(number, *row) for number, path in enumerate(archives) for row in _members(path)]
    if not rows:
        raise InputError(f"the archives in {root} hold no pictures; a sample is a picture and a "
                         "file of the same name that ends in .cls or .json")
    archive, name, offset, size, label = zip(*rows, strict=True)
    index = _Index(archives=stamps, root=root, archive=np.array(archive, np.int32),
                   offset=np.array(offset, np.int64), size=np.array(size, np.int64),
                   name=np.array(name), label=np.array(label))
    _keep(index)
    return index


def _keep(index: _Index) -> None:
    def write(part: Path) -> None:
        with part.open("wb") as file:
            np.savez(file, archives=np.array(index.archives), archive=index.archive,
                     offset=index.offset, size=index.size, name=index.name, label=index.label)

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
                key: file[key] for key in ("archive", "offset", "size", "name", "label")})
    except (OSError, ValueError, LookupError, EOFError, zipfile.BadZipFile):
        return None


def _members(path: Path) -> Iterator[tuple[str, int, int, str]]:
    """Name, offset, size and class of each picture of an archive, in its order."""
    pictures: dict[str, Member] = {}
    labels: dict[str, str] = {}
    for member in members(path):
        stem = PurePosixPath(member.name)
        key = str(stem.with_name(stem.name.split(".")[0]))
        if stem.suffix.lower() in SUFFIXES:
            if key in pictures:
                raise InputError(f"{path} has two pictures called {key}")
            pictures[key] = member
        elif (stem.suffix in (".cls", ".json") and member.size <= _MOST_LABEL
              and (label := _label(member.read(), stem.suffix)) is not None):
            labels.setdefault(key, label)
    for key, member in pictures.items():
        if key not in labels:
            raise InputError(f"{path}: {member.name} has no class; it takes {key}.cls, or "
                             f'{key}.json with a "label"')
        yield member.name, member.offset, member.size, labels[key]


def _label(text: bytes, suffix: str) -> str | None:
    try:
        if suffix == ".cls":
            return text.decode().strip()
        found = json.loads(text)
        label = found.get("label") if isinstance(found, dict) else None
        return None if label is None else str(label)
    except (ValueError, RecursionError):
        return None


def _classes(root: Path, index: _Index) -> tuple[str, ...]:
    written = sorted(set(index.label.tolist()), key=lambda v: (not v.isdecimal(), v.zfill(12)))
    file = root / CLASSES
    names = tuple(written)
    if file.is_file():
        names = tuple(file.read_text(encoding="utf-8").split("\n"))
        names = names[:-1] if names[-1] == "" else names
        for label in written:
            if label not in names and not (label.isdecimal() and int(label) < len(names)):
                raise InputError(f"{root} has pictures of the class {label!r}, and {CLASSES} has "
                                 f"{len(names)} names, which lack it")
    if len(names) < 2:
        raise InputError(f"{root} has the one class {names[0]!r}; classifying takes at least two")
    return names


def _pictures(index: _Index, classes: tuple[str, ...], archives: Sequence[Path]) -> Pictures:
    paths = [index.root / stamp.rsplit(" ", 2)[0] for stamp in index.archives]
    mine = np.isin(index.archive, [i for i, path in enumerate(paths) if path in archives])
    place = {name: i for i, name in enumerate(classes)}
    number = {label: place[label] if label in place else int(label)
              for label in set(index.label.tolist())}
    where = (index.archive[mine], index.offset[mine], index.size[mine])
    return Pictures(
        classes=classes, labels=tuple(number[label] for label in index.label[mine].tolist()),
        names=[f"{paths[a]}:{name}" for a, name in zip(where[0], index.name[mine].tolist(),
                                                       strict=True)],
        fetch=partial(_fetch, paths, *where), size=where[2].item)


# A module function, not a closure: pictures travel to worker processes, which pickle them.
def _fetch(paths: Sequence[Path], archive: NDArray[np.int32], offset: NDArray[np.int64],
           size: NDArray[np.int64], index: int) -> bytes:
    with paths[archive[index]].open("rb") as file:
        file.seek(offset[index])
        return file.read(size[index])
