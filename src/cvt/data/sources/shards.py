"""Images in tar archives in WebDataset's layout, with random access.

Members of one name are one sample: 000017.jpg and 000017.cls, whose text is the class (its name, or
its line number in classes.txt, from 0), or 000017.json with a "label", where a string is a name
before it is a number. An index of the images is built once and stored beside the archives.
"""

from __future__ import annotations

import contextlib
import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cvt.data.classes import canonical_name, check_names, natural_order
from cvt.data.dataset import Dataset, LabeledImages, check_trained, find_splits, split
from cvt.data.listing import (
    HIDDEN,
    NEED_HEIC,
    OTHER_FORMATS,
    LeftOut,
    is_hidden,
    is_image,
    suffix_of,
)
from cvt.data.sources.archives import Member, archive_members, is_hidden_member
from cvt.system.errors import InputError
from cvt.system.files import replace_file
from cvt.system.text import printable

INDEX, CLASSES = "index.npz", "classes.txt"
_MAX_LABEL_BYTES = 1 << 20  # of a .cls or .json member

_Label = tuple[str, bool]  # as written, and whether it is a JSON string


def shards(root: Path, val_fraction: float | None = 0.2, seed: int = 0) -> Dataset:
    """The archives `root`/train*.tar or `root`/train/*.tar, and those of val; or all `root`/*.tar,
    of which a `val_fraction` of each class is held out, with None all. Names are those that
    `find_splits` knows; without val the archives of test are taken.

    `root`/classes.txt lists the class names in order, one per line; without it the classes are
    those in the archives, in natural order. Raises InputError for archives that are compressed or
    corrupt, for images without a class, for fewer than two classes, for ambiguous class names, and
    for numbers that may be names as well as line numbers.
    """
    if not root.is_dir():
        raise InputError(f"data.root={root} is not a directory; give one with .tar archives")
    archives, notes = _archives(root)
    if "train" not in archives and val_fraction is None:  # an evaluation
        archives = {"all": [path for paths in archives.values() for path in paths]}
    if len(archives) == 1 and "all" not in archives:
        there, = archives
        other = "val" if there == "train" else "train"
        raise InputError(f"{root} has archives for {there} but none for {other}; add "
                         f"{other}-000000.tar, or name them otherwise, and data.val_fraction of "
                         "each class is held out")
    if not any(archives.values()):
        raise InputError(f"{root} has no .tar archives; unpack compressed ones, which allow no "
                         "random access")
    index = _read_or_build_index(root, [path for paths in archives.values() for path in paths])
    classes, indices = _classes(root, index, min_classes=1 if val_fraction is None else 2)
    images = {half: _labeled_images(root, index, classes, indices, paths)
              for half, paths in archives.items()}
    if "all" in images:
        dataset = split(images["all"], val_fraction, seed, str(root))
    else:
        dataset = Dataset(train=images["train"], val=images["val"])
        if not (root / CLASSES).is_file():
            check_trained(dataset, str(root))
    left_out = LeftOut()
    for reason, suffix, count in json.loads(str(index.left_out)):
        left_out[reason, suffix] += count
    return replace(dataset, left_out=left_out, notes=notes)


def _archives(root: Path) -> tuple[dict[str, list[Path]], tuple[str, ...]]:
    """The archives of train and val, of one of them, or all of them; and what to know about it."""
    inside = sorted(path for path in root.glob("*.tar") if not is_hidden(path.name))
    below = {path.name: sorted(file for file in path.glob("*.tar") if not is_hidden(file.name))
             for path in root.iterdir() if path.is_dir() and not is_hidden(path.name)}
    by_name = {path.stem: [path] for path in inside} | {
        name: [*below[name], *(path for path in inside if path.stem == name)]
        for name in sorted(below) if below[name]}
    splits = {kind: [path for name in sorted(names) for path in by_name[name]]
              for kind, names in find_splits(by_name, str(root)).items()}
    if not splits:
        return {"all": inside}, ()
    notes, used = [], {path for paths in splits.values() for path in paths}
    if "train" in splits and "test" in splits and "val" not in splits:
        splits["val"] = splits.pop("test")
        notes.append(f"the archives of test in {root} are used for validation, because there are "
                     "none of val")
    elif "train" in splits and "test" in splits:
        notes.append(f"{len(splits.pop('test')):,} archives of test in {root} are used neither to "
                     "train nor to validate")
    if others := sorted(path.name for path in inside if path not in used):
        notes.append(f"{len(others):,} archives in {root} that are of no split are not used, such "
                     f"as {printable(others[0])}")
    return splits, tuple(notes)


class _Index(NamedTuple):
    """The location and class of each image; arrays of one length, except the first two."""

    archives: NDArray[np.str_]  # paths relative to the root, with size and modification time
    left_out: NDArray[np.str_]  # JSON: reason, suffix and number of what is no image and no label
    archive: NDArray[np.int64]  # of each image, an index into archives
    name: NDArray[np.str_]
    offset: NDArray[np.int64]  # bytes
    size: NDArray[np.int64]
    label: NDArray[np.str_]  # as written
    text: NDArray[np.bool_]  # whether the label is a JSON string, a name before it is a number


def _read_or_build_index(root: Path, archives: Sequence[Path]) -> _Index:
    stamps = [f"{path.relative_to(root)} {path.stat().st_size} {path.stat().st_mtime_ns}"
              for path in archives]
    try:
        # Opened here, because numpy leaves a corrupt file open.
        with (root / INDEX).open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            if file["archives"].tolist() == stamps:
                return _Index(*(file[key] for key in _Index._fields))
    except (OSError, ValueError, LookupError, EOFError, zipfile.BadZipFile):
        pass  # missing or corrupt
    left_out, without_image = LeftOut(), set[_Label]()
    rows = [(number, *row) for number, path in enumerate(archives)
            for row in _samples(path, left_out, without_image)]
    if not rows:
        raise InputError(f"the archives in {root} hold no images; a sample is an image and a "
                         "file of the same name that ends in .cls or .json"
                         + (f"; left out: {left_out}" if left_out else ""))
    if (lost := without_image - {(row[4], row[5]) for row in rows}) and any(
            reason in (OTHER_FORMATS, NEED_HEIC) for reason, _ in left_out):
        raise InputError(f"{root}: the class {min(lost)[0]!r} has no image that can be read; left "
                         f"out: {left_out}")
    counts = json.dumps([[*key, count] for key, count in left_out.items()])
    columns = map(np.array, zip(*rows, strict=True))
    index = _Index(np.array(stamps), np.array(counts), *columns)

    def write(part: Path) -> None:
        with part.open("wb") as file:
            np.savez(file, **index._asdict())

    with contextlib.suppress(OSError):  # a read-only disk; the index is built again the next time
        replace_file(root / INDEX, write)
    return index


def _samples(path: Path, left_out: LeftOut, without_image: set[_Label]
             ) -> Iterator[tuple[str, int, int, str, bool]]:
    """Name, offset, size and label of each image of an archive, in its order; labels of no image
    go to `without_image`."""
    images: dict[str, Member] = {}
    labels: dict[str, _Label] = {}
    for member in archive_members(path):
        if is_hidden_member(member.name):
            left_out.add(HIDDEN)
            continue
        stem = PurePosixPath(member.name)
        key, suffix = str(stem.with_name(stem.name.split(".")[0])), suffix_of(stem.name)
        if suffix in (".cls", ".json"):
            if (member.size <= _MAX_LABEL_BYTES
                    and (label := _label(member.read(), suffix)) is not None
                    and (key not in labels or suffix == ".cls")):  # .cls takes precedence
                labels[key] = label
        elif is_image(suffix, left_out):
            if key in images:
                raise InputError(f"{path} has two images called {key}")
            images[key] = member
    for key, member in images.items():
        if key not in labels:
            raise InputError(f"{path}: {member.name} has no class; it takes {key}.cls, or "
                             f'{key}.json with a "label"')
        yield member.name, member.offset, member.size, *labels[key]
    without_image.update(label for key, label in labels.items() if key not in images)


def _label(content: bytes, suffix: str) -> _Label | None:
    """The label in a .cls or .json member; None if it holds none."""
    try:
        text = content.decode("utf-8-sig")
        label = text if suffix == ".cls" else json.loads(text)
    except (ValueError, RecursionError):
        return None
    if suffix == ".json":
        label = label.get("label") if isinstance(label, dict) else None
    if isinstance(label, float) and label.is_integer():
        label = int(label)
    if isinstance(label, bool) or not isinstance(label, (int, str)) or not str(label).strip():
        return None
    return str(label).strip(), suffix == ".json" and isinstance(label, str)


def _classes(root: Path, index: _Index, min_classes: int
             ) -> tuple[tuple[str, ...], dict[_Label, int]]:
    """The class names, and the index among them of each label."""
    labels = sorted(set(zip(index.label.tolist(), index.text.tolist(), strict=True)))
    if (root / CLASSES).is_file():
        names = _read_classes(root / CLASSES)
        indices = _match_labels(names, labels, root)
    else:
        names = natural_order((name for name, _ in labels), str(root))
        by_name = {name: i for i, name in enumerate(names)}
        indices = {label: by_name[label[0]] for label in labels}
    if len(names) < min_classes:
        raise InputError(f"{root} has the single class {names[0]!r}; classification needs at least "
                         "two")
    return names, indices


def _read_classes(file: Path) -> tuple[str, ...]:
    """The names in classes.txt, without surrounding spaces and without empty lines at the end."""
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


def _match_labels(names: tuple[str, ...], labels: Sequence[_Label], root: Path
                  ) -> dict[_Label, int]:
    """The index among `names` of each label. Labels that are numbers are either all names or all
    line numbers."""
    by_name = {name: i for i, name in enumerate(names)}
    by_canonical_name = {canonical_name(name): i for i, name in enumerate(names)}
    by_line = {str(i): i for i in range(len(names))}
    # Leading zeros are ignored; signs, fractions and digits of other scripts are no line numbers.
    lines = {label: by_line.get(label[0].lstrip("0") or "0") for label in labels
             if isinstance(canonical_name(label[0]), Decimal)
             and not (label[1] and label[0] in by_name)}
    may_be_names = all(canonical_name(name) in by_canonical_name for name, _ in lines)
    may_be_lines = None not in lines.values()
    if may_be_names and may_be_lines:
        for (name, _), i in lines.items():
            if i != by_canonical_name[canonical_name(name)]:
                raise InputError(f"{root} has images of the class {name!r}, which may be the name "
                                 f"or the number of a line in {CLASSES}; write names as text in "
                                 f'.json files, {{"label": "{name}"}}, or let no name be a number')
    used_lines = lines if may_be_lines and not may_be_names else {}
    indices = {label: used_lines.get(label, by_name.get(label[0])) for label in labels}
    if unknown := [label for label, i in indices.items() if i is None]:
        # First a number that is no line number: it keeps the others from being line numbers.
        name, _ = min(unknown, key=lambda label: lines.get(label) is not None)
        near = by_canonical_name.get(canonical_name(name))
        raise InputError(f"{root} has images of the class {name!r}, and {CLASSES} has "
                         f"{len(names)} names, which lack it; "
                         + ("add it at the end, or write another class" if near is None else
                            f"write {names[near]!r}, as {CLASSES} spells it"))
    return {label: i for label, i in indices.items() if i is not None}


def _labeled_images(root: Path, index: _Index, classes: tuple[str, ...],
                    indices: Mapping[_Label, int], archives: Sequence[Path]) -> LabeledImages:
    paths = [root / stamp.rsplit(" ", 2)[0] for stamp in index.archives.tolist()]
    chosen = set(archives)
    mine = np.isin(index.archive, [i for i, path in enumerate(paths) if path in chosen])
    archive, offset, size = index.archive[mine], index.offset[mine], index.size[mine]
    labels = zip(index.label[mine].tolist(), index.text[mine].tolist(), strict=True)
    names = zip(archive, index.name[mine].tolist(), strict=True)
    return LabeledImages(
        classes=classes, labels=tuple(indices[label] for label in labels),
        names=[f"{paths[a]}:{name}" for a, name in names],
        fetch=partial(_fetch, paths, archive, offset, size), size=size.item)


def _fetch(paths: Sequence[Path], archive: NDArray[np.int64], offset: NDArray[np.int64],
           size: NDArray[np.int64], index: int) -> bytes:
    return Member(paths[archive[index]], "", int(offset[index]), int(size[index])).read()
