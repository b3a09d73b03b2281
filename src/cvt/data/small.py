"""One image, small enough: the bytes of a file."""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import partial
from pathlib import PurePath

from PIL import Image

from cvt.data.dataset import LabeledImages
from cvt.data.header import header_of
from cvt.data.images import SUFFIXES, fault, read_image
from cvt.system.errors import InputError

_SUFFIX = {"JPEG": ".jpg", "PNG": ".png"}
_JPEG_SIDE = 65_500  # pixels, more than which libjpeg refuses


@dataclass(frozen=True, kw_only=True)
class Small:
    """A file, or the original where it cannot be read."""

    data: bytes
    suffix: str
    """With its dot."""
    reason: str | None = None
    """Why the image cannot be read."""


def small(images: LabeledImages, short: int, quality: int, index: int) -> Small:
    """The image at `index` with a short side of at most `short` pixels, upright RGB.

    One that is resized becomes JPEG of `quality`, without metadata. One that is small enough is
    taken byte for byte if it is an upright gray or RGB JPEG or PNG, and becomes PNG if it never was
    a file.
    """
    name, found = images.names[index], b""
    try:
        fetched = images.fetch(index)
        if isinstance(fetched, Image.Image):
            return _encoded(fetched, short, quality, lossless=True)
        found = fetched
        image = read_image(found, name)
        header = header_of(found)
        if header.plain and min(image.size) <= short:
            return Small(data=found, suffix=_SUFFIX[header.format])
        return _encoded(image, short, quality, lossless=False)
    except (InputError, OSError) as error:
        suffix = PurePath(name).suffix.lower()
        return Small(data=found, suffix=suffix if suffix in SUFFIXES else ".jpg",
                     reason=fault(error, name))


def _encoded(image: Image.Image, short: int, quality: int, lossless: bool) -> Small:
    least = min(image.size)
    if least > short:
        width, height = (max(short, round(side * short / least)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0)
    else:
        image = image.copy()
    image.info.clear()  # profiles and comments, which Pillow would write
    png = max(image.size) > _JPEG_SIDE or (lossless and least <= short)
    file = io.BytesIO()
    write = partial(image.save, file)
    write(format="PNG") if png else write(format="JPEG", quality=quality)
    return Small(data=file.getvalue(), suffix=_SUFFIX["PNG" if png else "JPEG"])
