"""Read one image as upright, opaque, 8-bit RGB. No torch."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
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

from cvt.system.errors import InputError, one_line
from cvt.system.extras import require

HEIC_SUFFIXES = frozenset((".heic", ".heif", ".hif"))  # read with the extra heic
SUFFIXES = HEIC_SUFFIXES | {".apng", ".avif", ".bmp", ".gif", ".j2c", ".j2k", ".jfif", ".jp2",
                            ".jpc", ".jpe", ".jpeg", ".jpf", ".jpg", ".jpx", ".pbm", ".pgm",
                            ".png", ".pnm", ".ppm", ".qoi", ".tga", ".tif", ".tiff", ".webp"}

# Pillow's formats that hold nothing but pixels: some of the others start a program to be rendered,
# and icons are unpacked before their size can be checked. Common formats first: Pillow tries them
# in this order, and needs not import the rest.
_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "WEBP", "AVIF", "JPEG2000", "QOI", "TGA", "TIFF")

_HEIC = "HEIF"
"""Pillow's name of the format that iPhones save, which an extra package reads."""
_HEIC_BRANDS = frozenset((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"))

# A progressive JPEG has a dozen scans. Each passes over all pixels, so thousands take minutes.
_MAX_SCANS = 50
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
# In entropy-coded data, 0xFF is followed only by 0 or a restart marker (0xD0 to 0xD7). Markers
# below 0xC0 are reserved; a decoder that looks for a restart passes over them.
_MARKER = re.compile(b"\xff[\xc0-\xcf\xd8-\xfe]")

_PNG = b"\x89PNG\r\n\x1a\n"
_MAX_TEXT = 1 << 16  # bytes

# The largest sample of a camera, microscope or X-ray detector of 12 bits.
_MAX_12_BIT = 4095

# What Pillow's decoders raise on corrupt data.
_DECODER_ERRORS = (OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError,
                   OverflowError, RuntimeError, struct.error, zlib.error)


def read_image(source: str | Path | bytes, name: str | None = None, *,
               max_pixels: int | None = None) -> Image.Image:
    """Read the first frame of an image as RGB, rotated as its EXIF data says.

    Gray, palette, CMYK, 12-bit and 16-bit images are converted; transparent pixels are composited
    on white. `source` is a path or the bytes of a file, `name` identifies it in errors. Raises
    InputError, with that name, for a file that is empty, truncated or not an image, for a
    decompression bomb and for more than `max_pixels` pixels; OSError for a path that cannot be
    read.
    """
    if isinstance(source, (str, Path)):
        name = name or str(source)
        data = _possible(Path(source)).read_bytes()
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
    if data.startswith(b"\xff\xd8") and _too_many_scans(data):
        raise InputError(f"{name} is a JPEG of more than {_MAX_SCANS} scans, which takes too long "
                         "to read; save it again")
    formats: tuple[str, ...] = _FORMATS
    if _is_heic(data):
        try:
            require("pillow_heif", "heic").register_heif_opener(thumbnails=False)
        except InputError as error:
            raise InputError(f"{name} is a HEIC image, for which {error}") from None
        formats = (_HEIC,)
    try:
        file_data = io.BytesIO(_without_texts(data))
        with _pillow_warnings, Image.open(file_data, formats=formats) as file:
            _fit_memory(file)
            yield file
    except InputError:
        raise
    except UnidentifiedImageError:
        raise InputError(f"{name} is not an image that Pillow can read; remove it or convert it "
                         "to JPEG or PNG") from None
    except Image.DecompressionBombError:
        raise InputError(f"{name} unpacks to more than {Image.MAX_IMAGE_PIXELS:,} pixels; it may "
                         "be a decompression bomb, so make it smaller first") from None
    except _DECODER_ERRORS as error:
        raise InputError(f"{name} is corrupt or truncated ({one_line(error)}); copy it again or "
                         "remove it") from None


def _too_many_scans(data: bytes) -> bool:
    """Whether a JPEG has more than _MAX_SCANS scans, read as its decoder does: segment by segment
    up to the end of the image. Thumbnails are inside of segments, and videos after the end."""
    scans, at = 0, 2
    while found := _MARKER.search(data, at):
        marker, at = data[found.end() - 1], found.end()
        if marker == _END_OF_IMAGE:
            return False
        if marker == _START_OF_SCAN and (scans := scans + 1) > _MAX_SCANS:
            return True
        if marker != 0xD8:  # the start of an image has no length
            at += int.from_bytes(data[at:at + 2], "big")
    return False


def _without_texts(data: bytes) -> bytes:
    """A PNG without its compressed or long texts and its colour profile, any other file as it is.

    Pillow unpacks them, and rejects a file for a text of a megabyte, which may be harmless. Short
    texts stay, because XMP may state the rotation.
    """
    if not data.startswith(_PNG):
        return data
    kept: list[bytes | memoryview] = [_PNG]
    at, dropped = len(_PNG), False
    while at < len(data):
        length, kind = int.from_bytes(data[at:at + 4], "big"), data[at + 4:at + 8]
        text = kind in (b"tEXt", b"iTXt") and (length > _MAX_TEXT or (
            kind == b"iTXt" and b"\0\1" in data[at + 8:at + 8 + 81]))  # a keyword has 79 bytes
        if text or kind in (b"zTXt", b"iCCP"):
            dropped = True
        else:
            kept.append(memoryview(data)[at:at + 12 + length])
        at += 12 + length
    return b"".join(kept) if dropped else data


def _is_heic(data: bytes) -> bool:
    """Whether an ISO base media file says that it holds HEVC images."""
    if data[4:8] != b"ftyp":
        return False
    length = min(int.from_bytes(data[:4], "big"), 256)
    return any(data[i:i + 4] in _HEIC_BRANDS for i in range(8, length, 4))


def _fit_memory(file: Image.Image) -> None:
    """Raise Image.DecompressionBombError for more than Image.MAX_IMAGE_PIXELS pixels.

    Up to twice as many, a JPEG as phones with a hundred megapixels write it is decoded at half its
    size. That does not apply to a progressive one, whose decoder holds all of it.
    """
    limit = Image.MAX_IMAGE_PIXELS
    if limit is None or file.width * file.height <= limit:
        return
    if file.format not in ("JPEG", "MPO") or "progressive" in file.info or file.draft(
            None, (file.width // 2, file.height // 2)) is None:
        raise Image.DecompressionBombError


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
                # Pillow warns at 89 million pixels, where _fit_memory decides, and raises at twice
                # that.
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)
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

    Gray samples of 12 bits are scaled: those of a TIFF that says so, and those in a 16-bit file
    whose largest is between 256 and 4095. Raises InputError for floating-point samples and for
    integers that are negative or have more than 16 bits.
    """
    if image.mode == "F":
        raise InputError(f"{name} holds floating-point samples of unknown range; convert it to 8 "
                         "or 16 bits a channel")
    image.load()
    bits = getattr(image, "tag_v2", {}).get(ExifTags.Base.BitsPerSample)
    try:
        image = ImageOps.exif_transpose(image)
    except _DECODER_ERRORS:  # the metadata is corrupt, the pixels are not
        image = image.copy()
    if image.mode.startswith("I"):  # 16-bit gray, which Pillow's own conversion clips to white
        samples = np.asarray(image)
        low, high = int(samples.min(initial=0)), int(samples.max(initial=0))
        if low < 0 or high > 65535:
            raise InputError(f"{name} holds samples from {low} to {high}, of unknown range; "
                             "convert it to 8 or 16 bits a channel")
        top = _MAX_12_BIT if bits == (12,) or 255 < high <= _MAX_12_BIT else (
            65535 if high > 255 or image.mode != "I" else 255)
        # A table, because 64-bit intermediate values would take eight times the memory.
        table = (np.arange(top + 1) * 255 // top).astype(np.uint8)
        image = Image.fromarray(table[samples])
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


def _possible(path: Path) -> Path:
    """`path`. Raises OSError if no file can have that name, where opening it is a ValueError."""
    try:
        if b"\0" not in os.fsencode(path):
            return path
        problem = "contains a NUL, as text in UTF-16 does"
    except UnicodeEncodeError:
        problem = "cannot be written in the encoding of this system's file names"
    raise OSError(errno.EINVAL, problem, str(path))


def read_file(path: Path) -> bytes:
    """The bytes of a regular file. Raises OSError for anything else: reading a pipe would hang."""
    if not stat.S_ISREG(_possible(path).stat().st_mode):
        raise OSError(errno.EINVAL, "is not a file, but a directory, a pipe or a device", str(path))
    return path.read_bytes()
