"""Parameter names of other code's checkpoints, as data, and their translation.

The tensors are the same in every naming scheme. Sources: microsoft/CvT at f851e68,
lib/models/cls_cvt.py; transformers 5.23, models/cvt; BR-IDL/PaddleViT, image_classification/CvT.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Literal

Naming = Literal["native", "official", "huggingface", "paddle"]
Table = list[tuple[str, str]]

_WORDS = (("q", "query"), ("k", "key"), ("v", "value"))

# (native, other) parts of names, in the order of replacement. "#" stands for a number; a part that
# does not begin with a dot begins the name.
_PARTS: Mapping[Naming, Table] = {
    "native": [],
    "paddle": [
        (".embed.conv.", ".patch_embed.proj."),
        (".embed.norm.", ".patch_embed.norm."),
        *((f".{x}.linear.", f".proj_{x}.") for x in "qkv"),
        *((f".{x}.{part}.", f".conv_proj_{x}.{i}.") for x in "qkv"
          for i, part in enumerate(("conv", "bn"))),
    ],
    "official": [
        ("stages.#.", "stage#."),
        (".embed.conv.", ".patch_embed.proj."),
        (".embed.norm.", ".patch_embed.norm."),
        *((f".{x}.linear.", f".proj_{x}.") for x in "qkv"),
        *((f".{x}.{part}.", f".conv_proj_{x}.{part}.") for x in "qkv" for part in ("conv", "bn")),
    ],
    "huggingface": [
        ("norm.", "layernorm."),
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


# Three names that every CvT has, and together no other network.
_ANCHORS: Mapping[Naming, tuple[str, ...]] = {
    naming: tuple(rename(f"stages.0.{name}.weight", table).removeprefix("cvt.")
                  for name in ("embed.conv", "blocks.0.norm1", "blocks.0.attn.proj"))
    for naming, table in FROM_NATIVE.items()}

# Networks that are also called CvT: a name that only they have, and what differs.
_OTHERS = (
    (r"(^|\.)stage\d+\.1\.layers\.\d+\.0\.fn\.qkv\.dw\.weight$",
     "the CvT of EsViT, which has window attention, one projection to queries, keys and values, "
     "and no class token"),
    (r"(^|\.)layers\.\d+\.\d+\.layers\.\d+\.0\.(fn\.)?to_kv\.",
     "the CvT of vit-pytorch (lucidrains), which has one projection to keys and values, 1x1 "
     "convolutions as its MLP, and no class token"),
)


def find_networks(names: Iterable[str]) -> dict[str, Naming]:
    """The prefixes under which `names` have those of a CvT, and the naming scheme of each.

    A prefix is "" or ends with a dot. That of a classifier of transformers is the prefix of its
    head.
    """
    names = dict.fromkeys(names)
    found: dict[str, Naming] = {}
    for naming, (first, *others) in _ANCHORS.items():
        for name in names:
            prefix = name.removesuffix(first)
            if (prefix != name and (not prefix or prefix.endswith("."))
                    and all(prefix + other in names for other in others)):
                outer = prefix.removesuffix("cvt.")
                own = (outer + "classifier.", outer + "layernorm.")
                if naming == "huggingface" and outer != prefix and (
                        any(other.startswith(own) for other in names)
                        or all(other.startswith("cvt.") for other in names)):
                    prefix = outer
                found[prefix] = naming
    return found


def other_network(names: Iterable[str]) -> str | None:
    """The network that `names` are of, if it is another one that is also called CvT."""
    names = list(names)
    return next((what for pattern, what in _OTHERS
                 if any(re.search(pattern, name) for name in names)), None)


def detect_naming(names: Iterable[str]) -> Naming:
    """Naming scheme of a state dict, which may lack some of a network's names; else "native"."""
    names = list(names)
    if found := find_networks(names):
        return next(iter(found.values()))
    if any(re.match(r"stage\d+\.", name) for name in names):
        return "official"
    if any(re.match(r"(cvt\.)?encoder\.stages\.", name) for name in names):
        return "huggingface"
    return "native"
