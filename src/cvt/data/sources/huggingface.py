"""Images from a dataset of the library `datasets`: on the hub, or in a directory."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cvt.data.classes import check_names
from cvt.data.dataset import Dataset, LabeledImages, relabel, split
from cvt.system.errors import InputError, did_you_mean, one_line
from cvt.system.extras import require

_VAL_SPLITS = ("validation", "valid", "val", "dev", "test")


def huggingface(root: str, *, subset: str | None = None, image_column: str | None = None,
                label_column: str | None = None, val_split: str | None = None,
                val_fraction: float | None = 0.2, seed: int = 0) -> Dataset:
    """The dataset `root`: a directory that `save_to_disk` wrote, one that `load_dataset` reads
    (Parquet files, an image folder), or the name of a dataset on the hub, downloaded once.

    Trains on the split train. Validates on `val_split`, by default validation, else test, else a
    held-out `val_fraction` of each class. By default the columns are the only one of images and
    the only one of class labels. The classes are those of train, in its order; those of the
    validation split are matched by name. Raises InputError for a column that is missing or
    ambiguous, for a class that train lacks, and if the dataset cannot be loaded. Code in a dataset
    is not run.
    """
    datasets = require("datasets", "data")
    try:
        if (Path(root) / "dataset_dict.json").is_file() or (Path(root) / "state.json").is_file():
            loaded = datasets.load_from_disk(root)
        else:
            loaded = datasets.load_dataset(root, subset)
    # The library, the hub and the files of the dataset raise anything; there is no common class.
    except Exception as error:
        raise InputError(f"data.root={root} cannot be loaded as a dataset: {one_line(error)}"
                         ) from None
    splits = {"train": loaded} if isinstance(loaded, datasets.Dataset) else dict(loaded)
    if "train" not in splits:
        raise InputError(f"{root} has the splits {', '.join(splits)}; one must be train")
    if val_split is not None and val_split not in splits:
        raise InputError(f"{root} has no split {val_split!r}; {did_you_mean(val_split, splits)}")
    held_out = val_split or next((name for name in _VAL_SPLITS if name in splits), None)
    features = splits["train"].features
    image = _column(root, features, datasets.Image, image_column, "image_column")
    label = _column(root, features, datasets.ClassLabel, label_column, "label_column")
    train = _labeled_images(splits["train"], "train", image, label)
    check_names(train.classes, root)
    if held_out is None:
        return split(train, val_fraction, seed, root)
    where, features = f"the split {held_out} of {root}", splits[held_out].features
    _column(where, features, datasets.Image, image, "image_column")
    _column(where, features, datasets.ClassLabel, label, "label_column")
    val = relabel(_labeled_images(splits[held_out], held_out, image, label), train.classes,
                  f"{where} has", "the split train lacks", "add training images of it, or choose "
                  "another split with data.val_split")
    return Dataset(train=train, val=val)


def _column(root: str, features: Any, kind: type, chosen: str | None, option: str) -> str:
    if chosen is not None and chosen not in features:
        raise InputError(f"{root} has no column {chosen!r}; {did_you_mean(chosen, features)}")
    fitting = [name for name, feature in features.items() if isinstance(feature, kind)]
    if chosen is not None and chosen not in fitting:
        raise InputError(f"the column {chosen!r} of {root} holds {features[chosen]}, and "
                         f"data.{option} takes {kind.__name__}")
    if chosen is None and len(fitting) != 1:
        raise InputError(f"{root} has {len(fitting)} columns of {kind.__name__} among "
                         f"{', '.join(features)}; choose one with data.{option}")
    return chosen or fitting[0]


def _labeled_images(part: Any, name: str, image: str, label: str) -> LabeledImages:
    part = part.select_columns([image, label])
    labels = list(part[label])
    if any(label is None or label < 0 for label in labels):  # -1 hides the labels of a test set
        raise InputError(f"the split {name} has images without a label; choose another with "
                         "data.val_split")
    classes = tuple(part.features[label].names)
    if (largest := max(labels, default=0)) >= len(classes):
        raise InputError(f"the split {name} has the label {largest}, and its column {label!r} "
                         f"names {len(classes)} classes; make the dataset again")
    undecoded = part.cast_column(image, type(part.features[image])(decode=False))
    return LabeledImages(classes=classes, labels=tuple(labels),
                         names=[f"{name} {i}" for i in range(len(part))],
                         fetch=partial(_fetch, undecoded, image),
                         size=partial(_size, _sizes(undecoded, image), undecoded, image))


def _sizes(part: Any, image: str) -> NDArray[np.int64]:
    """Bytes of each image; -1 for an image in a file of its own."""
    compute = require("pyarrow.compute", "data")
    cells = part.with_format("arrow")[:][image]
    sizes = compute.binary_length(compute.struct_field(cells, "bytes"))
    return np.asarray(compute.fill_null(sizes, -1), np.int64)


def _size(sizes: NDArray[np.int64], part: Any, image: str, index: int) -> int:
    return int(sizes[index]) if sizes[index] >= 0 else len(_fetch(part, image, index))


def _fetch(part: Any, image: str, index: int) -> bytes:
    cell = part[index][image]
    if cell is None:
        raise OSError("its row has no image")
    return cell["bytes"] if cell["bytes"] is not None else Path(cell["path"]).read_bytes()
