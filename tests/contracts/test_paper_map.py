"""docs/paper_map.md names what exists, and nothing of the paper is left out."""

import dataclasses
import re
from importlib import import_module
from pathlib import Path

import pytest

import cvt
from cvt.cli import COMMANDS
from cvt.studies.ablate.tables import STUDIES

PAGE = (Path(__file__).parents[2] / "docs/paper_map.md").read_text()
CODE = sorted(set(re.findall(r"`([^`]+)`", PAGE)))


def find(name):
    """The object of a dotted name; AttributeError or ModuleNotFoundError where there is none."""
    parts = name.split(".")
    for n in range(len(parts), 0, -1):
        try:
            found = import_module(".".join(parts[:n]))
        except ModuleNotFoundError:
            continue
        for part in parts[n:]:
            found = getattr(found, part)
        return found
    raise ModuleNotFoundError(name)


@pytest.mark.parametrize("name", CODE)
def test_what_is_named_exists(name):
    fields = {field.name for field in dataclasses.fields(cvt.StageConfig)}
    if name.startswith("cvt."):
        assert find(name) is not None
    elif name.startswith("cvt "):
        command, *rest = name.split()[1:]
        assert command in COMMANDS
        assert command != "ablate" or rest[0] in STUDIES
    elif name.startswith("cvt_"):
        assert name in cvt.VARIANTS
    elif name.startswith("tests/"):
        assert (Path(__file__).parents[2] / name).exists()
    else:
        assert name in fields


@pytest.mark.parametrize("part", [
    *(f"Table {n}" for n in range(1, 9)), "Eq. 1", "Eq. 2",
    *(f"Fig. {n}" for n in ("1", "2a", "2b", "3a", "3b", "3c")), *(f"Sec. {n}" for n in (
        "1", "2", "3", "3.1", "3.2", "3.2.1", "3.2.2", "3.3", "4.1", "4.2", "4.3", "4.4", "5"))])
def test_each_part_of_the_paper_has_a_row(part):
    first_cells = re.findall(r"^\| ([^|]+) \|", PAGE, re.MULTILINE)
    assert any(re.search(rf"{re.escape(part)}(?![\w.])", cell) for cell in first_cells)


@pytest.mark.parametrize("name", ["cvt.model.ConvEmbedding", "cvt.modle.CvT"])
def test_a_name_that_is_not_there_would_be_noticed(name):
    with pytest.raises((AttributeError, ModuleNotFoundError)):
        find(name)
