"""Description, cores, memory and instructions of the machine. No torch."""

from __future__ import annotations

import contextlib
import os
import platform
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil


def describe_machine() -> dict[str, str]:
    """Processor, cores, operating system and versions of Python and packages."""
    return {
        "processor": f"{_processor()}, {os.cpu_count()} cores",
        "system": f"{platform.system()} {platform.machine()}",
        "versions": ", ".join([f"Python {platform.python_version()}",
                               *(f"{name} {_version(name)}" for name in ("cvt-torch", "torch"))]),
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "missing"


def _processor() -> str:
    name = re.search(r"^model name\s*:\s*(.*)$", _cpuinfo(), re.MULTILINE)
    return name[1] if name else platform.processor() or "unknown processor"


def _cpuinfo() -> str:
    info = Path("/proc/cpuinfo")
    return info.read_text(encoding="utf-8") if info.exists() else ""


def available_cores() -> int:
    """Cores that this process may use, if the system reports them, divided by the number of
    processes that a launcher such as torchrun started on this machine."""
    cores = (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity")
             else os.cpu_count() or 1)
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def available_memory(processes: int = 1) -> int:
    """Bytes that this process, one of `processes`, may hold: its share of the free ones and its
    own."""
    return int(psutil.virtual_memory().available // processes + psutil.Process().memory_info().rss)


def reset_peak_memory() -> None:
    """Begin `peak_memory` anew, which is possible on Linux alone."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_memory() -> int:
    """The most bytes that this process has held: since `reset_peak_memory` on Linux, elsewhere
    since it began."""
    status = Path("/proc/self/status")
    text = status.read_text(encoding="utf-8") if status.exists() else ""
    if kilobytes := re.search(r"^VmHWM:\s+(\d+) kB$", text, re.MULTILINE):
        return int(kilobytes[1]) * 1024
    with contextlib.suppress(ImportError):  # there is none on Windows
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in bytes on macOS
    memory = psutil.Process().memory_info()
    return int(getattr(memory, "peak_wset", memory.rss))


def native_bf16() -> bool:
    """Whether the processor has bfloat16 multiply instructions, as reported by Linux.

    Other processors emulate them, which is slower than float32.
    """
    return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(_flags())


def native_int8() -> bool:
    """Whether the processor has 8-bit dot product instructions, as reported by Linux."""
    return not {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"}.isdisjoint(_flags())


def _flags() -> list[str]:
    flags = re.search(r"^(?:flags|Features)\s*:(.*)$", _cpuinfo(), re.MULTILINE)
    return flags[1].split() if flags else []
