"""Read one image as upright, opaque, 8-bit RGB. No torch."""

from __future__ import annotations

import contextlib
import errno
import io
import stat
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from cvt.system.errors import InputError

SUFFIXES = frozenset((".avif", ".bmp", ".gif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg",
                      ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".qoi", ".tga", ".tif", ".tiff",
                      ".webp"))

# Pillow's formats that hold nothing but pixels: some of the others start a program to be rendered,
# and icons are unpacked before their size can be checked. Common formats first: Pillow tries them
# in this order, and needs not import the rest.
_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "WEBP", "AVIF", "JPEG2000", "QOI", "TGA", "TIFF")

# A progressive JPEG has a dozen scans. Each passes over all pixels, so thousands take minutes.
_MAX_SCANS = 50

# What Pillow's decoders raise on corrupt data.
_DECODER_ERRORS = (OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError,
                   OverflowError, struct.error, zlib.error)


def read_image(source: str | Path | bytes, name: str | None = None, *,
               max_pixels: int | None = None) -> Image.Image:
    """Read the first frame of an image as RGB, rotated as its EXIF data says.

    Gray, palette, CMYK and 16-bit images are converted; transparent pixels are composited on
    white. `source` is a path or the bytes of a file, `name` identifies it in errors. Raises
    InputError, with that name, for a file that is empty, truncated or not an image, for a
    decompression bomb and for more than `max_pixels` pixels; OSError for a path that cannot be
    read.
    """
    if isinstance(source, (str, Path)):
        name, data = name or str(source), Path(source).read_bytes()
    else:
        name, data = name or "the given bytes", source
    with open_image(data, name) as file:
        if max_pixels is not None and file.width * file.height > max_pixels:
            raise InputError(f"{name} has {file.width}x{file.height} pixels, more than "
                             f"{max_pixels:,}; make it smaller first")
        return to_rgb(file, name)


def decode(image: bytes | Image.Image, name: str) -> Image.Image:
    """The image as it is, or as `read_image` reads it from the bytes of a file."""
    return image if isinstance(image, Image.Image) else read_image(image, name)


@contextlib.contextmanager
def open_image(data: bytes, name: str) -> Iterator[Image.Image]:
    """The image in the bytes of a file, of which only the header is read so far.

    Raises InputError as `read_image` does, also for errors within the block.
    """
    if not data:
        raise InputError(f"{name} is empty (0 bytes); remove it or copy it again")
    # In entropy-coded data 0xFF is followed only by 0 or a restart marker, so this counts scans.
    if data.startswith(b"\xff\xd8") and data.count(b"\xff\xda") > _MAX_SCANS:
        raise InputError(f"{name} is a JPEG of more than {_MAX_SCANS} scans, which takes too long "
                         "to read; save it again")
    try:
        with _pillow_warnings, Image.open(io.BytesIO(data), formats=_FORMATS) as file:
            yield file
    except InputError:
        raise
    except UnidentifiedImageError:
        raise InputError(f"{name} is not an image that Pillow can read; remove it or convert it "
                         "to JPEG or PNG") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise InputError(f"{name} unpacks to more than {Image.MAX_IMAGE_PIXELS:,} pixels; it may "
                         "be a decompression bomb, so make it smaller first") from None
    except _DECODER_ERRORS as error:
        raise InputError(f"{name} is corrupt or truncated ({error}); copy it again or remove it"
                         ) from None


class _PillowWarnings:
    """Context in which Pillow's warnings are treated as `read_image` needs, in all threads.

    Warning filters belong to the process: the first thread to enter sets them and the last one to
    leave restores them, so that no thread changes them while another still reads.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._caught = warnings.catch_warnings()
                self._caught.__enter__()
                # Pillow warns at 89 million pixels and raises at twice that; one limit is enough.
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                # Other warnings are about metadata, which does not change the pixels.
                warnings.filterwarnings("ignore", module="PIL", category=UserWarning)
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._caught.__exit__(None, None, None)


_pillow_warnings = _PillowWarnings()


def to_rgb(image: Image.Image, name: str) -> Image.Image:
    """An opened image as 8-bit RGB, rotated as its EXIF data says; see `read_image`.

    Raises InputError for floating-point samples.
    """
    if image.mode == "F":
        raise InputError(f"{name} holds floating-point samples of unknown range; convert it to 8 "
                         "or 16 bits a channel")
    image.load()
    try:
        image = ImageOps.exif_transpose(image)
    except _DECODER_ERRORS:  # the metadata is corrupt, the pixels are not
        image = image.copy()
    if image.mode.startswith("I"):  # 16-bit gray, which Pillow's own conversion clips to white
        samples = np.asarray(image)
        top = 65535 if samples.max(initial=0) > 255 or image.mode != "I" else 255
        # A table, because 64-bit intermediate values would take eight times the memory.
        table = (np.arange(top + 1) * 255 // top).astype(np.uint8)
        image = Image.fromarray(table[samples.clip(0, top)])
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = image if image.mode == "RGBA" else image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=image.getchannel("A"))
        return white
    return image if image.mode == "RGB" else image.convert("RGB")


@dataclass(frozen=True, kw_only=True)
class Header:
    """How an image is stored."""

    format: str
    """Pillow's name: JPEG, PNG, ...; empty for an image that does not come from a file."""
    mode: str
    """Pillow's name: L (gray), RGB, RGBA, P (palette), CMYK, I;16, ..."""
    multi_frame: bool = False
    """Whether it has more than one frame, of which the first is used."""
    exif_rotated: bool = False
    """Whether its EXIF data asks for a rotation or mirroring."""
    transparent: bool = False
    """Whether some of its pixels may be transparent; they are composited on white."""

    @property
    def plain(self) -> bool:
        """Whether the stored pixels are displayed without any conversion."""
        return (self.format in ("JPEG", "PNG") and self.mode in ("L", "RGB")
                and not (self.multi_frame or self.exif_rotated or self.transparent))


def read_header(image: bytes | Image.Image) -> Header:
    """The header of an image that `decode` can read."""
    if isinstance(image, Image.Image):
        return Header(format="", mode=image.mode)
    with open_image(image, "the image") as file:
        multi_frame = exif_rotated = False
        # Metadata can be corrupt in any way while the pixels are fine: report nothing then.
        with contextlib.suppress(Exception):
            multi_frame = bool(getattr(file, "is_animated", False))
        with contextlib.suppress(Exception):
            exif_rotated = file.getexif().get(ExifTags.Base.Orientation, 1) in range(2, 9)
        return Header(format=file.format or "", mode=file.mode, multi_frame=multi_frame,
                      exif_rotated=exif_rotated, transparent=file.has_transparency_data)


def read_file(path: Path) -> bytes:
    """The bytes of a regular file. Raises OSError for anything else: reading a pipe would hang."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "is not a file, but a directory, a pipe or a device", str(path))
    return path.read_bytes()
