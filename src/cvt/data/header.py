"""What an image's file says of itself, before its pixels."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import ExifTags, Image

from cvt.data.images import opened


@dataclass(frozen=True, kw_only=True)
class Header:
    """How an image is stored."""

    format: str
    """As Pillow names it: JPEG, PNG, ...; empty for an image that never was a file."""
    mode: str
    """As Pillow names it: L (gray), RGB, RGBA, P (palette), CMYK, I;16, ..."""
    frames: bool = False
    """Whether it has more than one image, of which the first is used."""
    turned: bool = False
    """Whether its EXIF data asks to turn or mirror it."""
    transparent: bool = False
    """Whether a part of it may be transparent; it lies on white."""

    @property
    def plain(self) -> bool:
        """Whether its pixels are those that everyone sees, without any conversion."""
        return (self.format in ("JPEG", "PNG") and self.mode in ("L", "RGB")
                and not (self.frames or self.turned or self.transparent))


def header_of(found: bytes | Image.Image) -> Header:
    """That of an image which `read_image` can read."""
    if isinstance(found, Image.Image):
        return Header(format="", mode=found.mode)
    with opened(found, "the image") as file:
        return Header(format=file.format or "", mode=file.mode, frames=_frames(file),
                      turned=_turned(file), transparent=file.has_transparency_data)


# Metadata may be broken in any way where the pixels are not; what cannot be told is not claimed.
def _frames(file: Image.Image) -> bool:
    try:
        return bool(getattr(file, "is_animated", False))
    except Exception:
        return False


def _turned(file: Image.Image) -> bool:
    try:
        return file.getexif().get(ExifTags.Base.Orientation, 1) in range(2, 9)
    except Exception:
        return False
