"""Sphinx configuration. `make docs` builds the site; warnings are errors."""

import os
import sys
from pathlib import Path

# Without this, help texts contain control characters for colours.
os.environ["NO_COLOR"] = "1"
sys.path[:0] = [str(Path(__file__).parent / "_extension"), str(Path(__file__).parents[1] / "src")]

import cvt  # noqa: E402

project = "cvt-torch"
author = "the cvt-torch authors"
release = version = cvt.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx_copybutton",
              "commands", "docstrings", "figures", "names"]
exclude_patterns = ["_build", "_extension"]
smartquotes = False  # it would turn the -- of an option into a dash

myst_heading_anchors = 3
myst_enable_extensions = ["deflist"]
nb_execution_mode = "off"  # stored outputs are shown; tests/contracts executes the notebook
suppress_warnings = ["myst.header"]  # pages written by `cvt ablate` skip heading levels

autodoc_inherit_docstrings = False  # nn.Module's docstrings do not describe our methods
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
