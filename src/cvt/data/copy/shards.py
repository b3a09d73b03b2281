"""Write a dataset as tar archives in WebDataset's layout, which `sources.shards` reads."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterator
from decimal import Decimal
from functools import partial
from itertools import chain, count, islice
from pathlib import Path

from cvt.data.classes import canonical_name
from cvt.data.copy.resize import ResizedFile
from cvt.data.dataset import Dataset
from cvt.data.parallel import in_threads
from cvt.data.sources.shards import CLASSES
from cvt.system.errors import InputError
from cvt.system.files import replace_file

_Sample = tuple[str, ResizedFile, str, str]  # key, image, label and the suffix of its member


def check_class_lines(classes: tuple[str, ...]) -> None:
    """Raise InputError for a class name that cannot be a line of classes.txt."""
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


def write_shards(out: Path, dataset: Dataset, resize: Callable[[int], ResizedFile],
                 shard_size: int, progress: Callable[[int, int], object] | None
                 ) -> dict[int, str]:
    """Write the images of `dataset.all`, as `resize` returns them.

    Returns, by index, why images cannot be read. Unreadable training images are left out, those of
    validation are copied unchanged.
    """
    images, train = dataset.all, len(dataset.train)
    # If a name is a number, the line number of a class could be mistaken for a name.
    by_name = any(isinstance(canonical_name(name), Decimal) for name in images.classes)
    reasons: dict[int, str] = {}

    def samples(indices: range) -> Iterator[_Sample]:
        for i, file in zip(indices, in_threads(resize, indices), strict=True):
            if file.reason is not None:
                reasons[i] = file.reason
            if file.reason is None or i >= train:
                label = images.labels[i]
                text = json.dumps({"label": images.classes[label]}) if by_name else str(label)
                yield f"{i:08}", file, text, ".json" if by_name else ".cls"
            if progress:
                progress(i + 1, len(images))

    lines = "".join(f"{name}\n" for name in images.classes)
    replace_file(out / CLASSES, lambda part: part.write_text(lines, encoding="utf-8", newline=""))
    for name, indices in (("train", range(train)), ("val", range(train, len(images)))):
        rest = samples(indices)
        for number in count():
            if (first := next(rest, None)) is None:
                break
            shard = chain([first], islice(rest, shard_size - 1))
            replace_file(out / f"{name}-{number:06}.tar", partial(_write_archive, shard))
    return reasons


def _write_archive(samples: Iterator[_Sample], path: Path) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for key, image, label, label_suffix in samples:
            for suffix, data in ((image.suffix, image.data), (label_suffix, label.encode())):
                member = tarfile.TarInfo(key + suffix)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
