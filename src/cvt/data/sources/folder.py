"""Images in one directory per class."""

from __future__ import annotations

from pathlib import Path

from cvt.data.classes import natural_order
from cvt.data.dataset import SPLITS, Dataset, LabeledImages, relabel, split
from cvt.data.images import list_images
from cvt.system.errors import InputError


def folder(root: Path, val_fraction: float = 0.2, seed: int = 0) -> Dataset:
    """Images in one directory per class.

    `root`/train and `root`/val define the split. Without them a `val_fraction` of each class is
    held out, the same images for the same `seed`.
    """
    if not root.is_dir():
        raise InputError(f"data.root={root} is not a directory; give one with train/ and val/, or "
                         "with one sub-directory for each class")
    splits = [name for name in ("train", "val") if (root / name).is_dir()]
    if len(splits) == 1:
        other = "val" if splits == ["train"] else "train"
        raise InputError(f"{root} has {splits[0]}/ but no {other}/; add it, or give a directory "
                         "with one sub-directory for each class, to be split by data.val_fraction")
    if splits:
        train, val = _scan(root / "train"), _scan(root / "val", min_classes=1)
        return Dataset(train=train, val=relabel(
            val, train.classes, f"{root / 'val'} has", f"{root / 'train'} lacks",
            "add training images of it or move it away"))
    images = _scan(root)
    if {name.lower() for name in images.classes} <= SPLITS.keys():
        raise InputError(f"{root} has {', '.join(images.classes)}, which are names of splits, not "
                         "of classes; call the directories train/ and val/")
    return split(images, val_fraction, seed, str(root))


def _scan(root: Path, min_classes: int = 2) -> LabeledImages:
    by_class = {d.name: paths for d in root.iterdir()
                if d.is_dir() and not d.name.startswith(".") and (paths := list_images(d))}
    if not by_class:
        raise InputError(f"{root} has no images in sub-directories; make one sub-directory for "
                         "each class and put its images there")
    if len(by_class) < min_classes:
        raise InputError(f"{root} has the single class {next(iter(by_class))!r}; classification "
                         "needs at least two sub-directories with images")
    classes = natural_order(by_class, str(root))
    paths = [path for name in classes for path in by_class[name]]
    labels = [label for label, name in enumerate(classes) for _ in by_class[name]]
    return LabeledImages.from_files(classes, paths, labels)
