"""`cvt bench`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from cvt.cli.parser import Parser

if TYPE_CHECKING:
    from cvt.deploy.bench import Comparison, Row

_DESCRIPTION = """Measure, on this machine's CPU, our networks by every backend beside those of
timm and transformers: one process, one call of each in turn, medians with quartiles. Weights are
random, and nothing is downloaded."""


def main(args: Sequence[str]) -> int:
    """Measure and print a table a batch size, or JSON."""
    parser = Parser(prog="cvt bench", description=_DESCRIPTION)
    parser.add_argument("models", nargs="*", default=["cvt_13"], help="variants, tags of `cvt zoo` "
                        "or configuration files (default: cvt_13)")
    parser.add_argument("--backends", nargs="*", metavar="NAME", help="plain (the model as it is), "
                        "eager, compile, openvino, onnxruntime (default: those that are installed)")
    parser.add_argument("--precision", nargs="+", default=["fp32"], metavar="NAME",
                        help="fp32, bf16, int8 (default: fp32); what a backend lacks is skipped")
    parser.add_argument("--peers", nargs="*", metavar="LIBRARY:NAME", help="timm:NAME, "
                        "transformers:cvt (the port of the same networks); none after --peers "
                        "alone (default: ViT-S, Swin-T and ConvNeXt-T of timm, and the port)")
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 16], help="images a call, one "
                        "table each")
    parser.add_argument("--size", type=int, default=224, help="side of the images in pixels")
    parser.add_argument("--rounds", type=int, default=9, help="turns of each, at least 3")
    parser.add_argument("--threads", type=int, help="of PyTorch and the backends (default: as "
                        "PyTorch chooses)")
    parser.add_argument("--train", action="store_true", help="training steps (AdamW), not forward "
                        "passes")
    parser.add_argument("--base", metavar="ROW", help="what ratios are to, such as 'cvt_13 eager' "
                        "or timm:convnext_tiny (default: the first row)")
    parser.add_argument("--json", action="store_true", help="print JSON, every round's time in it")
    parser.add_argument("--chart", metavar="FILE", help="write a bar chart, a .png")
    chosen = parser.read(args)
    if chosen.chart and Path(chosen.chart).suffix.lower() != ".png":
        parser.error(f"--chart {chosen.chart} must end in .png")
    if chosen.rounds < 3:
        parser.error(f"--rounds {chosen.rounds} must be at least 3, for a median with quartiles")
    for name in ("batch", "size", "threads"):
        values = getattr(chosen, name)
        for value in values if isinstance(values, list) else [values]:
            if value is not None and value < 1:
                parser.error(f"--{name} {value} must be at least 1")

    from cvt.deploy.bench import compare

    with Console(stderr=True).status("preparing") as status:
        comparison = compare(chosen.models, backends=chosen.backends, precisions=chosen.precision,
                             peers=chosen.peers, batches=chosen.batch, size=chosen.size,
                             rounds=chosen.rounds, threads=chosen.threads, train=chosen.train,
                             base=chosen.base, progress=status.update)
    for line in comparison.skipped:
        print(f"cvt bench: skipped {line}", file=sys.stderr)
    if chosen.json:
        print(json.dumps(comparison.to_dict()))
    else:
        _print(comparison)
    if chosen.chart:
        from cvt.deploy.chart import draw

        draw(comparison, chosen.chart)
        print(f"cvt bench: wrote {chosen.chart}", file=sys.stderr)
    return 0


def _print(comparison: Comparison) -> None:
    console = Console()
    precisions = {row.precision for row in comparison.rows}
    # Said once where there is but one, which leaves room for whole names in 80 columns.
    shared = f" {precisions.pop()}" if len(precisions) == 1 else ""
    what = f"{'Training steps' if comparison.train else 'Inference'}{shared}"
    for batch in dict.fromkeys(row.batch for row in comparison.rows):
        table = Table(Column("network", overflow="fold"), Column("computed by", no_wrap=True),
                      *(Column(name, justify="right", no_wrap=True)
                        for name in ("img/s", "ms", "quartiles", "GFLOP/s", "peak", "ratio")),
                      title=Text(f"{what}, batch {batch}, {comparison.size}x{comparison.size}"),
                      box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
        for row in comparison.rows:
            if row.batch == batch:
                table.add_row(*_cells(row, bool(shared)))
        console.print(table)
    rates = ", ".join(f"{rate / 1e9:.0f} GFLOP/s {name}"
                      for name, rate in comparison.peaks.items()) or "not measured for int8"
    console.print(f"ms a call: median and quartiles of {comparison.rounds} rounds. "
                  f"GFLOP/s: 2 x multiply-adds, attention included"
                  f"{', a step as 3 forward passes' if comparison.train else ''}. peak: the share "
                  f"of this machine's own matrix product ({rates}). ratio: to {comparison.base}. "
                  f"{comparison.hardware}; {comparison.machine['versions']}",
                  highlight=False, markup=False)


def _cells(row: Row, one_precision: bool) -> list[Text]:
    from cvt.deploy.timing import summary

    times = summary(row.seconds)
    low, mid, high = (1e3 * times[f"{key}_s"] for key in ("quartile1", "median", "quartile3"))
    digits = 0 if mid >= 100 else 1 if mid >= 10 else 2
    utilization = "-" if row.utilization is None else f"{row.utilization:.0%}"
    return [Text(cell) for cell in (
        row.network.rpartition(":")[2],
        row.backend if one_precision else f"{row.backend} {row.precision}",
        f"{row.images_per_s:.3g}" if row.images_per_s < 1000 else f"{row.images_per_s:.0f}",
        f"{mid:.{digits}f}", f"{low:.{digits}f}-{high:.{digits}f}", f"{row.gflops:.3g}",
        utilization,
        f"{row.speedup['median']:.2f}")]
