"""Files in uncompressed tar archives, with random access. No torch."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cvt.data.listing import HIDDEN, LeftOut, is_hidden, is_image, suffix_of
from cvt.system.errors import InputError


@dataclass(frozen=True, slots=True)
class Member:
    """A file in a tar archive, read in place. Its string form is ARCHIVE:NAME."""

    archive: Path
    name: str
    offset: int
    """Bytes from the start of the archive."""
    size: int
    """Bytes."""

    def __str__(self) -> str:
        return f"{self.archive}:{self.name}"

    def read(self) -> bytes:
        """The bytes of the file. Raises OSError if the archive cannot be read."""
        with self.archive.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


def archive_members(path: Path) -> Iterator[Member]:
    """All regular files of an archive, in its order.

    Raises InputError for an archive that is compressed, and so allows no random access, or that is
    corrupt or truncated.
    """
    try:
        with tarfile.open(path, "r:") as archive:
            for info in archive:
                if info.isreg():
                    yield Member(path, info.name, info.offset_data, info.size)
            # tarfile takes a corrupt header, and a truncated file, for the end mark.
            with path.open("rb") as file:
                file.seek(archive.offset)
                if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                    raise tarfile.ReadError("it ends before its end mark")
    except (tarfile.TarError, OSError, EOFError) as error:
        raise InputError(f"{path} is not a complete, uncompressed tar archive: {error}") from None


def is_hidden_member(name: str) -> bool:
    """Whether a file in an archive, or a directory on the way to it, is hidden or of a system."""
    return name.rpartition("/")[2] in ("", ".", "..") or any(
        is_hidden(part) for part in name.split("/") if part not in ("", ".", ".."))


def archive_images(path: Path, left_out: LeftOut) -> list[Member]:
    """The images of an archive, by suffix. The others are counted in `left_out`.

    Raises InputError as `archive_members` does, and for an archive without images.
    """
    images, here = [], LeftOut()
    for member in archive_members(path):
        if is_hidden_member(member.name):
            here.add(HIDDEN)
        elif is_image(suffix_of(member.name.rpartition("/")[2]), here):
            images.append(member)
    if not images:
        raise InputError(f"{path} has no images in it" + (f"; left out: {here}" if here else ""))
    left_out.update(here)
    return images
