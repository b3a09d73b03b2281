"""Images in one directory per class."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from cvt.data.classes import natural_order
from cvt.data.dataset import SPLITS, Dataset, LabeledImages, find_splits, relabel, split
from cvt.data.listing import (
    BESIDE,
    COMPRESSED,
    EMPTY,
    LeftOut,
    list_directories,
    list_images,
    suffix_of,
)
from cvt.system.errors import InputError

# Parts of datasets for detection and segmentation, which name no classes.
_PARTS = frozenset(("images", "image", "imgs", "jpegimages", "annotations", "labels", "masks",
                    "mask", "trimaps", "segmentationclass", "segmentationobject", "imagesets",
                    "groundtruth", "ground_truth", "gt"))
_MAX_NAMES = 3  # in a message


def folder(root: Path, val_fraction: float | None = 0.2, seed: int = 0) -> Dataset:
    """Images in one directory per class.

    Directories called train and val, or as `find_splits` knows them, define the split. Without
    validation images those of test are taken; without both a `val_fraction` of each class is held
    out, the same images for the same `seed`; None is for an evaluation and holds out all of them,
    also of a single class. Raises InputError for a class whose files are no images, and where it is
    not clear which directories are the classes.
    """
    if not root.is_dir():
        raise InputError(f"data.root={root} is not a directory; " + (
            "unpack it, and give the directory that holds one sub-directory for each class"
            if root.name.lower().endswith((".tar", *COMPRESSED)) and root.is_file() else
            "give one with train/ and val/, or with one sub-directory for each class"))
    left_out = LeftOut()
    names = list_directories(root, left_out)
    splits = find_splits(names, str(root))
    if "train" in splits and len(splits) > 1:
        dataset = _split_directories(root, names, splits, left_out)
    elif only := _only_split(root, names, splits):
        _count_beside(root, names, [only], left_out)
        dataset = _single_split(root / only, val_fraction, seed, left_out,
                                is_train="train" in splits)
    else:
        images = _scan(root, left_out, min_classes=1 if val_fraction is None else 2, names=names)
        dataset = split(images, val_fraction, seed, str(root))
    return replace(dataset, left_out=left_out)


def _split_directories(root: Path, names: Sequence[str], splits: Mapping[str, list[str]],
                       left_out: LeftOut) -> Dataset:
    """The training split, and that of validation or else of test."""
    held_out = "val" if "val" in splits else "test"
    for kind in ("train", held_out):
        if len(splits[kind]) > 1:
            raise InputError(f"{root} has {_joined(splits[kind], '/')}, which are all names of the "
                             f"{kind} split; join them in one")
    train_at, val_at = root / splits["train"][0], root / splits[held_out][0]
    train = _scan(train_at, left_out, of_split=True)
    val = relabel(_scan(val_at, left_out, min_classes=1, of_split=True), train.classes,
                  f"{val_at} has", f"{train_at} lacks",
                  "add training images of it or move it away")
    if held_out == "test":
        notes = [f"{val_at}/ is used for validation, because there is no {root / 'val'}/"]
    else:
        notes = [f"{root / name}/ is used neither to train nor to validate; cvt evaluate "
                 f"--data.name folder --data.root {root / name} scores it"
                 for name in splits.get("test", ())]
    _count_beside(root, names, [name for same in splits.values() for name in same], left_out)
    return Dataset(train=train, val=val, notes=tuple(notes))


def _only_split(root: Path, names: Sequence[str], splits: Mapping[str, list[str]]) -> str | None:
    """The directory of a split with class directories in it, if no other directory has images."""
    if len(splits) != 1 or len(same := next(iter(splits.values()))) != 1:
        return None
    others = [name for name in names if name != same[0] and _list(root / name, LeftOut())]
    if not others:
        return same[0]
    if list_directories(root / same[0], LeftOut()):
        raise InputError(f"{root} has {same[0]}/ with directories in it beside "
                         f"{_joined(others, '/')}, so it is not clear which are the classes; call "
                         "the splits train and val, or move the other directories away")
    return None


def _single_split(home: Path, val_fraction: float | None, seed: int, left_out: LeftOut, *,
                  is_train: bool) -> Dataset:
    if val_fraction is not None and not is_train:
        raise InputError(f"{home.parent} has {home.name}/ but no train/; add it, or give "
                         f"data.root={home} if these are the images to train on")
    images = _scan(home, left_out, min_classes=1 if val_fraction is None else 2, of_split=True)
    notes = () if val_fraction is None else (
        f"{val_fraction:.3g} of each class in {home}/ is held out for validation, because there is "
        f"no {home.parent / 'val'}/",)
    return replace(split(images, val_fraction, seed, str(home)), notes=notes)


def _scan(root: Path, left_out: LeftOut, *, min_classes: int = 2,
          names: Sequence[str] | None = None, of_split: bool = False) -> LabeledImages:
    """The images in the directories of `root`, `names` of which are known already."""
    beside = LeftOut()
    if names is None:
        names = list_directories(root, beside)
        if of_split and len(names) == 1 and names[0].lower() == root.name.lower():
            left_out.update(beside)  # an archive that was unpacked into a directory of its name
            return _scan(root / names[0], left_out, min_classes=min_classes)
    else:
        beside = left_out
    by_class: dict[str, list[str]] = {}
    for name in names:
        here = LeftOut()
        if paths := _list(root / name, here):
            by_class[name] = paths
        elif here.only_notes:
            here.add(EMPTY)
        else:
            raise InputError(f"the class {root / name} has no image that can be read: {here}")
        left_out.update(here)
    n_beside = sum(n for (reason, _), n in beside.items() if reason == BESIDE)
    if beside is not left_out:
        left_out.update(beside)
    if not by_class:
        found = f"{n_beside:,} images, but not" if n_beside else "no images"
        raise InputError(f"{root} has {found} in sub-directories; make one sub-directory for each "
                         "class and put its images there" + (
                             ", or list images and labels in a table" if n_beside else ""))
    _check_classes(root, by_class, min_classes)
    if len(by_class) < min_classes:
        raise InputError(f"{root} has the single class {next(iter(by_class))!r}; classification "
                         "needs at least two sub-directories with images")
    classes = natural_order(by_class, str(root))
    paths = [path for name in classes for path in by_class[name]]
    labels = [label for label, name in enumerate(classes) for _ in by_class[name]]
    return LabeledImages.from_files(classes, paths, labels)


def _check_classes(root: Path, by_class: Mapping[str, list[str]], min_classes: int) -> None:
    """Raise InputError if the directories are not those of classes."""
    names = sorted(by_class)
    if len(names) > 1 and all(_looks_like_split(name) for name in names):
        raise InputError(f"{root} has {_joined(names, '/')}, which are names of splits, not of "
                         "classes; call the directories train/ and val/, with one sub-directory "
                         "for each class in each of them")
    if len(names) > 1 and all(name.lower() in _PARTS for name in names):
        raise InputError(f"{root} has {_joined(names, '/')}, which are parts of a dataset for "
                         "detection or segmentation, not classes; make one sub-directory for each "
                         "class, or list images and labels in a table")
    shared: set[str] | None = None
    for name, paths in by_class.items():
        inner = _directories_of(root / name, paths)
        if inner is None:
            return
        shared = inner if shared is None else shared & inner
        if len(shared) < 2 and not (shared and len(names) == 1):
            return
    inside = sorted(shared or ())
    if len(names) == 1:
        # An evaluation may be of one class, whose images are in several directories.
        if (len(inside) > 1 and min_classes > 1) or find_splits(inside, str(root)):
            raise InputError(f"{root} has the single directory {names[0]!r}, which has the "
                             f"directories {_joined(inside)}; give "
                             f"data.root={root / names[0]}")
        return
    remedy = (f"move {names[0]}/{inside[0]} to {inside[0]}/{names[0]}, and the others likewise"
              if "train" in find_splits(inside, str(root)) else
              f"give data.root={root / names[0]}, or call them train and val if they are splits, "
              f"or list images and labels in a table if they are the classes")
    raise InputError(f"{root} has {_joined(names, '/')}, which hold the same directories, "
                     f"{_joined(inside)}, so it is not clear which are the classes; {remedy}")


def _looks_like_split(name: str) -> bool:
    """Whether it names a split: train, trainA, test_2."""
    return any(part.lower().rstrip("_- ") in SPLITS for part in (name, name[:-1]))


def _directories_of(home: Path, paths: Sequence[str]) -> set[str] | None:
    """The first directory below `home` on the way to each path; None if a path has none."""
    start, inner = len(str(home)) + 1, set()
    for path in paths:
        first, separator, _ = path[start:].partition(os.sep)
        if not separator:
            return None
        inner.add(first)
    return inner


def _list(directory: Path, left_out: LeftOut) -> list[str]:
    try:
        return list_images(directory, left_out)
    except OSError as error:
        where = f"a link to {os.readlink(directory)}" if directory.is_symlink() else "a directory"
        raise InputError(f"{directory} is {where} that cannot be opened: {error.strerror}; mount "
                         "it, change its permissions, or remove it") from None


def _count_beside(root: Path, names: Sequence[str], used: Sequence[str], left_out: LeftOut
                  ) -> None:
    """Count the images in the directories that are no split."""
    for name in names:
        if name not in used:
            for path in _list(root / name, left_out):
                left_out.add(BESIDE, suffix_of(path))


def _joined(names: Sequence[str], mark: str = "") -> str:
    more = f" and {len(names) - _MAX_NAMES:,} more" if len(names) > _MAX_NAMES else ""
    return ", ".join(f"{name}{mark}" for name in names[:_MAX_NAMES]) + more
