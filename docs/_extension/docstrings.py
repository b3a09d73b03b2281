"""Docstrings as they stand in the code, readable in an editor, as reStructuredText."""

import re
from typing import Any

from sphinx.application import Sphinx

# What is plain in our docstrings and markup in reStructuredText: * | and a name's last _.
_MARKUP = re.compile(r"[*|\\]|(?<=\w)_(?!\w)")
_LITERAL = re.compile(r"(`[^`]+`)")


def to_rst(lines: list[str]) -> list[str]:
    """Docstring lines with `name` as a literal, all else plain, and indented blocks as code."""
    found: list[str] = []
    block = False
    for line in lines:
        inside = line.startswith("    ")
        if inside and not block:
            found += ["", ".. code-block:: text", ""]
        elif block and not inside and line:
            found.append("")
        block = inside or (block and not line)
        found.append(line if inside else "".join(
            f"`{part}`" if part.startswith("`") else _MARKUP.sub(r"\\\g<0>", part)
            for part in _LITERAL.split(line)))
    return [*found, ""]


def _rewrite(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:  # noqa: ARG001
    lines[:] = to_rst(lines)


def setup(app: Sphinx) -> dict[str, Any]:
    """Sphinx's entry."""
    app.connect("autodoc-process-docstring", _rewrite)
    return {"parallel_read_safe": True}
