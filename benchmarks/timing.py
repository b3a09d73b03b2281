"""How every script here measures: candidates interleaved in one process, medians with spread."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cvt.deploy.timing import interleaved, ratio, summary

__all__ = ["RESULTS", "interleaved", "keep", "ratio", "summary"]

RESULTS = Path(__file__).parent / "results"


def keep(name: str, result: Mapping[str, Any]) -> Path:
    """Write results/<name>.json, stamped with command, machine, versions and commit."""
    packages = ("torch", "torchvision", "transformers", "timm", "numpy", "pillow")
    stamp = {
        "command": " ".join(["python", *sys.argv]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _git("rev-parse", "--short", "HEAD") + ("+" if _git("status", "-s") else ""),
        "machine": {"cpu": _cpu(), "cores": os.cpu_count(), "system": platform.system()},
        "versions": {"python": platform.python_version(),
                     **{package: version(package) for package in packages}},
    }
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({**stamp, **result}, indent=2) + "\n")
    return path


def _git(*args: str) -> str:
    done = subprocess.run(["git", *args], capture_output=True, text=True, check=False,
                          cwd=Path(__file__).parent)
    return done.stdout.strip()


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
