"""`cvt doctor`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from cvt.cli.parser import Parser


def main(args: Sequence[str]) -> int:
    """Print what is installed and what works here; 1 where PyTorch does not compute."""
    parser = Parser(prog="cvt doctor", description="What is installed, what each backend can do on "
                    "this machine (each is tried on a small network), and what to install for "
                    "more. The exit code is 1 where something is missing that everybody needs.")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--compile", action="store_true", help="try torch.compile too, which takes "
                        "a minute or more")
    chosen = parser.read(args)

    from cvt.deploy.doctor import diagnose

    report = diagnose(compile=chosen.compile)
    if chosen.json:
        print(json.dumps({**asdict(report), "healthy": report.healthy}, indent=2))
        return 0 if report.healthy else 1

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    facts = Table.grid("", "", padding=(0, 2))
    for name, value in report.machine.items():
        facts.add_row(Text(name, style="bold"), Text(value))
    console.print(facts)
    packages = Table("package", "version", "for")
    for package in report.packages:
        packages.add_row(package.name, package.version or Text("missing", style="red"),
                         Text("everything" if package.extra is None else f"[{package.extra}]"))
    console.print(packages)
    trials = Table("backend", "precision", "on", "one image", "difference", "")
    for trial in report.trials:
        trials.add_row(
            trial.backend, trial.precision, trial.device,
            f"{trial.milliseconds:.2f} ms" if trial.milliseconds is not None else
            Text("does not work", style="red"),
            "" if trial.difference is None else f"{trial.difference:.1e}",
            Text(trial.reason or ""))
    console.print(trials)
    for extra, names in report.missing().items():
        what = f"'cvt-torch[{extra}]'" if extra else " ".join(names)
        print(f"for {', '.join(names)}: pip install {what}")
    print("well" if report.healthy else "not well: see what is missing above")
    return 0 if report.healthy else 1
