"""`cvt convert`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from cvt.cli.options import MODEL, add_act
from cvt.cli.parser import Parser

_DESCRIPTION = """Write a checkpoint in another format, bit for bit: ours, the official code's (one
file), a directory of transformers, or one of timm's hub; with --dtype fp16 in half the bytes. What
the new format's users will see differ is said on the standard error."""


def main(args: Sequence[str]) -> int:
    """Convert; prints the files that were written."""
    parser = Parser(prog="cvt convert", description=_DESCRIPTION)
    parser.add_argument("source", metavar="MODEL", help=MODEL)
    parser.add_argument("destination", metavar="DESTINATION", help="a directory; for --to "
                        "official a file such as x.pth")
    parser.add_argument("--to", required=True, choices=["native", "official", "huggingface",
                                                        "timm"], help="the format to write")
    parser.add_argument("--model", help="the tag, variant or configuration file that a bare file "
                        "of weights is of, where its shapes do not show it")
    add_act(parser)
    parser.add_argument("--dtype", choices=["fp32", "fp16"], default="fp32", help="fp16 rounds to "
                        "float16: half the bytes; every command here reads it as fp32")
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there")
    chosen = parser.read(args)

    from cvt.weights.convert import convert

    done = convert(chosen.source, chosen.destination, chosen.to, model=chosen.model,
                   act=chosen.act, dtype=chosen.dtype, overwrite=chosen.overwrite)
    print(done.report, file=sys.stderr)
    for note in done.notes:
        print(f"cvt convert: {note}", file=sys.stderr)
    for path in done.written:
        print(path)
    return 0
