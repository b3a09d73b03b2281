"""`pip-audit` over the pinned versions. Where no advisories can be reached it says so and goes on.

Exit code 1: an advisory that release/advisories.txt does not list, or a fault of the audit itself.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
# OSV rather than the package index: it answers for any package, while a mirror of the index often
# knows no advisories, which pip-audit takes for none.
COMMAND = (sys.executable, "-m", "pip_audit", "--vulnerability-service", "osv", "--timeout", "5",
           "--requirement", str(ROOT / "constraints.txt"), "--no-deps", "--disable-pip",
           "--format", "json", "--desc", "off", "--progress-spinner", "off")
# How pip-audit ends where its service is not there, does not answer, or answers with a fault.
UNREACHED = re.compile(r"^(requests\.exceptions\.|pip_audit\._service\.interface\.ServiceError"
                       r"|.*Could not connect to)", re.MULTILINE)


def ignored(text: str) -> list[str]:
    """The identifiers of a list with one and its reason a line. Raises ValueError without one."""
    lines = [line.split(maxsplit=1) for line in text.splitlines()
             if line.strip() and not line.startswith("#")]
    for line in lines:
        if len(line) < 2:
            raise ValueError(f"release/advisories.txt gives no reason for {line[0]}")
    return [line[0] for line in lines]


def audit(command: Sequence[str], seconds: float = 60) -> int:
    """Run pip-audit, print what it found; 0 if that is nothing or the service was not reached."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False,
                              timeout=seconds)
    except subprocess.TimeoutExpired:
        print(f"pip-audit: not audited, for the advisories took more than {seconds:g} s")
        return 0
    if not done.stdout.strip():
        if UNREACHED.search(done.stderr):
            print("pip-audit: not audited, for the advisories cannot be reached")
            return 0
        print(done.stderr, file=sys.stderr)
        return 1
    packages = json.loads(done.stdout)["dependencies"]
    found = [(package, vuln) for package in packages for vuln in package.get("vulns", ())]
    for package, vuln in found:
        print(f"pip-audit: {package['name']} {package['version']}: {vuln['id']}, mended in "
              f"{', '.join(vuln['fix_versions']) or 'no version yet'}")
    if found:
        print("pip-audit: move the pin in constraints.txt, or give a reason in "
              "release/advisories.txt")
    else:
        print(f"pip-audit: nothing known against {len(packages)} packages")
    return bool(found)


def main() -> int:
    """Audit constraints.txt."""
    passed = ignored((ROOT / "release/advisories.txt").read_text())
    return audit([*COMMAND, *(word for name in passed for word in ("--ignore-vuln", name))])


if __name__ == "__main__":
    sys.exit(main())
