"""The page at /: its files, and the images that it offers to try."""

from __future__ import annotations

import mimetypes
from collections.abc import Mapping
from pathlib import Path

from cvt.data.images import list_images
from cvt.system.errors import InputError

_HERE = Path(__file__).parent
_MOST = 24  # samples

# By address, what lies there and what it is.
PAGE: Mapping[str, tuple[bytes, str]] = {
    address: ((_HERE / file).read_bytes(), kind) for address, file, kind in (
        ("/", "index.html", "text/html; charset=utf-8"),
        ("/page.css", "page.css", "text/css; charset=utf-8"),
        ("/page.js", "page.js", "text/javascript; charset=utf-8"),
        ("/favicon.svg", "favicon.svg", "image/svg+xml"))}


class Samples:
    """The images of a folder, read once; none without a folder.

    Raises InputError for a folder without images.
    """

    def __init__(self, folder: Path | None) -> None:
        found = [] if folder is None else list_images(folder)[:_MOST]
        if folder is not None and not found:
            raise InputError(f"--samples {folder} has no images in it or below it")
        self.names = [path.stem for path in found]
        """What they are called: their files' names."""
        self.files = [(path.read_bytes(), mimetypes.guess_type(path.name)[0] or "image/png")
                      for path in found]
        """Their bytes and media types."""
