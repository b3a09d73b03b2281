"""The notebook computes what it shows."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

pytestmark = pytest.mark.slow

HOME = Path(__file__).parents[2] / "docs/tutorials"


@pytest.fixture
def execute(tmp_path, monkeypatch):
    """execute(notebook): it, with its results, computed where it lies."""
    for name in ("JUPYTER_RUNTIME_DIR", "IPYTHONDIR"):  # a kernel leaves files at home
        monkeypatch.setenv(name, str(tmp_path))
    return lambda notebook: NotebookClient(
        notebook, timeout=120, kernel_name="python3", coalesce_streams=True,
        resources={"metadata": {"path": str(HOME)}}).execute()


def printed(notebook):
    """What each cell printed, and how many images it drew."""
    return [("".join(out["text"] for out in cell.outputs if out.output_type == "stream"),
             sum("image/png" in out.get("data", {}) for out in cell.outputs))
            for cell in notebook.cells if cell.cell_type == "code"]


def test_the_walk_through_prints_what_it_shows(execute):
    kept = nbformat.read(HOME / "walk_through.ipynb", as_version=4)
    shown = printed(kept)

    assert printed(execute(kept)) == shown
    assert sum(images for _, images in shown) == 6
    assert any(text.startswith("Shirt  ") for text, _ in shown)


def test_a_step_that_no_longer_holds_would_be_noticed(execute):
    cells = [nbformat.v4.new_code_cell("assert 1 + 1 == 3")]
    with pytest.raises(CellExecutionError):
        execute(nbformat.v4.new_notebook(cells=cells))
