"""What `make dist` built holds exactly what the repository holds; prints the sizes."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).parents[1]
MOST = 10_000_000  # bytes of a wheel
# Package data, which an import would not miss.
NEEDED = ("cvt/py.typed", "cvt/evaluate/report.css", "cvt/evaluate/report.html.j2",
          "cvt/serve/page/index.html", "cvt/serve/page/page.css", "cvt/serve/page/page.js",
          "cvt/weights/shipped/cvt_nano.digits/model.safetensors",
          "cvt/weights/shipped/cvt_nano.fashion_mnist/model.safetensors")


def tracked(root: Path = ROOT) -> set[str]:
    """The files under version control. Raises CalledProcessError where there is none."""
    # In a container the clone may be another user's, which git would not look into.
    return set(subprocess.run(["git", "-C", root, "-c", "safe.directory=*", "ls-files", "-z"],
                              check=True, text=True, capture_output=True
                              ).stdout.split("\0")) - {""}


def names_of(archive: Path) -> set[str]:
    """The files of a wheel, or those of an sdist below its one directory."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as file:
            return set(file.namelist())
    with tarfile.open(archive) as file:
        return {member.name.partition("/")[2] for member in file if not member.isdir()}


def faults(names: set[str], wanted: set[str], allowed: str) -> list[str]:
    """What `names` has beside `wanted` and a pattern, and what it lacks, a line each."""
    odd = {name for name in names - wanted if not fnmatch(name, allowed)}
    return [*(f"odd, for it is not under version control: {name}" for name in sorted(odd)),
            *(f"missing: {name}" for name in sorted(wanted - names))]


def main(folder: str) -> int:
    """Check the one sdist and the one wheel in a folder."""
    (sdist,), (wheel,) = Path(folder).glob("*.tar.gz"), Path(folder).glob("*.whl")
    files = tracked()
    package = {name.removeprefix("src/") for name in files if name.startswith("src/cvt/")}
    found = [f"{sdist.name}: {line}" for line in faults(names_of(sdist), files, "PKG-INFO")]
    found += [f"{wheel.name}: {line}" for line in
              faults(names_of(wheel), package | set(NEEDED), "cvt_torch-*.dist-info/*")]
    if wheel.stat().st_size >= MOST:
        found.append(f"{wheel.name} has {wheel.stat().st_size:,} bytes; at most {MOST:,}")
    for archive in (sdist, wheel):
        print(f"{archive.name}: {archive.stat().st_size / 1e6:.2f} MB, "
              f"{len(names_of(archive))} files")
    print(*found, sep="\n", end="\n" * bool(found))
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
