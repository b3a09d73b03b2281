"""How every script here measures: candidates interleaved in one process, medians with spread."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def interleaved(candidates: Mapping[str, Callable[[], object]], rounds: int,
                warmup: int = 2) -> dict[str, list[float]]:
    """Seconds of each call, `rounds` a candidate; the order turns round by round."""
    for call in candidates.values():
        for _ in range(warmup):
            call()
    names, seconds = list(candidates), {name: [] for name in candidates}
    for i in range(rounds):
        for name in names[i % len(names):] + names[: i % len(names)]:
            start = time.perf_counter()
            candidates[name]()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def summary(seconds: list[float]) -> dict[str, float]:
    """Median and quartiles in seconds."""
    low, mid, high = statistics.quantiles(seconds, n=4)
    return {"median_s": mid, "quartile1_s": low, "quartile3_s": high, "n": len(seconds)}


def ratio(base: list[float], ours: list[float]) -> dict[str, float]:
    """How many times faster `ours` is than `base`, from the rounds they shared."""
    low, mid, high = statistics.quantiles([b / o for b, o in zip(base, ours, strict=True)], n=4)
    return {"median": mid, "quartile1": low, "quartile3": high}


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
