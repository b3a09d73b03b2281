"""The machine a figure was measured on, in words."""

from __future__ import annotations

import ctypes
import os
import platform
from importlib.metadata import version
from pathlib import Path


def describe_machine() -> dict[str, str]:
    """Processor, cores, system and versions; no torch is imported for it."""
    return {
        "processor": f"{_processor()}, {os.cpu_count()} cores",
        "system": f"{platform.system()} {platform.machine()}",
        "versions": ", ".join([f"Python {platform.python_version()}",
                               *(f"{name} {version(name)}" for name in ("cvt-torch", "torch"))]),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown processor"


def keep_freed_memory() -> bool:
    """Let the C library keep large freed blocks instead of giving them back to the system.

    A network allocates blocks of the same tens of megabytes in every step. By default glibc maps
    and unmaps the largest each time, and the system clears their pages anew. For a process that
    does nothing but train; memory that others might want stays with it until it ends. False where
    the library has no such setting (not glibc).
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    mmap_max, trim_threshold = -4, -1  # M_MMAP_MAX and M_TRIM_THRESHOLD of malloc.h
    return bool(mallopt(mmap_max, 0) and mallopt(trim_threshold, 2**31 - 1))
