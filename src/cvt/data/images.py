"""One image, from a file or from bytes, as everyone sees it: upright, opaque, 8-bit RGB."""

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
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from cvt.system.errors import InputError

SUFFIXES = frozenset((".avif", ".bmp", ".gif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg",
                      ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".qoi", ".tga", ".tif", ".tiff",
                      ".webp"))

# Of Pillow's formats those that only hold pixels: some of the others start a program to be drawn,
# and icons are unpacked before their size can be looked at. The first ones are there without
# importing them all.
_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "WEBP", "AVIF", "JPEG2000", "QOI", "TGA", "TIFF")

# A progressive JPEG has a dozen; each passes over all pixels, so that thousands take minutes.
_MOST_SCANS = 50

# What Pillow's decoders raise on damaged data.
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, OverflowError,
           struct.error, zlib.error)


def read_image(source: str | Path | bytes, name: str | None = None, *,
               most: int | None = None) -> Image.Image:
    """The first frame of an image as RGB, turned as its EXIF data says.

    Gray, palette, CMYK and 16-bit images are converted; what is transparent lies on white.
    `source` is a path or the file's bytes, `name` what to call it in errors. Raises InputError,
    with that name, for an empty, truncated or foreign file, for a decompression bomb and for more
    than `most` pixels, OSError for a path that cannot be read.
    """
    if isinstance(source, (str, Path)):
        name, data = name or str(source), Path(source).read_bytes()
    else:
        name, data = name or "the given bytes", source
    with opened(data, name) as file:
        if most is not None and file.width * file.height > most:
            raise InputError(f"{name} has {file.width}x{file.height} pixels, more than {most:,}; "
                             "make it smaller first")
        return as_rgb(file, name)


@contextlib.contextmanager
def opened(data: bytes, name: str) -> Iterator[Image.Image]:
    """The image in a file's bytes, of which only the header is read so far.

    Raises InputError as `read_image` does, for what goes wrong within the block too.
    """
    if not data:
        raise InputError(f"{name} is empty (0 bytes); remove it or copy it again")
    # Behind 0xFF no byte of a scan itself is other than 0 or a restart.
    if data.startswith(b"\xff\xd8") and data.count(b"\xff\xda") > _MOST_SCANS:
        raise InputError(f"{name} is a JPEG of more than {_MOST_SCANS} scans, which takes too long "
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
    except _DAMAGE as error:
        raise InputError(f"{name} is damaged or cut off ({error}); copy it again or remove it"
                         ) from None


def rgb_of(found: bytes | Image.Image, name: str) -> Image.Image:
    """An image, or the file of one, as `read_image` gives it."""
    return found if isinstance(found, Image.Image) else read_image(found, name)


class _PillowWarnings:
    """Within the block Pillow's warnings are as `read_image` wants them, in all threads.

    Filters are the whole process's: the first thread to enter sets them, the last to leave puts
    back what was there, so that none takes them from another that still reads.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._caught = warnings.catch_warnings()
                self._caught.__enter__()
                # Pillow warns at 89 million pixels and refuses at twice that; one limit is enough.
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


def read_file(path: Path) -> bytes:
    """The bytes of a file. Raises OSError where it is none, such as a pipe, which would hang."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "is not a file, but a directory, a pipe or a device", str(path))
    return path.read_bytes()


def as_rgb(image: Image.Image, name: str) -> Image.Image:
    """An opened image as 8-bit RGB, turned as its EXIF data says; see `read_image`.

    Raises InputError for one of floating-point samples.
    """
    if image.mode == "F":
        raise InputError(f"{name} holds floating-point samples, whose range is not known; convert "
                         "it to 8 or 16 bits a channel")
    image.load()
    return _rgb(_upright(image))


def fault(error: InputError | OSError, name: str) -> str:
    """Why the image `name` cannot be used, in words that name it."""
    reason = str(getattr(error, "strerror", None) or error)
    return reason if name in reason else f"{name}: {reason}"


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except _DAMAGE:  # the metadata is broken, the pixels are not
        return image.copy()


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit gray; Pillow's own conversion would clip it to white
        samples = np.asarray(image)
        top = 65535 if samples.max(initial=0) > 255 or image.mode != "I" else 255
        # By table, for as 64-bit numbers the pixels would take eight times the memory.
        table = (np.arange(top + 1) * 255 // top).astype(np.uint8)
        image = Image.fromarray(table[samples.clip(0, top)])
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = image if image.mode == "RGBA" else image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=image.getchannel("A"))
        return white
    return image if image.mode == "RGB" else image.convert("RGB")


def list_images(directory: Path) -> list[Path]:
    """Every image file below `directory`, by suffix, hidden ones left out, in a fixed order.

    A link that leads nowhere is among them, so that an image does not go missing unseen.
    """
    return sorted(path for path in directory.rglob("*")
                  if path.suffix.lower() in SUFFIXES
                  and (path.is_file() or (path.is_symlink() and not path.exists()))
                  and not any(p.startswith(".") for p in path.relative_to(directory).parts))
