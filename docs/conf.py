"""The site that `make docs` builds from these pages. Warnings are errors there."""

import os
import sys
from pathlib import Path

# Colours in help texts would be control characters on a page.
os.environ["NO_COLOR"] = "1"
sys.path[:0] = [str(Path(__file__).parent / "_extension"), str(Path(__file__).parents[1] / "src")]

import cvt  # noqa: E402

project = "cvt-torch"
author = "the cvt-torch authors"
release = version = cvt.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx_copybutton",
              "commands", "docstrings", "figures", "names"]
exclude_patterns = ["_build", "_extension"]
smartquotes = False  # it would make a dash of the -- before an option

myst_heading_anchors = 3
myst_enable_extensions = ["deflist"]
nb_execution_mode = "off"  # the stored results are shown; tests/contracts computes them again
suppress_warnings = ["myst.header"]  # a page of `cvt ablate` begins where it likes

autodoc_inherit_docstrings = False  # torch says nothing about our forward()
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
default_role = "code"
maximum_signature_line_length = 88
python_display_short_literal_types = True
python_use_unqualified_type_names = True

html_theme = "furo"
html_title = f"cvt-torch {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_copyright = False
html_show_sphinx = False
pygments_style = "friendly"
pygments_dark_style = "github-dark"
