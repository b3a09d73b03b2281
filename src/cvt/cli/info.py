"""`cvt info`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cvt.cli.parser import Parser
from cvt.config import VARIANTS


def main(args: Sequence[str]) -> int:
    """Print what a variant, a configuration file or a trained model costs at a size."""
    parser = Parser(prog="cvt info", description="Parameters, multiply-adds (attention included) "
                    "and the grid, width and tokens of every stage, for any image size.")
    parser.add_argument("model", nargs="?", default="cvt_13", help="a variant "
                        f"({', '.join(VARIANTS)}), a tag of `cvt zoo`, a configuration file, or a "
                        "model's directory (default: cvt_13)")
    parser.add_argument("--size", metavar="N or HxW", help="image size in pixels (default: the "
                        "model's own)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    chosen = parser.read(args)

    from cvt.networks.complexity import multiply_adds, parameters, stage_shapes
    from cvt.weights.models import config_of

    config = config_of(chosen.model)
    size = _size(parser, chosen.size) if chosen.size else (config.image_size, config.image_size)
    shapes = stage_shapes(config, size)
    count, cost = parameters(config), multiply_adds(config, size)
    if chosen.json:
        print(json.dumps({"model": chosen.model, "size": size, "parameters": count,
                          "multiply_adds": cost,
                          "stages": [{**asdict(s), "tokens": s.tokens} for s in shapes]}))
        return 0
    table = Table("stage", "grid", "stride", "dim", "heads", "blocks", "tokens", "keys",
                  "parameters", title=Text(f"{chosen.model} at {size[0]}x{size[1]}"),
                  caption=f"{count:,} parameters, {cost / 1e9:.3f} G multiply-adds an image, "
                          "attention included")
    for i, s in enumerate(shapes, 1):
        keys = " or ".join(f"{h * w + s.cls_token:,}" for h, w in s.keys)
        table.add_row(str(i), f"{s.grid[0]}x{s.grid[1]}", str(s.stride), str(s.dim),
                      str(s.num_heads), str(s.depth), f"{s.tokens:,}", keys,
                      f"{s.parameters:,}")
    Console().print(table)
    return 0


def _size(parser: Parser, text: str) -> tuple[int, int]:
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(p.isdecimal() and int(p) > 0 for p in parts):
        parser.error(f"--size {text} is not a size; write 224, or 384x256 for height x width")
    return int(parts[0]), int(parts[-1])
