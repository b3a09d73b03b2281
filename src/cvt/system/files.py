"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from pathlib import Path


def replace_file(path: str | Path, write: Callable[[Path], object]) -> None:
    """Call `write` with a temporary path beside `path`, then move the result into its place.

    Whoever reads `path` sees the old file or the new one, never a part; a failure leaves the old.
    Any number of threads may write, each another file.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    # Opened as any file is, so that the system itself applies the umask: mkstemp would keep the
    # file to its owner, and a process cannot read its umask without changing it for all threads.
    part.open("xb").close()
    mode = part.stat().st_mode
    try:
        write(part)
        part.chmod(mode)  # safetensors puts a file in its place that is its owner's alone
        with part.open("r+b") as file:
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
