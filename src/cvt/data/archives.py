"""The files of a tar archive, each to be read alone."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from cvt.data.images import SUFFIXES
from cvt.system.errors import InputError


@dataclass(frozen=True, slots=True)
class Member:
    """A file of an archive, which is read where it lies; as text it is ARCHIVE:NAME."""

    archive: Path
    name: str
    offset: int
    """Bytes from the archive's start."""
    size: int
    """Bytes."""

    def __str__(self) -> str:
        return f"{self.archive}:{self.name}"

    def read(self) -> bytes:
        """The file's bytes. Raises OSError where the archive cannot be read."""
        with self.archive.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


def members(path: Path) -> Iterator[Member]:
    """Every regular file of an archive, in its order.

    Raises InputError for one that is compressed, in which nothing can be reached alone, or damaged.
    """
    try:
        with tarfile.open(path, "r:") as archive:
            for info in archive:
                if info.isreg():
                    yield Member(path, info.name, info.offset_data, info.size)
            # tarfile takes a damaged header, and the end of a file cut off, for the end mark.
            with path.open("rb") as file:
                file.seek(archive.offset)
                if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                    raise tarfile.ReadError("it ends before its end mark")
    except (tarfile.TarError, OSError, EOFError) as error:
        raise InputError(f"{path} is not a whole tar archive without compression: {error}"
                         ) from None


def images_of(path: Path) -> list[Member]:
    """The images of an archive, by suffix. Raises InputError as `members`, and for none."""
    found = [m for m in members(path) if PurePosixPath(m.name).suffix.lower() in SUFFIXES]
    if not found:
        raise InputError(f"{path} has no images in it")
    return found
