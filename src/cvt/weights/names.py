"""Names of the same parameter in other people's checkpoints, as data: rename tables.

A table is a list of (pattern, replacement) for `re.sub`, applied in order to every name of a state
dict; the tensors stay as they are. Each format has one table to our names and one from them.
Sources: microsoft/CvT at f851e68, lib/models/cls_cvt.py; transformers 5.23, models/cvt.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Literal

Names = Literal["native", "official", "huggingface"]
Table = list[tuple[str, str]]

_ATTENTION = r"\.attention\.attention\."

TO_NATIVE: Mapping[Names, Table] = {
    "native": [],
    "official": [
        (r"^stage(\d+)\.", r"stages.\1."),
        (r"\.patch_embed\.proj\.", r".embed.conv."),
        (r"\.patch_embed\.norm\.", r".embed.norm."),
        (r"\.conv_proj_([qkv])\.", r".\1."),
        (r"\.proj_([qkv])\.", r".\1.linear."),
    ],
    "huggingface": [
        (r"^cvt\.", r""),  # CvtModel, the port's backbone, has names without it
        (r"^encoder\.stages\.", r"stages."),
        (r"\.embedding\.convolution_embeddings\.projection\.", r".embed.conv."),
        (r"\.embedding\.convolution_embeddings\.normalization\.", r".embed.norm."),
        (r"\.layers\.", r".blocks."),
        (_ATTENTION + r"convolution_projection_([qkv])\w+\.convolution_projection\.convolution\.",
         r".attn.\1.conv."),
        (_ATTENTION + r"convolution_projection_([qkv])\w+\.convolution_projection\.normalization\.",
         r".attn.\1.bn."),
        (_ATTENTION + r"projection_([qkv])\w+\.", r".attn.\1.linear."),
        (r"\.attention\.output\.dense\.", r".attn.proj."),
        (r"\.intermediate\.dense\.", r".mlp.fc1."),
        (r"\.output\.dense\.", r".mlp.fc2."),
        (r"\.layernorm_before\.", r".norm1."),
        (r"\.layernorm_after\.", r".norm2."),
        (r"^layernorm\.", r"norm."),
        (r"^classifier\.", r"head."),
    ],
}

_WORDS = (("q", "query"), ("k", "key"), ("v", "value"))

FROM_NATIVE: Mapping[Names, Table] = {
    "native": [],
    "official": [
        (r"^stages\.(\d+)\.", r"stage\1."),
        (r"\.embed\.conv\.", r".patch_embed.proj."),
        (r"\.embed\.norm\.", r".patch_embed.norm."),
        (r"\.([qkv])\.linear\.", r".proj_\1."),
        (r"\.([qkv])\.(conv|bn)\.", r".conv_proj_\1.\2."),
    ],
    "huggingface": [
        (r"^norm\.", r"cvt.layernorm."),
        (r"^head\.", r"classifier."),
        (r"^stages\.", r"cvt.encoder.stages."),
        (r"\.embed\.conv\.", r".embedding.convolution_embeddings.projection."),
        (r"\.embed\.norm\.", r".embedding.convolution_embeddings.normalization."),
        (r"\.blocks\.", r".layers."),
        (r"\.attn\.proj\.", r".attention.output.dense."),
        (r"\.mlp\.fc1\.", r".intermediate.dense."),
        (r"\.mlp\.fc2\.", r".output.dense."),
        (r"\.norm1\.", r".layernorm_before."),
        (r"\.norm2\.", r".layernorm_after."),
        *((rf"\.attn\.{letter}\.linear\.", rf".attention.attention.projection_{word}.")
          for letter, word in _WORDS),
        *((rf"\.attn\.{letter}\.{ours}\.",
           rf".attention.attention.convolution_projection_{word}.convolution_projection.{theirs}.")
          for letter, word in _WORDS
          for ours, theirs in (("conv", "convolution"), ("bn", "normalization"))),
    ],
}


def rename(name: str, table: Table) -> str:
    """`name` after every substitution of `table`, in order."""
    for pattern, replacement in table:
        name = re.sub(pattern, replacement, name)
    return name


def whose(names: Iterable[str]) -> Names:
    """In whose words the names of a state dict are; "native" for all that is not known."""
    names = list(names)
    if any(re.match(r"stage\d+\.", name) for name in names):
        return "official"
    if any(re.match(r"(cvt\.)?encoder\.stages\.", name) for name in names):
        return "huggingface"
    return "native"
