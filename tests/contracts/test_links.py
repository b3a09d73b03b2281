"""Links and images in the documentation lead somewhere, and each page has its place."""

import inspect
import json
import re
from pathlib import Path

import pytest

import cvt

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(
    path for path in DOCS.rglob("*") if path.suffix in (".md", ".ipynb")
    and path.relative_to(DOCS).parts[0] != "_build")]


def text_of(path):
    """A page without its code, in which brackets are no links."""
    text = path.read_text()
    if path.suffix == ".ipynb":
        text = "\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"]
                         if cell["cell_type"] == "markdown")
    return re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)


def anchors(path):
    """The fragments that a page's headings have."""
    lines = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL),
                       re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-") for line in lines}


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_relative_links_resolve(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", text_of(page)):
        if re.match(r"https?://", target):
            continue
        name, _, fragment = target.partition("#")
        place = (page.parent / name).resolve() if name else page
        assert place.exists(), target
        assert not fragment or fragment in anchors(place), target


def test_every_page_is_in_the_contents():
    listed = set()
    for index in (DOCS / "index.md", DOCS / "reference/index.md"):
        for tree in re.findall(r"```\{toctree\}\n(.*?)```", index.read_text(), re.DOTALL):
            listed |= {(index.parent / line).relative_to(DOCS).as_posix()
                       for line in tree.splitlines() if line and not line.startswith(":")}
    pages = {page.relative_to(DOCS).with_suffix("").as_posix() for page in PAGES
             if page.is_relative_to(DOCS)}
    assert {page for page in pages if not page.startswith("ablations/")} == listed | {"index"}


def test_the_reference_has_every_public_name():
    page = (DOCS / "reference/api.md").read_text()
    found = re.findall(r"^\.\. (?:auto\w+|py:data):: cvt\.(\w+)$", page, re.MULTILINE)
    assert sorted(found) == sorted(cvt.__all__)


def test_every_public_name_tells_what_it_is():
    for name in set(cvt.__all__) - {"__version__", "VARIANTS"}:
        found = getattr(cvt, name)
        parts = [part for key, part in vars(found).items() if key[0] != "_" and (
            inspect.isfunction(part) or isinstance(part, (property, classmethod)))
                 ] if inspect.isclass(found) else []
        assert all(part.__doc__ for part in [found, *parts]), name


def test_the_core_can_be_read_in_an_hour():
    page = DOCS / "explanation/reading_order.md"
    core, _, _ = page.read_text().partition("\n## Where to go")
    lines = 0
    for part in core.split("\n## ")[1:]:
        paths = re.findall(r"\]\(([^)]+\.py)\)", part)
        files = [(page.parent / path).read_text() for path in paths]
        lines += sum(len(file.splitlines()) for file in files)
        for name in re.findall(r"`(?:\w+\.)?(\w+)`", part.replace(".py`", "")):
            assert any(re.search(rf"\b{name}\b", file) for file in files), name
    assert 2000 < lines <= 4000


def test_drawings_are_shapes_and_letters_alone():
    for path in DOCS.glob("figures/*.svg"):
        drawing = path.read_text()
        assert "<title>" in drawing
        assert not re.search(r"<script|<image|href|url\(", drawing)
