"""Atomic replacement of files, and files that other systems named or wrote."""

from __future__ import annotations

import codecs
import functools
import os
import secrets
import unicodedata
from collections.abc import Callable, Mapping
from pathlib import Path

from cvt.system.errors import InputError


def replace_file(path: str | Path, write: Callable[[Path], object]) -> None:
    """Call `write` with a temporary path in the same directory, then rename it to `path`.

    Readers of `path` see the old file or the new one, never a part of it; after a failure, the old
    one. Thread-safe for different paths.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    # open() applies the umask. mkstemp would make the file private to its owner, and a process
    # cannot read its umask without changing it for all threads.
    part.open("xb").close()
    mode = part.stat().st_mode
    try:
        write(part)
        part.chmod(mode)  # safetensors replaces it by a file that is private to its owner
        with part.open("r+b") as file:
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def read_text(path: str | Path) -> str:
    """The text of a file in UTF-8, or in UTF-16 if it begins with a byte order mark, without that
    mark. Bytes that are not UTF-8 stay, as in names of files.

    Line breaks are as in the file. Raises InputError for UTF-16 that is corrupt.
    """
    data = Path(path).read_bytes()
    if not data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-8-sig", "surrogateescape")
    try:
        return data.decode("utf-16")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not text in UTF-16 ({error.reason}); save it as UTF-8"
                         ) from None


def find_file(path: str | Path) -> Path:
    """`path` as the disk spells it, if a table or a list from another system spells it otherwise.

    The disk may have another Unicode normalization: macOS writes decomposed letters, others do not.
    A backslash separates directories, as on Windows, unless there is a file with one in its name. A
    path that is not found either way is returned as it is.
    """
    text = str(path)
    try:
        os.fsencode(text)
    except UnicodeEncodeError:  # in the locale C, where names of files are bytes to Python
        text = os.fsdecode(text.encode("utf-8", "surrogateescape"))
    path = Path(text)
    if (text.isascii() and "\\" not in text) or os.path.lexists(path) or "\0" in text:
        return path
    for spelling in (path, Path(text.replace("\\", "/"))):
        found = Path(spelling.anchor)
        for part in spelling.relative_to(found).parts:
            here = found / part
            found = here if os.path.lexists(here) else found / _entries(found).get(_nfc(part), part)
        if os.path.lexists(found):
            return found
    return path


def _entries(directory: Path) -> Mapping[str, str]:
    """The names in a directory, by their NFC; empty if it cannot be read."""
    try:
        return _listed(str(directory), directory.stat().st_mtime_ns)
    except (OSError, ValueError):  # ValueError for a name that no directory can have
        return {}


@functools.lru_cache(maxsize=256)
def _listed(directory: str, _: int) -> Mapping[str, str]:
    return {_nfc(name): name for name in os.listdir(directory)}


def _nfc(name: str) -> str:
    return unicodedata.normalize("NFC", name)
