"""Images sorted into one directory for each class."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from cvt.data.classes import natural_order
from cvt.data.dataset import AS_IMAGENET, SPLITS, Dataset, LabeledImages, relabel, split
from cvt.data.images import list_images, read_file
from cvt.system.errors import InputError


def folder(root: Path, val_fraction: float = 0.2, seed: int = 0) -> Dataset:
    """Images sorted into one directory for each class.

    With `root`/train and `root`/val the split is yours; otherwise a `val_fraction` of each class is
    held out, the same images for the same `seed`.
    """
    if not root.is_dir():
        raise InputError(f"data.root={root} is not a directory; give one with train/ and val/, or "
                         "with one sub-directory for each class")
    halves = [name for name in ("train", "val") if (root / name).is_dir()]
    if len(halves) == 1:
        other = "val" if halves == ["train"] else "train"
        raise InputError(f"{root} has {halves[0]}/ but no {other}/; add it, or give a directory "
                         "with one sub-directory for each class, to be split by data.val_fraction")
    if halves:
        train, val = _scan(root / "train"), _scan(root / "val", least=1)
        return Dataset(train=train, val=relabel(
            val, train.classes, f"{root / 'val'} has", f"{root / 'train'} lacks",
            "add training images of it or move it away"), preprocess=AS_IMAGENET)
    images = _scan(root)
    if {name.lower() for name in images.classes} <= SPLITS.keys():
        raise InputError(f"{root} has {', '.join(images.classes)}, which are called like splits, "
                         "not like classes; call the directories train/ and val/")
    return split(images, val_fraction, seed, str(root))


def files(classes: tuple[str, ...], paths: Sequence[Path], labels: Sequence[int]) -> LabeledImages:
    """Images that are files."""
    return LabeledImages(classes=classes, labels=tuple(labels), names=[str(p) for p in paths],
                    fetch=partial(_fetch, paths), files=True, size=partial(_size, paths))


# A module function, not a closure: images travel to worker processes, which pickle them.
def _fetch(paths: Sequence[Path], index: int) -> bytes:
    return read_file(paths[index])


def _size(paths: Sequence[Path], index: int) -> int:
    return paths[index].stat().st_size


def _scan(root: Path, least: int = 2) -> LabeledImages:
    """The images of a directory, of at least so many classes."""
    found = {d.name: paths for d in root.iterdir()
             if d.is_dir() and not d.name.startswith(".") and (paths := list_images(d))}
    if not found:
        raise InputError(f"{root} has no images in sub-directories; make one sub-directory for "
                         "each class and put its images there")
    if len(found) < least:
        raise InputError(f"{root} has the one class {next(iter(found))!r}; classifying takes at "
                         "least two sub-directories with images")
    classes = natural_order(found, str(root))
    paths = [path for name in classes for path in found[name]]
    labels = [label for label, name in enumerate(classes) for _ in found[name]]
    return files(classes, paths, labels)
