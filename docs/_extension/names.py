"""Automatic links: names of the package in literals, and files outside docs/."""

import os
import re
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.addnodes import download_reference, pending_xref
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform

import cvt

_NAME = re.compile(r"cvt(?:\.\w+)+")


def public(name: str) -> str:
    """The name in the reference: `cvt.CvT` for `cvt.model.CvT`."""
    module, _, last = name.rpartition(".")
    return f"cvt.{last}" if cvt._MODULES.get(last) == module else name


class _Names(SphinxTransform):
    """Link literals such as `cvt.CvT` to the reference, in pages and docstrings."""

    default_priority = 5  # before Sphinx resolves references

    def apply(self, **_: Any) -> None:
        """Wrap each literal that is a name in a reference, which may stay unresolved."""
        for literal in list(self.document.findall(nodes.literal)):
            text = literal.astext()
            if _NAME.fullmatch(text) and not isinstance(literal.parent, nodes.reference):
                link = pending_xref("", refdomain="py", reftype="obj", reftarget=public(text),
                                    refexplicit=True, refwarn=False, refdoc=self.env.docname)
                literal.replace_self(link)
                link += literal


class _Files(SphinxTransform):
    """Link Markdown files outside docs/, such as model cards, as downloads."""

    default_priority = 5

    def apply(self, **_: Any) -> None:
        """MyST has removed the suffix and made the path absolute."""
        here = Path(self.env.doc2path(self.env.docname)).parent
        for link in list(self.document.findall(pending_xref)):
            if link.get("refdomain") == "doc" and os.path.isabs(link["reftarget"]):
                file = download_reference("", reftarget=os.path.relpath(
                    link["reftarget"] + ".md", here), refdoc=self.env.docname, reftype="download")
                file += link.children
                link.replace_self(file)


def _orphan(app: Sphinx, doctree: nodes.document) -> None:  # noqa: ARG001
    """Pages of single studies are linked from claims.md and are not in the table of contents."""
    if app.env.docname.startswith("ablations/"):
        app.env.metadata[app.env.docname]["orphan"] = "1"


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the extension."""
    app.add_transform(_Names)
    app.add_transform(_Files)
    app.connect("doctree-read", _orphan)
    return {"parallel_read_safe": True}
