"""Atomic replacement of files."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from pathlib import Path


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
