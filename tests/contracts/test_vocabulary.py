"""The retired words of CONTRIBUTING.md's vocabulary stay out of names, help texts and pages."""

import ast
import re
from pathlib import Path

import pytest

from cvt.cli import COMMANDS, main

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "src/cvt").rglob("*.py"))
PAGES = [ROOT / "README.md", *(path for path in sorted((ROOT / "docs").rglob("*.md"))
                               if "_build" not in path.parts)]  # the pages, not copies of them
IN_NAMES = {
    "answer", "answers", "busy", "damage", "damaged", "fault", "faults", "found", "gate", "harm",
    "harmed", "late", "least", "life", "most", "picture", "pictures", "refusal", "refusals",
    "refuse", "refused", "setting", "tell", "tells", "told", "varied"}
IN_HELP = re.compile(r"\b(pictures?|told|tells?|harm(s|ed)?|damaged?|varied|refus(es?|ed|als?)|"
                     r"faults?|answers?)\b", re.IGNORECASE)


def public_names(source):
    """Public names in `source`: classes, functions, parameters, fields and constants."""
    def visit(body):
        for node in body:
            if isinstance(node, ast.Assign):
                names = [target.id for target in node.targets if isinstance(target, ast.Name)]
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                names = [node.target.id]
            elif isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                names = [node.name]
            else:
                continue
            for name in names:
                if not name.startswith("_"):
                    yield name
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                if not node.name.startswith("_") or node.name in ("__init__", "__call__"):
                    arguments = node.args
                    yield from (arg.arg for arg in (*arguments.posonlyargs, *arguments.args,
                                                    *arguments.kwonlyargs))
            elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                yield from visit(node.body)

    return set(visit(ast.parse(source).body))


def words_of(name):
    """The words of an identifier: of `MaxReaders` and `max_readers`, "max" and "readers".

    "at most" and "at least" are no names.
    """
    name = re.sub(r"at_(most|least)", "", name)
    return {word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)}


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT / "src")))
def test_public_names_use_the_vocabulary(path):
    names = {path.stem, *public_names(path.read_text())}

    assert {name for name in names if words_of(name) & IN_NAMES} == set()


def test_a_retired_word_in_a_name_would_be_noticed():
    names = public_names("MOST = 3\nclass Gate:\n    late: int\n    def ask(self, told): ...\n"
                         "    def _refuse(self, least): ...\n")

    assert names == {"MOST", "Gate", "late", "ask", "self", "told"}
    assert words_of("MostReaders") == words_of("most_readers") == {"most", "readers"}
    assert words_of("HTTPGate") == {"http", "gate"}
    assert words_of("at_least_one") == {"one"}


@pytest.mark.parametrize("call", [(), *((name,) for name in COMMANDS), ("data", "check"),
                                  ("data", "copy")], ids=" ".join)
@pytest.mark.slow
def test_help_texts_use_the_vocabulary(call, capsys, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "1000")
    assert main([*call, "--help"]) == 0

    text = capsys.readouterr().out

    assert [line for line in text.splitlines() if IN_HELP.search(line)] == []


@pytest.mark.parametrize("path", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_pages_say_image_and_not_the_retired_word(path):
    assert re.findall(r".*\bpictures?\b.*", path.read_text(), re.IGNORECASE) == []
