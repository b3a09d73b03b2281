"""Names of the same parameter in other people's checkpoints, as data: rename tables.

A table is a list of (pattern, replacement) for `re.sub`, applied in order to every name of a state
dict; the tensors stay as they are. Source: microsoft/CvT at f851e68, lib/models/cls_cvt.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

OFFICIAL = [
    (r"^stage(\d+)\.", r"stages.\1."),
    (r"\.patch_embed\.proj\.", r".embed.conv."),
    (r"\.patch_embed\.norm\.", r".embed.norm."),
    (r"\.conv_proj_([qkv])\.", r".\1."),
    (r"\.proj_([qkv])\.", r".\1.linear."),
]


def rename(name: str, table: list[tuple[str, str]]) -> str:
    """`name` after every substitution of `table`, in order."""
    for pattern, replacement in table:
        name = re.sub(pattern, replacement, name)
    return name


def is_official(names: Iterable[str]) -> bool:
    """Whether the names of a state dict are those of the official code."""
    return any(re.match(r"stage\d+\.", name) for name in names)
