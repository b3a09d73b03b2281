"""Options that several commands have, in the same words."""

from __future__ import annotations

import sys
from typing import get_args

from jsonargparse import Namespace

from cvt.cli.parser import Parser
from cvt.deploy.manifest import Precision
from cvt.deploy.sessions import Backend

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


def add_runtime(parser: Parser, auto: str) -> None:
    """Let `parser` take what decides how a model is computed; `auto` is what it is by default."""
    parser.add_argument("--backend", default="auto", choices=get_args(Backend),
                        help="what computes it (auto: what the model was exported for, else "
                        f"{auto})")
    parser.add_argument("--precision", choices=get_args(Precision), help="what it computes in "
                        "(default: what it was exported in, else fp32)")
    add_act(parser)
    add_device(parser)
    parser.add_argument("--trusted", action="store_true", help="open an export for PyTorch, which "
                        "can hold code: only for one that you made yourself")


def add_act(parser: Parser) -> None:
    """Let `parser` take --act."""
    parser.add_argument("--act", choices=["quick_gelu", "gelu"], help="the activation, where the "
                        "weights do not say theirs")


def add_device(parser: Parser) -> None:
    """Let `parser` take --device."""
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ...")


def add_quiet(parser: Parser) -> None:
    """Let `parser` take --quiet."""
    parser.add_argument("--quiet", action="store_true", help="no progress on the standard error")
