"""`cvt serve`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from cvt.cli.options import add_config, add_model, add_runtime, model_of
from cvt.cli.parser import Parser
from cvt.deploy.manifest import MANIFEST
from cvt.serve.config import ServeConfig
from cvt.system.errors import InputError
from cvt.system.extras import require

_KEY = "CVT_API_KEY"


def main(args: Sequence[str]) -> int:
    """Serve a model over HTTP until SIGTERM or Ctrl+C; every request in hand is answered first."""
    parser = Parser(prog="cvt serve", description="Classify and explain images over HTTP, with a "
                    "page at / to try it. It listens on this machine alone unless --host says "
                    "otherwise; images come as bytes, never by address.")
    add_config(parser)
    add_model(parser, also="the directory that `cvt export` wrote, ")
    parser.add_class_arguments(ServeConfig)
    add_runtime(parser, "the fastest that is installed")
    parser.add_argument("--threads", type=int, help="cores that the network may use (default: all)")
    parser.add_argument("--samples", metavar="DIR", help="images that the page offers to try")
    parser.add_argument("--api_key_file", metavar="FILE", help="a file with the key that requests "
                        f"must have (default: what {_KEY} holds, if it is set)")
    parser.add_argument("--log_level", default="info", choices=["info", "warning", "error"],
                        help="info logs every request")
    chosen = parser.read(args)
    config = parser.build(ServeConfig, chosen)
    key = _key(chosen.api_key_file)

    require("fastapi", "serve")
    from cvt.predict.predictor import Predictor
    from cvt.serve.run import serve

    name = model_of(chosen, parser)
    shown = Path(name).resolve().name if Path(name).exists() else name  # not where it lies
    exported = (Path(name) / MANIFEST).is_file()
    backend, precision = chosen.backend, chosen.precision
    explainer = None
    if not exported:
        from cvt.deploy.backends import pick_backend
        from cvt.serve.explainer import make_explainer
        from cvt.system.device import pick_device
        from cvt.weights.models import load_model

        device = pick_device(chosen.device)
        if backend == "auto":
            backend = pick_backend(precision or "fp32", device)
        model, card = load_model(name, act=chosen.act)
        explainer = make_explainer(model.to(device), card, shown, config.max_pixels)
    predictor = Predictor(name, backend=backend, precision=precision, device=chosen.device,
                          act=chosen.act, threads=chosen.threads, batch_size=config.max_batch_size,
                          trusted=chosen.trusted)
    if key is None and not config.local:
        print(f"cvt serve: warning: whoever reaches {config.host} may ask, for there is no API "
              f"key; set {_KEY} or --api_key_file", file=sys.stderr)
    samples = chosen.samples
    if samples is None and not exported:
        samples = _own_samples(name)
    serve(predictor, config, name=shown, explainer=explainer,
          samples=None if samples is None else Path(samples), api_key=key,
          log_level=chosen.log_level)
    return 0


def _key(file: str | None) -> str | None:
    key = os.environ.get(_KEY) if file is None else Path(file).read_text(
        encoding="utf-8", errors="replace")  # what is no text is no key, which is said below
    if key is None:
        return None
    if not key.strip().isascii() or len(key.strip()) < 16:
        raise InputError(f"the API key in {file or _KEY} must be at least 16 ASCII characters; "
                         "make one with: openssl rand -hex 32")
    return key.strip()


def _own_samples(name: str) -> Path | None:
    """The images that lie beside a model in this package."""
    from cvt.zoo import shipped

    own = shipped(name)
    return own / "samples" if own is not None and (own / "samples").is_dir() else None
