"""Shared by the benchmarks: interleaved timing, medians with quartiles, stamped result files."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from cvt.deploy.timing import interleaved, ratio, summary
from cvt.system.machine import describe_machine

__all__ = ["RESULTS", "interleaved", "keep", "ratio", "stamp", "summary"]

RESULTS = Path(__file__).parent / "results"


def keep(name: str, result: Mapping[str, Any]) -> Path:
    """Write results/<name>.json with the stamp."""
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({**stamp(), **result}, indent=2) + "\n")
    return path


def stamp() -> dict[str, Any]:
    """Command, date, commit, machine and versions of the installed packages."""
    versions = {"python": platform.python_version()}
    for package in ("torch", "torchvision", "triton", "transformers", "timm", "numpy", "pillow"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "command": " ".join(["python", *sys.argv]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _git("rev-parse", "--short", "HEAD") + ("+" if _git("status", "-s") else ""),
        "machine": {"cpu": describe_machine()["processor"].rpartition(",")[0],
                    "cores": os.cpu_count(), "system": platform.system()},
        "versions": versions,
    }


def _git(*args: str) -> str:
    try:
        done = subprocess.run(["git", *args], capture_output=True, text=True, check=False,
                              cwd=Path(__file__).parent)
    except OSError:  # git is not installed
        return ""
    return done.stdout.strip()
