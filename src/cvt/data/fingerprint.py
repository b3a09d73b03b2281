"""What a dataset is, in a few hashes: so that a run goes on with the images that it began with."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from cvt.data.dataset import Dataset, LabeledImages

HASHED = 512_000_000
"""Bytes of images up to which their contents are hashed; of more, their sizes are."""

_NAMED = 3  # classes in a sentence


def fingerprint(dataset: Dataset) -> dict[str, Any]:
    """Classes, and of each half of the split the number of images of each class, and hashes of
    their names, labels and contents, in their order; plain data, as JSON has it.

    Names count from the directory that all share, so that a dataset may be moved.
    """
    halves = {"training": dataset.train, "validation": dataset.val}
    home = _home([name for half in halves.values() for name in half.names])
    return {"classes": list(dataset.train.classes),
            **{split: _half(images, home) for split, images in halves.items()}}


def digest(dataset: Dataset) -> str:
    """One hash of all that `fingerprint` has."""
    return hash_of([json.dumps(fingerprint(dataset)).encode()])


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two fingerprints, each in a few words; nothing where they agree."""
    words = []
    if before["classes"] != now["classes"]:
        words.append(_classes(before["classes"], now["classes"]))
    for split in ("training", "validation"):
        was, has = before[split], now[split]
        if sum(was["counts"]) != sum(has["counts"]):
            words.append(f"{sum(has['counts']):,} {split} images, were {sum(was['counts']):,}")
        if was["counts"] != has["counts"] and before["classes"] == now["classes"]:
            moved = [f"{new} of {name!r}, were {old}" for name, old, new in zip(
                now["classes"], was["counts"], has["counts"], strict=True) if old != new]
            words.append(f"{split} images by class: " + ", ".join(moved[:_NAMED])
                         + (f" and {len(moved) - _NAMED} classes more" * (len(moved) > _NAMED)))
            continue
        words += [f"the {what} of the {split} images" for what in ("names", "labels", "contents")
                  if was[what] != has[what]]
    return words


def _classes(before: Sequence[str], now: Sequence[str]) -> str:
    if max(len(before), len(now)) > 10:
        was, has = set(before), set(now)
        gone, new = [c for c in before if c not in has], [c for c in now if c not in was]
        return (f"{len(now)} classes, were {len(before)}" + "".join(
            f"; {word}: {', '.join(names[:_NAMED])}" + ", ..." * (len(names) > _NAMED)
            for word, names in (("gone", gone), ("new", new)) if names)
            + ("; in another order" if not gone and not new else ""))
    return f"the classes were {', '.join(before)} and are {', '.join(now)}"


def _half(images: LabeledImages, home: int) -> dict[str, Any]:
    counts = np.bincount(np.asarray(images.labels, np.int64), minlength=len(images.classes))
    return {"counts": counts.tolist(),
            "names": hash_of(name[home:].encode(errors="surrogateescape") for name in images.names),
            "labels": hash_of([np.asarray(images.labels, np.int32).tobytes()]),
            "contents": _contents(images)}


def _home(names: Sequence[str]) -> int:
    """Characters of the directory that all of the names share."""
    if not names:
        return 0
    # Character by character: names of a tar's members are not paths.
    return os.path.commonprefix([min(names), max(names)]).rfind(os.sep) + 1  # noqa: RUF071


def _contents(images: LabeledImages) -> str:
    sizes = None if images.size is None else [_size(images, i) for i in range(len(images))]
    if sizes is None or sum(sizes) <= HASHED:
        return hash_of(_content(images, i) for i in range(len(images)))
    return hash_of([np.asarray(sizes, np.int64).tobytes()])


def _size(images: LabeledImages, index: int) -> int:
    assert images.size is not None
    try:
        return images.size(index)
    except OSError:
        return -1


def _content(images: LabeledImages, index: int) -> bytes:
    try:
        image = images.fetch(index)
    except OSError:
        return b"unreadable"
    return image.tobytes() if isinstance(image, Image.Image) else image


def hash_of(parts: Iterable[bytes]) -> str:
    """SHA-256 of parts of any length, in whose hash it counts where each ends."""
    sha = hashlib.sha256()
    for part in parts:
        sha.update(len(part).to_bytes(8, "little"))
        sha.update(part)
    return sha.hexdigest()
