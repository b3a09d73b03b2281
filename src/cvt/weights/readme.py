"""README.md for a directory of weights: the hub's YAML header, then what a reader needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import yaml

from cvt.config import VARIANTS
from cvt.weights.card import ModelCard

_LOAD = {
    "native": """import cvt

model, card = cvt.load_model("{place}")""",
    "huggingface": """from transformers import pipeline

classify = pipeline("image-classification", "{place}")
print(classify("photo.jpg"))""",
    "timm": """import timm
import cvt.weights.timm_models  # registers the architecture

model = timm.create_model("local-dir:{place}", pretrained=True)""",
}
_LIBRARY = {"native": "cvt-torch", "huggingface": "transformers", "timm": "timm"}


def model_readme(card: ModelCard, to: Literal["native", "huggingface", "timm"], *, place: str,
                 tag: str | None = None, whose: str = "", trained_on: Sequence[str] = (),
                 licence: str = "") -> str:
    """A model card for the Hugging Face hub.

    place: how its reader will call the directory. tag: the zoo's name of the weights; then whose
    they are, which datasets they were trained on and how they are licensed. Without it the card
    leaves that open.
    """
    config = card.model
    variant = next((name for name, v in VARIANTS.items()
                    if [(s.dim, s.depth) for s in v.stages]
                    == [(s.dim, s.depth) for s in config.stages]), None)
    header: dict[str, object] = {
        **({"license": licence} if tag else {}), "library_name": _LIBRARY[to],
        "pipeline_tag": "image-classification" if card.classes else "image-feature-extraction",
        "tags": ["vision", "cvt", *(["image-classification"] if card.classes else []),
                 *(["timm"] if to == "timm" else [])]}
    if tag:
        header["datasets"] = sorted(trained_on)
    p = card.preprocess
    how = (f"squashed to {p.size}x{p.size}" if p.mode == "squash" else
           f"short side to {p.resize}, centre {p.size}x{p.size}")
    act = "QuickGELU, x sigmoid(1.702 x)" if config.act == "quick_gelu" else "GELU"
    computes = ("\n\nNote: the port in transformers computes GELU whatever the weights were "
                "trained with, so its logits differ from the official ones."
                if to == "huggingface" and config.act == "quick_gelu" else "")
    rows = [
        ("network", f"{variant or 'CvT'}, {len(config.stages)} stages of dims "
                    f"{', '.join(str(s.dim) for s in config.stages)} and depths "
                    f"{', '.join(str(s.depth) for s in config.stages)}"),
        ("weights", f"`{tag}`, {whose}" if tag else "trained with this package or brought "
                                                        "to it; say here on what, and the licence"),
        ("activation", act),
        ("input", f"{config.in_chans} channels, {how}, {p.interpolation}, mean "
                  f"{_numbers(p.mean)}, std {_numbers(p.std)}"),
        ("classes", f"{config.num_classes:,}" if card.classes else "none: features"),
    ]
    table = "\n".join(f"| {name} | {text} |" for name, text in rows)
    return (f"---\n{yaml.safe_dump(header, sort_keys=False)}---\n\n"
            f"# {tag or variant or 'CvT'}\n\n"
            "A Convolutional vision Transformer ([Wu et al., ICCV 2021]"
            "(https://arxiv.org/abs/2103.15808)).\n\n"
            f"| | |\n|---|---|\n{table}\n\n"
            f"```python\n{_LOAD[to].format(place=place)}\n```{computes}\n")


def _numbers(values: tuple[float, ...]) -> str:
    return ", ".join(f"{v:.4g}" for v in values)
