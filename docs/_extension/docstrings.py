"""Converts plain docstrings, as they are in the code, to reStructuredText."""

import re
from typing import Any

from sphinx.application import Sphinx

# Plain in our docstrings, but markup in reStructuredText: * | and a trailing _ of a name.
_MARKUP = re.compile(r"[*|\\]|(?<=\w)_(?!\w)")
_LITERAL = re.compile(r"(`[^`]+`)")


def to_rst(lines: list[str]) -> list[str]:
    """Docstring lines: `name` becomes a literal, indented blocks become code."""
    rst: list[str] = []
    block = False
    for line in lines:
        inside = line.startswith("    ")
        if inside and not block:
            rst += ["", ".. code-block:: text", ""]
        elif block and not inside and line:
            rst.append("")
        block = inside or (block and not line)
        rst.append(line if inside else "".join(
            f"`{part}`" if part.startswith("`") else _MARKUP.sub(r"\\\g<0>", part)
            for part in _LITERAL.split(line)))
    return [*rst, ""]


def _rewrite(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:  # noqa: ARG001
    lines[:] = to_rst(lines)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the extension."""
    app.connect("autodoc-process-docstring", _rewrite)
    return {"parallel_read_safe": True}
