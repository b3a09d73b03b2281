"""Resize one image and encode it."""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import partial
from pathlib import PurePath

from PIL import Image

from cvt.data.dataset import LabeledImages
from cvt.data.images import SUFFIXES, read_header, read_image
from cvt.data.unreadable import unreadable_reason
from cvt.system.errors import InputError

_SUFFIX = {"JPEG": ".jpg", "PNG": ".png"}
_MAX_JPEG_SIDE = 65_500  # pixels, the limit of libjpeg


@dataclass(frozen=True, kw_only=True)
class ResizedFile:
    """The file of a resized image, or the original file if it cannot be read."""

    data: bytes
    suffix: str
    """With its dot."""
    reason: str | None = None
    """Why the image cannot be read."""


def resize_image(images: LabeledImages, short_side: int, quality: int, index: int) -> ResizedFile:
    """The image at `index` as upright RGB, with a short side of at most `short_side` pixels.

    An image that needs resizing becomes a JPEG of `quality`, without metadata. An image that is
    small enough is copied byte for byte if it is an upright gray or RGB JPEG or PNG, and becomes a
    PNG if it does not come from a file.
    """
    name, data = images.names[index], b""
    try:
        fetched = images.fetch(index)
        if isinstance(fetched, Image.Image):
            return _encode(fetched, short_side, quality, lossless=True)
        data = fetched
        image, header = read_image(data, name), read_header(data)
        if header.plain and min(image.size) <= short_side:
            return ResizedFile(data=data, suffix=_SUFFIX[header.format])
        return _encode(image, short_side, quality, lossless=False)
    except (InputError, OSError) as error:
        suffix = PurePath(name).suffix.lower()
        return ResizedFile(data=data, suffix=suffix if suffix in SUFFIXES else ".jpg",
                           reason=unreadable_reason(error, name))


def _encode(image: Image.Image, short_side: int, quality: int, lossless: bool) -> ResizedFile:
    short = min(image.size)
    if short > short_side:
        width, height = (max(short_side, round(side * short_side / short)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0)
    else:
        image = image.copy()
    image.info.clear()  # profiles and comments, which Pillow would write
    png = max(image.size) > _MAX_JPEG_SIDE or (lossless and short <= short_side)
    file = io.BytesIO()
    write = partial(image.save, file)
    write(format="PNG") if png else write(format="JPEG", quality=quality)
    return ResizedFile(data=file.getvalue(), suffix=_SUFFIX["PNG" if png else "JPEG"])
