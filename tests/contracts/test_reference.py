"""What the site's reference is made of: parsers as Markdown, docstrings as reStructuredText."""

import re
import sys
from importlib import import_module
from pathlib import Path

import pytest

from cvt.cli import COMMANDS, main

pytestmark = pytest.mark.slow


@pytest.fixture
def extension(monkeypatch):
    """extension(name): a module of docs/_extension."""
    monkeypatch.setattr(sys, "path", [str(Path(__file__).parents[2] / "docs/_extension"),
                                      *sys.path])
    return import_module


@pytest.mark.parametrize("command", ["predict", "serve", "bench"])
def test_the_reference_has_every_option_of_a_command(command, extension, capsys, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    options = extension("commands").options_of(extension("commands").parser_of(command))
    written = {name for rows in options.values() for row in rows
               for name in re.findall(r"--[\w.]+", row[0])}
    main([command, "--help"])
    assert set(re.findall(r"^  (?:-h, )?(--[\w.]+)", capsys.readouterr().out, re.M)) == written


def test_the_reference_has_every_command(extension, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    page = extension("commands").to_markdown()
    assert {line.split()[2] for line in page.splitlines() if line.startswith("## cvt ")} == set(
        COMMANDS)
    assert page.count("`--optim.lr X`") == 1  # studies and the search refer to cvt train


def test_docstrings_keep_their_words(extension):
    to_rst = extension("docstrings").to_rst
    assert to_rst(["`x` (B, C), 2 * dim, **no** markup, dim_"]) == [
        "``x`` (B, C), 2 \\* dim, \\*\\*no\\*\\* markup, dim\\_", ""]
    assert to_rst(["Map:", "", "    Sec. 1  here", "", "End."]) == [
        "Map:", "", "", ".. code-block:: text", "", "    Sec. 1  here", "", "", "End.", ""]
