"""Static files of the page at /, and the sample images that it offers."""

from __future__ import annotations

import mimetypes
from collections.abc import Mapping
from pathlib import Path

from cvt.data.listing import LeftOut, list_images
from cvt.system.errors import InputError

_HERE = Path(__file__).parent
_MAX_SAMPLES = 24

# Content and media type by path.
PAGE: Mapping[str, tuple[bytes, str]] = {
    path: ((_HERE / file).read_bytes(), media_type) for path, file, media_type in (
        ("/", "index.html", "text/html; charset=utf-8"),
        ("/page.css", "page.css", "text/css; charset=utf-8"),
        ("/page.js", "page.js", "text/javascript; charset=utf-8"),
        ("/favicon.svg", "favicon.svg", "image/svg+xml"))}


def read_samples(folder: Path) -> list[tuple[str, bytes, str]]:
    """Name, content and media type of up to 24 images in `folder` or below it.

    Raises InputError if there are none.
    """
    left_out = LeftOut()
    paths = [Path(path) for path in list_images(folder, left_out)[:_MAX_SAMPLES]]
    if not paths:
        raise InputError(f"--samples {folder} has no images in it or below it"
                         + (f"; left out: {left_out}" if left_out else ""))
    return [(path.stem, path.read_bytes(), mimetypes.guess_type(path.name)[0] or "image/png")
            for path in paths]
