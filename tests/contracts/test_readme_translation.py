"""README.zh-CN.md says in Chinese what README.md says."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAMES = ("README.md", "README.zh-CN.md")
ENGLISH, CHINESE = ((ROOT / name).read_text() for name in NAMES)


def code(text):
    return re.findall(r"^```.*?^```$", text, re.DOTALL | re.MULTILINE)


def prose(text):
    """Without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)


def outline(text):
    """The levels of the headings, and how many blocks, rows, links and words in code each has."""
    parts = re.split(r"^(#+) .+$", text, flags=re.MULTILINE)
    return [(level, len(code(part)), len(tables(part)), len(targets(part)), spans(part))
            for level, part in zip(["", *parts[1::2]], parts[::2], strict=True)]


def targets(text):
    """What its links and images lead to, but for the link to the other README."""
    found = re.findall(r"(!?)\[[^\]]*\]\(([^)\s]+)\)", prose(text))
    return [pair for pair in found if pair[1] not in NAMES]


def spans(text):
    return sorted(re.findall(r"`[^`\n]+`", prose(text)))


def tables(text):
    """The rows, each as the sorted numbers of each cell."""
    return [[sorted(re.findall(r"\d+(?:,\d{3})*(?:\.\d+)?(?:e-?\d+)?", cell))
             for cell in line.strip("|").split("|")]
            for line in prose(text).splitlines() if line.startswith("|")]


def test_each_links_to_the_other_in_its_first_line():
    assert f"]({NAMES[1]})" in ENGLISH.splitlines()[0]
    assert f"]({NAMES[0]})" in CHINESE.splitlines()[0]


def test_headings_and_what_is_below_each_are_the_same():
    assert outline(CHINESE) == outline(ENGLISH)


def test_blocks_of_code_are_identical():
    assert code(CHINESE) == code(ENGLISH)
    assert len(code(ENGLISH)) >= 5


def test_links_and_images_are_the_same_in_the_same_order():
    assert targets(CHINESE) == targets(ENGLISH)
    assert [target for mark, target in targets(ENGLISH) if mark]


def test_numbers_in_tables_are_the_same():
    assert tables(CHINESE) == tables(ENGLISH)
    assert any(any(row) for row in tables(ENGLISH))


def test_no_line_ends_between_two_chinese_characters():
    """It would be shown as a space."""
    assert not re.search("[\u4e00-\u9fff]\n[\u4e00-\u9fff]", prose(CHINESE))


@pytest.mark.parametrize(("before", "after"), [
    ("93.58", "93.85"), ("docs/claims.md", "docs/data.md"), ("\n## ", "\n### "),
    ("cvt zoo   ", "cvt info   "), ("`--print_config`", "`--config`")])
def test_what_only_one_of_them_says_is_seen(before, after):
    changed = CHINESE.replace(before, after, 1)
    assert changed != CHINESE
    assert any(of(changed) != of(ENGLISH) for of in (outline, code, targets, tables))
