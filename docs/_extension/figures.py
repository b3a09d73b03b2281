"""Inlines SVG drawings into the page, so that they use the colours of its theme."""

from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx


def _inline(app: Sphinx, doctree: nodes.document, docname: str) -> None:  # noqa: ARG001
    """Replace images of figures/ by their SVG. An <img> would follow the system's theme."""
    if app.builder.format != "html":
        return
    for image in list(doctree.findall(nodes.image)):
        path = Path(app.srcdir, image["uri"])
        if path.suffix == ".svg" and path.parent.name == "figures":
            drawing = path.read_text()
            image.replace_self(nodes.raw("", f'<div class="drawing">{drawing}</div>',
                                         format="html"))


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the extension."""
    app.connect("doctree-resolved", _inline)
    return {"parallel_read_safe": True}
