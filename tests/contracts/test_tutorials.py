"""The tutorials and explanations of docs/ work as they stand there."""

import contextlib
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from cvt.cli import main

pytestmark = pytest.mark.slow

DOCS = Path(__file__).parents[2] / "docs"


def blocks(page):
    """Its commands, a line each, and its Python, in their order; what sets up the package apart."""
    for kind, text in re.findall(r"^```(sh|python)\n(.*?)^```", (DOCS / page).read_text(),
                                 re.DOTALL | re.MULTILINE):
        if kind == "python":
            yield kind, text
            continue
        for line in text.replace("\\\n", " ").splitlines():
            if not line.startswith("pip install "):
                yield kind, line


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A directory in which a reader stands: that of a clone, as far as the pages use it."""
    for name in ("examples", "recipes"):
        (tmp_path / name).symlink_to(DOCS.parent / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(page, changes=None):
    """All of `page`, top to bottom; `changes` are options that make a command small."""
    names = {}
    for kind, text in blocks(page):
        if kind == "python":
            exec(text, names)
            continue
        extra = [words for start, words in (changes or {}).items() if text.startswith(start)]
        assert main([*shlex.split(text)[1:], *" ".join(extra).split()]) == 0, text
    return names


def test_the_first_page_runs(clone, capsys):
    run("index.md")
    assert "Shirt" in capsys.readouterr().out


def test_the_first_ten_minutes_run_from_top_to_bottom(clone, capsys):
    run("tutorials/first_ten_minutes.md",
        {"cvt train": "--epochs 1 --max_train_samples 200 --optim.warmup_epochs 0 --quiet"})

    out = capsys.readouterr().out
    shown, = re.findall(r"```text\n(.*?)```", (DOCS / "tutorials/first_ten_minutes.md").read_text(),
                        re.DOTALL)
    assert shown in out
    assert "('T-shirt', 'Trouser', 'Pullover') 28\n('Shirt', 0.99" in out
    assert out.endswith("torch.Size([2, 10])\ntorch.Size([1, 1000])\n")
    assert Path("explained/shirt/sheet.png").is_file()
    assert Path("runs/digits/report.html").is_file()


def test_the_paper_is_read_with_code_that_runs(clone, capsys):
    names = run("tutorials/reading_the_paper.md")

    out = capsys.readouterr().out
    assert "{'num_chs': 64, 'reduction': 4, 'module': 'stages.0'}" in out
    assert "torch.Size([1, 3136, 64]) (56, 56)\nConv2d(3, 64, kernel_size=(7, 7)" in out
    assert "torch.Size([1, 3136, 64]) torch.Size([1, 784, 64])" in out
    assert "19,997,480 parameters, 4.566 G multiply-adds" in out
    assert names["plain"].stages[2].projection == "linear"


@pytest.mark.parametrize("page", sorted(p.name for p in (DOCS / "explanation").glob("*.md")))
def test_what_explanations_show_runs(page, clone, capsys):
    run(f"explanation/{page}", {"cvt ablate": "--print_config"})

    out = capsys.readouterr().out
    if page == "positions.md":
        assert "[(1, 1000), (1, 1000)]\n0\n" in out
    if page == "folding.md":
        assert re.search(r"difference=\d\.?\d*e-0[67], top1=1\.0, n=2\)\n0\n", out)


def test_own_images_become_a_running_page(clone, capsys):
    page = "tutorials/own_images.md"
    make, ask = (text for kind, text in blocks(page) if kind == "python")
    exec(make, {})
    for path in clone.glob("photos/*/*.png"):  # six of each class will do
        if int(path.stem) >= 60:
            path.unlink()
    changes = {"cvt train": "--epochs 1 --optim.warmup_epochs 0 --batch_size 16 --quiet"}
    for kind, text in blocks(page):
        if text == ask:
            continue
        if text == "cvt serve runs/photos":
            with served("runs/photos", "--backend", "eager") as url:
                exec(ask.replace("http://127.0.0.1:8000/", url), {})
        elif kind == "sh":
            extra = [words for start, words in changes.items() if text.startswith(start)]
            assert main([*shlex.split(text)[1:], *" ".join(extra).split()]) == 0, text

    assert re.search(r"^\{.*'name': 'digit \d'", capsys.readouterr().out, re.MULTILINE)
    for written in ("check/contact_sheet.png", "runs/photos/report.html",
                    "predictions/part-00000.csv", "explained/three/sheet.png",
                    "exported/manifest.json"):
        assert Path(written).is_file()


@contextlib.contextmanager
def served(*args):
    """The address of a `cvt serve` that runs."""
    with subprocess.Popen([sys.executable, "-m", "cvt", "serve", "--port", "0", *args],
                          stderr=subprocess.PIPE, text=True) as server:
        try:
            lines = []
            for line in server.stderr:
                lines.append(line)
                if '"listening"' in line:
                    break
            yield json.loads(lines[-1])["url"]
        finally:
            server.terminate()
            server.communicate()
