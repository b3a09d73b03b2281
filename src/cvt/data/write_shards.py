"""A dataset as tar archives, in the layout of WebDataset that `shards` reads."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterator
from decimal import Decimal
from functools import partial
from itertools import chain, count, islice
from pathlib import Path

from cvt.data.classes import spelling
from cvt.data.dataset import Dataset
from cvt.data.parallel import in_threads
from cvt.data.shards import CLASSES
from cvt.data.small import Small
from cvt.system.errors import InputError
from cvt.system.files import replace_file

_Sample = tuple[str, Small, str, str]  # both members' name, the image, the class and its suffix


def check_lines(classes: tuple[str, ...]) -> None:
    """Raise InputError for class names that the archives' text files cannot hold."""
    for name in classes:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise InputError(f"the class {name!r} is not text; rename it") from None
        if "\n" in name or "\r" in name:
            raise InputError(f"the class {name!r} has a line break, which {CLASSES} cannot hold; "
                             "rename it")
        if not name or name.strip().removeprefix("\ufeff") != name:
            raise InputError(f"the class {name!r} is empty, or begins or ends with a blank, which "
                             f"{CLASSES} cannot hold; rename it")


def write_shards(out: Path, dataset: Dataset, small: Callable[[int], Small], shard_size: int,
                 progress: Callable[[int, int], object] | None) -> dict[int, str]:
    """Write the images of `dataset.all`, as `small` gives them; why some cannot be read, by
    index.

    Unreadable training images are left out, those of validation are written as they are.
    """
    images, train = dataset.all, len(dataset.train)
    # Where a name is a number, the number of a class could be taken for a name.
    by_name = any(isinstance(spelling(name), Decimal) for name in images.classes)
    reasons: dict[int, str] = {}

    def samples(half: range) -> Iterator[_Sample]:
        for i, found in zip(half, in_threads(small, half), strict=True):
            if found.reason is not None:
                reasons[i] = found.reason
            if found.reason is None or i >= train:
                label = images.labels[i]
                text = json.dumps({"label": images.classes[label]}) if by_name else str(label)
                yield f"{i:08}", found, text, ".json" if by_name else ".cls"
            if progress:
                progress(i + 1, len(images))

    lines = "".join(f"{name}\n" for name in images.classes)
    replace_file(out / CLASSES, lambda part: part.write_text(lines, encoding="utf-8", newline=""))
    for name, half in (("train", range(train)), ("val", range(train, len(images)))):
        rest = samples(half)
        for number in count():
            if (first := next(rest, None)) is None:
                break
            members = chain([first], islice(rest, shard_size - 1))
            replace_file(out / f"{name}-{number:06}.tar", partial(_pack, members))
    return reasons


def _pack(samples: Iterator[_Sample], path: Path) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for key, image, label, kind in samples:
            for suffix, data in ((image.suffix, image.data), (kind, label.encode())):
                member = tarfile.TarInfo(key + suffix)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
