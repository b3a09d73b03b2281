"""The command line: `cvt COMMAND`. A command is imported when it is called, and torch with it."""

from __future__ import annotations

import io
import logging
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from cvt import __version__
from cvt.system.errors import DivergedError, InputError, StoppedError, did_you_mean

COMMANDS = {
    "train": "train or fine-tune a CvT on your images, digits or Fashion-MNIST",
    "search": "search for the best CvT under a budget of multiply-adds",
    "evaluate": "score a trained model on labelled images and write a report",
    "predict": "classify images: files, folders, patterns or the standard input",
    "ablate": "test claims of the paper: Tables 5 to 8, and learning from less data",
    "explain": "show where the network looks: attention, rollout, Grad-CAM, tokens",
    "serve": "classify and explain over HTTP, with a page to try it",
    "data": "check a dataset, or copy it resized",
    "zoo": "list the published weights and their accuracy",
    "convert": "convert a checkpoint to the format of another tool",
    "export": "export a graph for ONNX Runtime, OpenVINO or torch.export",
    "info": "print parameters, multiply-adds and the shape of every stage",
    "doctor": "print what is installed, and what works on this machine",
    "bench": "compare the speed with models of timm and transformers",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; the exit code.

    0 done, 1 failed, 2 a wrong call, 5 a loss that is not finite, 128 + N stopped by signal N.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    _prepare()
    if not args or args[0] in ("-h", "--help"):
        print(_help(), file=sys.stdout if args else sys.stderr)
        return 0 if args else 2
    name, *rest = args
    if name == "--version":
        print(f"cvt {__version__}")
        return 0
    if name not in COMMANDS:
        print(f"cvt: there is no command {name!r}; {did_you_mean(name, COMMANDS)}", file=sys.stderr)
        return 2
    try:
        code: int = import_module(f"cvt.cli.{name}").main(rest)
        return code
    except SystemExit as stop:  # the parser's: 0 after --help, 2 for a wrong call
        return int(stop.code or 0)
    except (InputError, DivergedError, StoppedError) as error:
        print(f"cvt {name}: {error}", file=sys.stderr)
        if isinstance(error, StoppedError):
            return error.code
        return 5 if isinstance(error, DivergedError) else 1
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "torchvision"):
            raise
        print(f"cvt {name}: this needs PyTorch, which is not installed; pip install torch "
              "torchvision (a directory of `cvt export` to onnx or openvino predicts without)",
              file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader of our output has left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        print(f"cvt {name}: {what}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"cvt {name}: interrupted", file=sys.stderr)
        return 130


def _prepare() -> None:
    """Settings of the process that PyTorch and the console need on some machines."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            # A class may have a name that the console cannot show, such as one of Windows.
            stream.reconfigure(errors="backslashreplace")
    if sys.platform == "darwin":
        # PyTorch reads it when it is imported, and then warns of each operation that MPS lacks.
        os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")
    # A CUDA toolkit without a GPU, which PyTorch looks for when it imports its compiler.
    logging.getLogger("torch.utils.cpp_extension").addFilter(_is_worth_saying)


def _is_worth_saying(record: logging.LogRecord) -> bool:
    return "No CUDA runtime is found" not in record.getMessage()


def _help() -> str:
    commands = "\n".join(f"  {name:<10}{summary}" for name, summary in COMMANDS.items())
    return (f"cvt {__version__}: the Convolutional vision Transformer (arXiv:2103.15808)\n\n"
            f"usage: cvt COMMAND [OPTIONS]\n\n{commands}\n\n"
            "cvt COMMAND --help lists its options. Start with: cvt train")
