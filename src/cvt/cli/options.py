"""Options that several commands have, in the same words."""

from __future__ import annotations

import glob
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import get_args

from jsonargparse import Namespace

from cvt.cli.parser import Parser
from cvt.data.config import guess_source
from cvt.deploy.manifest import MANIFEST, Precision
from cvt.deploy.sessions import Backend
from cvt.system.errors import did_you_mean
from cvt.weights.card import CONFIG
from cvt.zoo import ZOO

_DEFAULT = "cvt_nano.fashion_mnist"  # what there is without a download
MODEL = "the directory of a model in any format, a file of weights, a tag of `cvt zoo`, or "\
    "hf-hub:org/name"
"""What a model may be, for help texts."""
_WEIGHTS = (".safetensors", ".pth", ".pt", ".bin")


def add_config(parser: Parser) -> None:
    """Let `parser` take --config, and --print_config with it."""
    parser.add_argument("--config", action="config", metavar="FILE",
                        help="a YAML file with any of the options")
    parser._option_string_actions["--print_config"].help = (
        "print the configuration that results, and exit; =skip_default leaves out the defaults")


def add_images(parser: Parser) -> None:
    """Let `parser` take a positional PATH for --data.root, which guesses --data.name."""
    def options(path: str, given: Collection[str]) -> dict[str, str]:
        if path in ("digits", "fashion_mnist") and not Path(path).exists():
            parser.error(f"there is no directory {path}; for the dataset give --data.name {path}")
        # A run that is resumed keeps its kind of dataset, which may have moved.
        return {"data.root": path} | ({} if "resume" in given else {
            "data.name": guess_source(path)})

    parser.add_shorthand("PATH", "the images, in place of --data.root: a directory with train/ and "
                         "val/ or with one sub-directory for each class, a table (.csv, .tsv, "
                         ".parquet), or a directory of .tar archives; --data.name is guessed, "
                         "unless it is given", options)


def add_model(parser: Parser, also: str = "", *, default: str | None = _DEFAULT,
              accepts: Callable[[str], bool] = lambda _: True, rule: str = "") -> None:
    """Let `parser` take MODEL, a positional, or --model.

    also: what else it may be. default: the model without either; None for none. accepts: whether a
    first positional is the model, where other positionals follow; rule: that in words.
    """
    parser.add_shorthand("MODEL", f"the model, in place of --model{rule}",
                         lambda model, _: {"model": model}, accepts)
    parser.add_argument("--model", metavar="MODEL", help=f"{also}{MODEL}" + (
        f" (default: {default}, which is part of this package)" if default else ""))


def model_of(chosen: Namespace, parser: Parser, default: str | None = _DEFAULT) -> str:
    """The model chosen; the default is named on the standard error."""
    if chosen.model is not None:
        return str(chosen.model)
    if default is None:
        parser.error("give a MODEL, such as the directory that `cvt train` wrote")
    print(f"{parser.prog}: this is {default}, which knows ten kinds of clothes as Fashion-MNIST "
          "shows them (light on dark, 28x28, gray); --model chooses another", file=sys.stderr)
    return default


RULE = (". The first of several paths is the model if it is a directory with "
        f"{CONFIG} or {MANIFEST}, a file of weights ({', '.join(_WEIGHTS)}), a tag or hf-hub:...; "
        "else it is an image")


def is_model(parser: Parser) -> Callable[[str], bool]:
    """Whether a first positional is a model and not an image; exits with 2 where it may be both
    or neither."""
    from cvt.data.images import SUFFIXES

    def accepts(name: str) -> bool:
        path = Path(name)
        tag = name in ZOO or name.startswith("hf-hub:")
        if tag and path.exists():
            parser.error(f"{name} is a tag and a path here; write ./{name} for the path, or "
                         f"--model {name} for the tag")
        if path.is_dir():
            return (path / CONFIG).is_file() or (path / MANIFEST).is_file()
        if path.suffix.lower() in _WEIGHTS or tag:
            return True
        suffixes = {*SUFFIXES, ".tar"}
        if name != "-" and path.suffix.lower() not in suffixes and not (
                path.exists() or glob.has_magic(name)):
            if name.startswith("cvt_") and "/" not in name:
                parser.error(f"there is no model {name!r}; {did_you_mean(name, ZOO)}")
            parser.error(f"there is nothing at {name}, neither a model nor an image")
        return False

    return accepts


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
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, xpu, mps; auto "
                        "is the accelerator if there is one (CUDA, XPU, MPS), else the CPU")


def add_quiet(parser: Parser) -> None:
    """Let `parser` take --quiet."""
    parser.add_argument("--quiet", action="store_true", help="no progress on the standard error")
