"""The test suite as on other processors: fewer instructions, other threads, file by file.

    python benchmarks/other_processors.py [PATH ...] [--settings avx2 alone ...] [--workers 2]

PATHs are files or directories of tests; without any, the whole suite runs. Each setting runs them
once, limited by environment variables: ATEN_CPU_CAPABILITY for PyTorch's own kernels,
ONEDNN_MAX_CPU_ISA for oneDNN's, MKL_ENABLE_INSTRUCTIONS for MKL's. The exit code is 1 where a test
failed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from timing import keep

ROOT = Path(__file__).parents[1]
SETTINGS: dict[str, dict[str, str]] = {
    "native": {},
    "default": {"ATEN_CPU_CAPABILITY": "default"},
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2"},
    "onednn": {"ONEDNN_MAX_CPU_ISA": "AVX2"},
    "all": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2",
            "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "threads": {"OMP_NUM_THREADS": "2"},
    "hashes": {"PYTHONHASHSEED": "1"},
    "alone": {},
}
"""The variables of each setting; "alone" gives every file a process of its own."""


def measure(name: str, paths: list[str], workers: int) -> dict[str, Any]:
    """The results of the tests under the setting `name`, and the seconds that they took."""
    start, cpu = time.perf_counter(), children_seconds()
    if name == "alone":
        files = [str(file) for path in paths or ["tests"] for file in files_of(ROOT / path)]
        parts = [run(SETTINGS[name], [file], workers=0) for file in files]
    else:
        parts = [run(SETTINGS[name], paths, workers=workers)]
    return {
        "variables": SETTINGS[name],
        **{key: sum(part[key] for part in parts) for key in ("passed", "failed", "skipped")},
        "failures": [failure for part in parts for failure in part["failures"]],
        "seconds": time.perf_counter() - start, "cpu_seconds": children_seconds() - cpu}


def files_of(path: Path) -> list[Path]:
    return sorted(path.rglob("test_*.py")) if path.is_dir() else [path]


def run(variables: dict[str, str], args: list[str], *, workers: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as home:
        report = Path(home) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"--junitxml={report}",
                   *(["-n", str(workers), "--dist", "worksteal"] if workers else []), *args]
        done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True,
                              env={**os.environ, "OMP_NUM_THREADS": "1", **variables})
        if not report.exists():  # pytest itself ended, as where a test ends its process
            return {"passed": 0, "failed": 1, "skipped": 0, "failures": [
                f"pytest {' '.join(args)} ended with {done.returncode}: {done.stderr[-300:]}"]}
        cases = list(ElementTree.parse(report).iter("testcase"))
    bad = [case for case in cases if {"failure", "error"} & {part.tag for part in case}]
    skipped = [case for case in cases if case.find("skipped") is not None]
    return {"passed": len(cases) - len(bad) - len(skipped), "failed": len(bad),
            "skipped": len(skipped),
            "failures": [f"{case.get('classname')}::{case.get('name')}" for case in bad]}


def children_seconds() -> float:
    times = os.times()
    return times.children_user + times.children_system


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("paths", nargs="*")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    rows = {}
    print(f"{'setting':<10}{'passed':>8}{'failed':>8}{'skipped':>9}{'seconds':>9}{'of CPU':>8}")
    for name in args.settings:
        row = rows[name] = measure(name, args.paths, args.workers)
        print(f"{name:<10}{row['passed']:>8}{row['failed']:>8}{row['skipped']:>9}"
              f"{row['seconds']:>9.0f}{row['cpu_seconds']:>8.0f}", flush=True)
        for failure in row["failures"]:
            print(f"    {failure}", flush=True)
    print(keep("other_processors", {"tests": args.paths or ["tests"], "workers": args.workers,
                                    "settings": rows}))
    return int(any(row["failed"] for row in rows.values()))


if __name__ == "__main__":
    sys.exit(main())
