"""The files that a check leaves."""

from __future__ import annotations

from pathlib import Path

from cvt.data.check import DatasetReport
from cvt.data.dataset import Dataset
from cvt.data.manifest import save_manifest
from cvt.data.sheet import contact_sheet
from cvt.system.errors import InputError
from cvt.system.files import replace_file
from cvt.system.schema import write_mapping

FINDINGS, MANIFEST, SHEET = "check.json", "manifest.csv", "contact_sheet.png"


def check_output(output: Path, root: Path | None) -> None:
    """Raise InputError where the files of a check would lie among the images of `root`."""
    if output.exists() and not output.is_dir():
        raise InputError(f"--output {output} is a file; give a directory")
    if root is not None and root.is_dir() and (
            root.resolve() in (output.resolve(), *output.resolve().parents)):
        raise InputError(f"--output {output} is inside {root}, so the contact sheet would be taken "
                         "for one of its images; give a directory beside it")


def save_findings(report: DatasetReport, dataset: Dataset, output: Path, title: str
                  ) -> tuple[Path, ...]:
    """Write all that was found, a contact sheet called `title`, and a manifest where each image
    is a file; the paths of what was written.

    The manifest names the split and what is unreadable: as data.root it trains without that.
    """
    output.mkdir(parents=True, exist_ok=True)
    unreadable = {u.name: u.reason for u in report.unreadable}
    write_mapping(report.to_dict(), output / FINDINGS)
    sheet = contact_sheet(dataset, title, unreadable)
    replace_file(output / SHEET, lambda part: sheet.save(part, format="PNG", optimize=True))
    if not dataset.all.files:
        return output / FINDINGS, output / SHEET
    save_manifest(output / MANIFEST, dataset, unreadable)
    return output / FINDINGS, output / SHEET, output / MANIFEST
