"""Our drawings stand in the page itself, so that they take the colours of its theme."""

from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx


def _inline(app: Sphinx, doctree: nodes.document, docname: str) -> None:  # noqa: ARG001
    """An SVG of figures/ as HTML. An <img> would follow the system's theme, not the page's."""
    if app.builder.format != "html":
        return
    for image in list(doctree.findall(nodes.image)):
        path = Path(app.srcdir, image["uri"])
        if path.suffix == ".svg" and path.parent.name == "figures":
            drawing = path.read_text()
            image.replace_self(nodes.raw("", f'<div class="drawing">{drawing}</div>',
                                         format="html"))


def setup(app: Sphinx) -> dict[str, Any]:
    """Sphinx's entry."""
    app.connect("doctree-resolved", _inline)
    return {"parallel_read_safe": True}
