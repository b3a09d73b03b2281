"""`cvt export`."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from cvt.cli.options import MODEL, add_act
from cvt.cli.parser import Parser
from cvt.data.config import DataConfig

_DESCRIPTION = """Write a trained model for another runtime: a directory with the graph and a
manifest.json of preprocessing, classes and checksums. Before it is written, the graph is run by
its own runtime and compared with the PyTorch model on your images, or on noise where there are
none."""
_MAX_DROP = 1.0


def main(args: Sequence[str]) -> int:
    """Export; prints how near the graph is to the PyTorch model and where it is."""
    parser = Parser(prog="cvt export", description=_DESCRIPTION)
    parser.add_argument("source", metavar="MODEL", help=MODEL)
    parser.add_argument("destination", metavar="DIR", nargs="?", help="the directory to write "
                        "(default: exports/MODEL_FORMAT_PRECISION)")
    parser.add_argument("--to", default="onnx", choices=["onnx", "openvino", "torch"],
                        help="the runtime: ONNX Runtime, OpenVINO, or PyTorch alone (torch.export)")
    parser.add_argument("--precision", choices=["fp32", "bf16", "int8"], default="fp32",
                        help="what it computes in: onnx has fp32 and int8, openvino all three, "
                        "torch fp32 and bf16")
    parser.add_argument("--images", nargs="+", metavar="PATH", help="images, or folders of them, "
                        "to compare on and to calibrate int8 on")
    parser.add_argument("--data", type=DataConfig | None, default=None,
                        help="labelled images, by --data.name, --data.root and the "
                        "other data options of `cvt train`, to measure the accuracy on before and "
                        "after; its training images calibrate int8 where no --images are given")
    parser.add_argument("--split", choices=["val", "train", "all"], default="val",
                        help="the images of --data that accuracy is measured on")
    parser.add_argument("--max_drop", type=float, default=_MAX_DROP, help="points of top-1 "
                        "that bf16 and int8 may lose at most on --data")
    add_act(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace an exported model")
    chosen = parser.read(args)

    if chosen.data is None and (chosen.split, chosen.max_drop) != ("val", _MAX_DROP):
        parser.error("--split and --max_drop are about the images of --data, which is not given")

    from cvt.deploy.export import export

    destination = Path(chosen.destination or "exports/" + "_".join(
        (Path(chosen.source).resolve().name, chosen.to, chosen.precision)))
    manifest = export(chosen.source, destination, chosen.to, chosen.precision,
                      act=chosen.act, images=chosen.images, data=chosen.data, split=chosen.split,
                      max_drop=chosen.max_drop, overwrite=chosen.overwrite,
                      report=lambda text: print(f"cvt export: {text}", file=sys.stderr))
    print(_parity(manifest.parity))
    size = sum((destination / name).stat().st_size for name in manifest.hashes)
    print(f"graph: {destination / manifest.graph} ({size / 1e6:.1f} MB)")
    return 0


def _parity(parity: Mapping[str, float]) -> str:
    on = (f"{parity['images']:.0f} images" if parity["images"] else
          f"{parity['noise']:.0f} images of noise (name real ones with --images)")
    lines = [f"parity: differs by {parity['difference']:.1e} of the largest logit; the same class "
             f"in {parity['agreement']:.2%} of {on}"]
    if "labelled" in parity:
        lines.append(f"top-1: {parity['accuracy_before']:.2f} % before, "
                     f"{parity['accuracy_after']:.2f} % after, on {parity['labelled']:.0f} "
                     "labelled images")
    if "calibrated" in parity:
        lines.append(f"calibrated on {parity['calibrated']:.0f} images")
    return "\n".join(lines)
