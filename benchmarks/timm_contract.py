"""timm's own tests of models, of the version that is installed, on the variants registered here.

    python benchmarks/timm_contract.py [--models cvt_nano cvt_13 ...] [--source timm-1.0.31.tar.gz]

Downloads timm's source distribution with pip, so it needs the network or --source. Its
tests/test_models.py then runs in a process of its own, and again with the CvTs in its lists of
transformers and of models with `forward_intermediates`, where timm would list them. Every failure
must be one of `EXPECTED`; otherwise the exit code is 1.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import xml.etree.ElementTree as ET
from importlib.metadata import version
from pathlib import Path
from typing import Any

from timing import keep

TIMM = version("timm")

# The beginning of a test's name -> why it fails with a CvT.
TORCHSCRIPT = {
    "test_model_forward_torchscript[": "it compiles with TorchScript, which supports only a part "
                                       "of Python: not a loop over the modules of a tuple",
    "test_model_forward_fx_torchscript[": "it compiles an FX graph with TorchScript, which does "
                                          "not know its annotations",
}
EXPECTED = {
    "listed as a CNN": {
        **TORCHSCRIPT,
        "test_model_default_cfgs[": "it assumes a 4-D output of forward_features with the grid of "
                                    "pool_size; a CvT gives a sequence with a class token",
    },
    "listed as a transformer": TORCHSCRIPT,
}
HUB = ("test_model_load_pretrained[", "test_model_features_pretrained[")

# A conftest.py beside theirs: registers our models, and knows the marks of pytest-timeout.
CONFTEST = """
import cvt.weights.timm_models
def pytest_configure(config):
    config.addinivalue_line("markers", "timeout(seconds): ignored")
"""


def sdist(directory: Path) -> Path:
    """Download timm's source distribution with pip."""
    done = subprocess.run(
        [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check",
         "--no-binary", ":all:", "--no-deps", f"timm=={TIMM}", "-d", str(directory)],
        capture_output=True, text=True, check=False)
    found = list(directory.glob("timm-*.tar.gz"))
    if done.returncode or not found:
        raise SystemExit(f"timm {TIMM} cannot be downloaded: "
                         f"{(done.stderr.strip().splitlines() or ['no file'])[-1]}. The tests need "
                         "the network; or give the file with --source")
    return found[0]


def tests_of(archive: Path, directory: Path, *, transformer: bool) -> Path:
    """Unpack the tests into `directory`; returns the file, with the CvTs in its lists if asked."""
    with tarfile.open(archive) as tar:
        members = [m for m in tar.getmembers() if re.search(r"^timm-[^/]+/tests/", m.name)]
        if not members:
            raise SystemExit(f"{archive} has no tests directory; give another file with --source")
        tar.extractall(directory, members, filter="data")
    path = next(directory.glob("timm-*/tests/test_models.py"))
    (path.parent.parent / "conftest.py").write_text(CONFTEST)
    if transformer:
        text = path.read_text()
        for name, entry in (("NON_STD_FILTERS", "cvt_*"), ("FEAT_INTER_FILTERS", "timm_models")):
            text, count = re.subn(rf"^{name} = \[", f"{name} = ['{entry}',", text,
                                  flags=re.MULTILINE)
            if count != 1:
                raise SystemExit(f"timm {TIMM} has no list {name}; this script is for 1.0.31")
        path.write_text(text)
    return path


def run(path: Path, models: list[str]) -> dict[str, tuple[str, str]]:
    """Outcome and first line of the message of each test that has one of `models` in its name."""
    report = path.parent / "report.xml"
    wanted = " or ".join(f"{name}-" for name in models) + " or " + " or ".join(
        f"{name}." for name in models) + " or " + " or ".join(f"{name}]" for name in models)
    env = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n0", "-W", "ignore",
         "--rootdir", str(path.parent.parent), "-c", os.devnull, f"--junitxml={report}",
         "-k", wanted, str(path)], cwd=path.parent.parent, env=env, check=False,
        capture_output=True, text=True)
    if not report.is_file():
        raise SystemExit(f"pytest ended with {done.returncode}: {done.stdout[-2000:]}"
                         f"{done.stderr[-500:]}")
    outcomes = {}
    for case in ET.parse(report).iter("testcase"):
        problem = next((child for child in case if child.tag in ("failure", "error", "skipped")),
                       None)
        outcomes[str(case.get("name"))] = (
            "passed" if problem is None else problem.tag,
            "" if problem is None else str(problem.get("message")).splitlines()[0][:200])
    return outcomes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["cvt_nano", "cvt_13", "cvt_21", "cvt_w24"])
    parser.add_argument("--source", type=Path, help="timm's source distribution")
    args = parser.parse_args()
    result: dict[str, Any] = {"timm": TIMM, "models": args.models, "runs": {}}
    unexpected = []
    with tempfile.TemporaryDirectory(prefix="timm-contract-") as home:
        archive = args.source or sdist(Path(home))
        for listed, reasons in EXPECTED.items():
            path = tests_of(archive, Path(home) / listed.replace(" ", "_"),
                            transformer="transformer" in listed)
            outcomes = run(path, args.models)
            failures = {}
            for name, (outcome, message) in outcomes.items():
                if outcome not in ("failure", "error"):
                    continue
                why = next((why for start, why in reasons.items() if name.startswith(start)), None)
                why = why or ("it downloads from the hub" if name.startswith(HUB) else None)
                failures[name] = {"message": message, "expected": why}
                if why is None:
                    unexpected.append(name)
                print(f"{listed}: {name} {'fails as expected: ' + why if why else 'FAILS'}: "
                      f"{message}", flush=True)
            counts = {kind: sum(o == kind for o, _ in outcomes.values())
                      for kind in ("passed", "failure", "error", "skipped")}
            print(f"{listed}: {counts}", flush=True)
            result["runs"][listed] = {
                **counts, "failures": failures,
                "passed_tests": sorted(n for n, (o, _) in outcomes.items() if o == "passed"),
                "skipped_tests": {n: m for n, (o, m) in outcomes.items() if o == "skipped"}}
    result["unexpected"] = unexpected
    print(f"{len(unexpected)} unexpected failures")
    print(keep("timm_contract", result))
    sys.exit(1 if unexpected else 0)


if __name__ == "__main__":
    main()
