"""Parameter names of official and transformers checkpoints, as data, and their translation.

The tensors are the same in every naming scheme. Sources: microsoft/CvT at f851e68,
lib/models/cls_cvt.py; transformers 5.23, models/cvt.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Literal

Naming = Literal["native", "official", "huggingface"]
Table = list[tuple[str, str]]

_WORDS = (("q", "query"), ("k", "key"), ("v", "value"))

# (native, other) parts of names, in the order of replacement. "#" stands for a number; a part that
# does not begin with a dot begins the name.
_PARTS: Mapping[Naming, Table] = {
    "native": [],
    "official": [
        ("stages.#.", "stage#."),
        (".embed.conv.", ".patch_embed.proj."),
        (".embed.norm.", ".patch_embed.norm."),
        *((f".{x}.linear.", f".proj_{x}.") for x in "qkv"),
        *((f".{x}.{part}.", f".conv_proj_{x}.{part}.") for x in "qkv" for part in ("conv", "bn")),
    ],
    "huggingface": [
        ("norm.", "cvt.layernorm."),
        ("head.", "classifier."),
        ("stages.", "cvt.encoder.stages."),
        (".embed.conv.", ".embedding.convolution_embeddings.projection."),
        (".embed.norm.", ".embedding.convolution_embeddings.normalization."),
        (".blocks.", ".layers."),
        (".attn.proj.", ".attention.output.dense."),
        (".mlp.fc1.", ".intermediate.dense."),
        (".mlp.fc2.", ".output.dense."),
        (".norm1.", ".layernorm_before."),
        (".norm2.", ".layernorm_after."),
        *((f".attn.{x}.linear.", f".attention.attention.projection_{word}.") for x, word in _WORDS),
        *((f".attn.{x}.{part}.", f".attention.attention.convolution_projection_{word}."
           f"convolution_projection.{other}.") for x, word in _WORDS
          for part, other in (("conv", "convolution"), ("bn", "normalization"))),
    ],
}


def _table(parts: Iterable[tuple[str, str]]) -> Table:
    """Patterns and replacements for `re.sub`."""
    return [(("" if old.startswith(".") else "^") + re.escape(old).replace(r"\#", r"(\d+)"),
             new.replace("#", r"\1")) for old, new in parts]


FROM_NATIVE: Mapping[Naming, Table] = {naming: _table(parts) for naming, parts in _PARTS.items()}
# CvtModel, the backbone of transformers, has names without "cvt.".
TO_NATIVE: Mapping[Naming, Table] = {
    naming: [(r"^cvt\.", ""), *_table((old.removeprefix("cvt."), new) for new, old in parts)]
    if naming == "huggingface" else _table((old, new) for new, old in parts)
    for naming, parts in _PARTS.items()}


def rename(name: str, table: Table) -> str:
    """`name` after the substitutions of `table`, in order."""
    for pattern, replacement in table:
        name = re.sub(pattern, replacement, name)
    return name


def detect_naming(names: Iterable[str]) -> Naming:
    """Naming scheme of a state dict; "native" if it is neither of the others."""
    names = list(names)
    if any(re.match(r"stage\d+\.", name) for name in names):
        return "official"
    if any(re.match(r"(cvt\.)?encoder\.stages\.", name) for name in names):
        return "huggingface"
    return "native"
