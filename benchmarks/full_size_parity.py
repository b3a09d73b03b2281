"""Parity of full-size logits with the official ones, from official and transformers files.

    python benchmarks/full_size_parity.py [--models cvt_13 cvt_21 cvt_w24]

The reference is the CvT of transformers with random weights and statistics: with GELU for its own
directories, and with QuickGELU for official files, which makes it equal to the official network
(tests/parity compares both with tensors of the official code on small networks). Prints the maximum
difference of the logits relative to the largest logit; the bound is 2e-5.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from torch import nn
from transformers import CvtConfig, CvtForImageClassification

import cvt
from cvt.model import QuickGELU
from timing import keep

BOUND = 2e-5
SIZES = {"cvt_13": [(224, 224), (384, 384), (224, 320), (250, 190)],
         "cvt_21": [(224, 224), (384, 384), (224, 320), (250, 190)],
         "cvt_w24": [(224, 224), (250, 190)]}


def port(name: str) -> nn.Module:
    stages = cvt.VARIANTS[name].stages
    torch.manual_seed(0)
    model = CvtForImageClassification(CvtConfig(
        embed_dim=[s.dim for s in stages], num_heads=[s.num_heads for s in stages],
        depth=[s.depth for s in stages], num_labels=1000)).eval()
    with torch.no_grad():  # initial values such as 0 and 1 could hide an error
        for key, tensor in model.state_dict().items():
            if key.endswith("running_var"):
                tensor.uniform_(0.5, 2)
            elif tensor.is_floating_point():
                tensor.add_(torch.randn_like(tensor), alpha=0.02)
    return model


def worst(ours: nn.Module, theirs: nn.Module, name: str) -> dict[str, float]:
    """Maximum difference relative to the largest logit, for every size."""
    errors = {}
    for height, width in SIZES[name]:
        images = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(1))
        with torch.inference_mode():
            expected, logits = theirs(images).logits, ours(images)
        errors[f"{height}x{width}"] = ((logits - expected).abs().max()
                                       / expected.abs().max()).item()
    return errors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(SIZES))
    args = parser.parse_args()
    rows = {}
    for name in args.models:
        with tempfile.TemporaryDirectory() as home:
            theirs = port(name)
            theirs.save_pretrained(f"{home}/port")
            gelu = worst(cvt.create_model(name, weights=f"{home}/port"), theirs, name)
            official = Path(home) / f"{name}.pth"
            cvt.convert(f"{home}/port", official, "official", act="quick_gelu")
            official.with_suffix(".yaml").unlink()  # a bare file, as the official release has them
            for module in theirs.modules():
                if hasattr(module, "activation"):
                    module.activation = QuickGELU()
            quick = worst(cvt.create_model(name, weights=official), theirs, name)
        rows[name] = {"official": quick, "transformers": gelu}
        for kind, errors in rows[name].items():
            print(f"{name} from {kind} files: " + ", ".join(
                f"{size} {error:.1e}" for size, error in errors.items()), flush=True)
    top = max(e for row in rows.values() for errors in row.values() for e in errors.values())
    print(f"largest {top:.1e}, bound {BOUND:.0e}")
    print(keep("full_size_parity", {"bound": BOUND, "largest": top, "models": rows}))


if __name__ == "__main__":
    main()
