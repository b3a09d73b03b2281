"""The option --model of commands that need no model of one's own."""

from __future__ import annotations

import sys

from jsonargparse import Namespace

from cvt.cli.parser import Parser

_DEFAULT = "cvt_nano.fashion_mnist"  # what there is without a download


def add_model(parser: Parser, also: str = "") -> None:
    """Let `parser` take --model; `also` names what else it may be."""
    parser.add_argument("--model", metavar="MODEL", help=f"{also}the directory of a model in any "
                        "format, a file of weights, a tag of `cvt zoo`, or hf-hub:org/name "
                        f"(default: {_DEFAULT}, which lies in this package)")


def model_of(chosen: Namespace, parser: Parser) -> str:
    """The model chosen; a line on the standard error tells of the default."""
    if chosen.model is not None:
        return str(chosen.model)
    print(f"{parser.prog}: this is {_DEFAULT}, which knows ten kinds of clothes as Fashion-MNIST "
          "shows them (light on dark, 28x28, gray); --model chooses another", file=sys.stderr)
    return _DEFAULT
