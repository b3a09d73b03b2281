"""`cvt explain`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from cvt.cli.options import RULE, add_act, add_device, add_model, is_model, model_of
from cvt.cli.parser import Parser
from cvt.system.text import printable

STDIN = "-"


def main(args: Sequence[str]) -> int:
    """Write what the network looks at; prints the classes and where the images are."""
    parser = Parser(prog="cvt explain", description="Show where a network looks in an image: "
                    "attention of the class token by block and head, attention rollout, Grad-CAM "
                    "and the tokens of every stage, as one sheet and as a file each.")
    add_model(parser, accepts=is_model(parser), rule=RULE)
    parser.add_argument("image", metavar="IMAGE", help="an image file, or - for the standard input")
    parser.add_argument("--target", metavar="CLASS", help="the class that Grad-CAM is of (default: "
                        "the most probable)")
    parser.add_argument("--stages", type=int, nargs="*", help="stages to show Grad-CAM for, "
                        "counted from 1 (default: all)")
    add_act(parser)
    add_device(parser)
    parser.add_argument("--output", metavar="DIR", help="where the images go (default: "
                        "explained/NAME)")
    parser.add_argument("--json", action="store_true", help="write the maps as numbers besides, to "
                        "explanation.json")
    chosen = parser.read(args)

    from cvt.data.images import read_image
    from cvt.explain.run import explain
    from cvt.explain.sheet import write_explanation
    from cvt.system.device import pick_device
    from cvt.weights.models import load_model

    source = chosen.image
    image = read_image(sys.stdin.buffer.read(), "the standard input") if source == STDIN else (
        read_image(source))
    name = model_of(chosen, parser)
    model, card = load_model(name, act=chosen.act)
    result = explain(model.to(pick_device(chosen.device)), card, image, target=chosen.target,
                     stages=chosen.stages)
    output = Path(chosen.output or f"explained/{'stdin' if source == STDIN else Path(source).stem}")
    page = write_explanation(result, output, title=f"{source}, {name}", arrays=chosen.json)
    for name, probability in result.classes[:5]:
        print(f"{probability:6.1%}  {printable(name)}")
    print(f"sheet: {page}")
    return 0
