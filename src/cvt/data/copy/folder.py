"""Write a dataset as directories, train/CLASS/ and val/CLASS/, which can be resumed."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path, PurePath

from cvt.data.copy.resize import ResizedFile
from cvt.data.dataset import Dataset, LabeledImages
from cvt.data.parallel import in_threads
from cvt.system.errors import InputError
from cvt.system.files import replace_file

_MAX_STEM = 80  # characters of an image's name that its copy keeps


def check_directory_names(classes: tuple[str, ...]) -> None:
    """Raise InputError for a class name that cannot be a directory, or would be a hidden one."""
    for name in classes:
        if (PurePath(name).name != name or name.startswith(".") or "\0" in name
                or len(name.encode(errors="surrogateescape")) > 255):
            raise InputError(f"the class {name!r} cannot be the name of a visible directory; "
                             "rename it, or copy with --to shards, which keeps such names")


def write_folder(out: Path, dataset: Dataset, resize: Callable[[int], ResizedFile],
                 record: Callable[[list[int], dict[int, str]], object],
                 progress: Callable[[int, int], object] | None
                 ) -> tuple[list[int], dict[int, str]]:
    """Write the images of `dataset.all`, as `resize` returns them, except for existing ones.

    Returns the indices of the images that were read and, for unreadable ones, the reason. Files are
    written atomically. Unreadable training images are left out. Unreadable validation images are
    copied unchanged, after `record` was called with the result, so that every existing one is on
    record.
    """
    images, train = dataset.all, len(dataset.train)
    stems = _stems(out, images, train)
    directories = {stem.parent for stem in stems}
    _make_directories(directories)
    existing = _existing_stems(directories)
    todo = [i for i, stem in enumerate(stems) if stem not in existing]
    reasons: dict[int, str] = {}
    write = partial(_write_readable, stems, resize)
    for done, (i, reason) in enumerate(zip(todo, in_threads(write, todo), strict=True), 1):
        if reason is not None:
            reasons[i] = reason
        if progress:
            progress(done, len(todo))
    record(todo, reasons)
    for i in reasons:
        if i >= train:
            _write(stems[i], resize(i))
    return todo, reasons


def _write_readable(stems: list[Path], resize: Callable[[int], ResizedFile], index: int
                    ) -> str | None:
    """Write an image, or return why it cannot be read."""
    file = resize(index)
    if file.reason is None:
        _write(stems[index], file)
    return file.reason


def _write(stem: Path, file: ResizedFile) -> None:
    replace_file(stem.with_name(stem.name + file.suffix),
                 lambda part: part.write_bytes(file.data))


def _stems(out: Path, images: LabeledImages, train: int) -> list[Path]:
    """The path of each copy without its suffix: the image's own name, numbered if it is taken."""
    directories = [out / half / name for half in ("train", "val") for name in images.classes]
    taken: set[tuple[int, str]] = set()
    times: Counter[tuple[int, str]] = Counter()
    stems = []
    for i, (label, name) in enumerate(zip(images.labels, images.names, strict=True)):
        directory = label + (i >= train) * len(images.classes)
        # Without dots, so that the stem is everything before the one dot of the copy's name.
        stem = re.sub(r"[^\w-]+", "_", PurePath(name).stem)[:_MAX_STEM] or "image"
        new = stem
        # Some file systems ignore letter case.
        while (directory, new.casefold()) in taken:
            times[directory, stem] += 1
            new = f"{stem}-{times[directory, stem] + 1}"
        taken.add((directory, new.casefold()))
        stems.append(directories[directory] / new)
    return stems


def _make_directories(directories: set[Path]) -> None:
    for directory in directories:
        directory.mkdir(parents=True, exist_ok=True)
    if len({directory.stat().st_ino for directory in directories}) < len(directories):
        raise InputError("two classes have names that are the same directory on this disk, such as "
                         "A and a; rename one, or copy with --to shards")


def _existing_stems(directories: set[Path]) -> set[Path]:
    """The copies that exist, without their suffixes; partial files of a killed run are removed."""
    existing = set()
    for directory in directories:
        for path in directory.iterdir():
            if not path.name.startswith("."):
                existing.add(path.with_suffix(""))
            elif path.is_file():
                path.unlink()
    return existing
