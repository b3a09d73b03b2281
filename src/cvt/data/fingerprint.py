"""Fingerprint of a dataset: a few hashes, so that a run resumes with the images it started with."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from cvt.data.dataset import Dataset, LabeledImages

MAX_HASHED_BYTES = 512_000_000
"""Total size of the images up to which their contents are hashed; above it, their sizes are."""

_MAX_LISTED = 3  # classes in a message


def fingerprint(dataset: Dataset) -> dict[str, Any]:
    """Class names, and for each split the number of images per class and hashes of their names,
    labels and contents, in order; plain data for JSON.

    Names are relative to the directory that all images share, so that a dataset may be moved.
    """
    splits = {"training": dataset.train, "validation": dataset.val}
    prefix = _shared_prefix([name for images in splits.values() for name in images.names])
    return {"classes": list(dataset.train.classes),
            **{split: _split_fingerprint(images, prefix) for split, images in splits.items()}}


def digest(dataset: Dataset) -> str:
    """One hash of everything in `fingerprint`."""
    return hash_parts([json.dumps(fingerprint(dataset)).encode()])


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two fingerprints, each in a few words; empty if they are equal."""
    words = []
    if before["classes"] != now["classes"]:
        words.append(_class_difference(before["classes"], now["classes"]))
    for split in ("training", "validation"):
        was, has = before[split], now[split]
        if sum(was["counts"]) != sum(has["counts"]):
            words.append(f"{sum(has['counts']):,} {split} images, were {sum(was['counts']):,}")
        if was["counts"] != has["counts"] and before["classes"] == now["classes"]:
            changed = [f"{new} of {name!r}, were {old}" for name, old, new in zip(
                now["classes"], was["counts"], has["counts"], strict=True) if old != new]
            words.append(f"{split} images by class: " + ", ".join(changed[:_MAX_LISTED])
                         + (f" and {len(changed) - _MAX_LISTED} classes more"
                            * (len(changed) > _MAX_LISTED)))
            continue
        words += [f"the {what} of the {split} images" for what in ("names", "labels", "contents")
                  if was[what] != has[what]]
    return words


def _class_difference(before: Sequence[str], now: Sequence[str]) -> str:
    if max(len(before), len(now)) > 10:
        was, has = set(before), set(now)
        gone, new = [c for c in before if c not in has], [c for c in now if c not in was]
        return (f"{len(now)} classes, were {len(before)}" + "".join(
            f"; {word}: {', '.join(names[:_MAX_LISTED])}" + ", ..." * (len(names) > _MAX_LISTED)
            for word, names in (("gone", gone), ("new", new)) if names)
            + ("; in another order" if not gone and not new else ""))
    return f"the classes were {', '.join(before)} and are {', '.join(now)}"


def _split_fingerprint(images: LabeledImages, prefix: int) -> dict[str, Any]:
    counts = np.bincount(np.asarray(images.labels, np.int64), minlength=len(images.classes))
    return {"counts": counts.tolist(),
            "names": hash_parts(name[prefix:].encode(errors="surrogateescape")
                                for name in images.names),
            "labels": hash_parts([np.asarray(images.labels, np.int32).tobytes()]),
            "contents": _contents(images)}


def _shared_prefix(names: Sequence[str]) -> int:
    """Length of the directory that all of the names share."""
    if not names:
        return 0
    # Character by character, because names of members of a tar archive are not paths.
    return os.path.commonprefix([min(names), max(names)]).rfind(os.sep) + 1  # noqa: RUF071


def _contents(images: LabeledImages) -> str:
    sizes = None if images.size is None else [_size(images, i) for i in range(len(images))]
    if sizes is None or sum(sizes) <= MAX_HASHED_BYTES:
        return hash_parts(_content(images, i) for i in range(len(images)))
    return hash_parts([np.asarray(sizes, np.int64).tobytes()])


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


def hash_parts(parts: Iterable[bytes]) -> str:
    """SHA-256 of byte strings and their lengths, so that it depends on where each ends."""
    sha = hashlib.sha256()
    for part in parts:
        sha.update(len(part).to_bytes(8, "little"))
        sha.update(part)
    return sha.hexdigest()
