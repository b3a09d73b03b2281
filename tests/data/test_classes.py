"""The rule by which classes are ordered and labels are matched, which every source follows."""

import io
import itertools
import os
import subprocess
import sys
import tarfile
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from timm.data import ImageNetInfo

from cvt.data.classes import check_names, class_order, find_class, match_classes, natural_order
from cvt.data.sources.folder import folder
from cvt.data.sources.manifest import manifest
from cvt.data.sources.shards import shards
from cvt.system.errors import InputError

NAMES = ("-1", "0.25", "0.5", "1", "2", "2a", "10", "B1", "a", "a2", "a10", "b")
ALIKE = [("1", "01"), ("1", "1.0"), ("1", "+1"), ("0", "-0"), ("1", "\uff11"), ("1", " 1"),
         ("007", "7"), ("cat", "cat "), ("cat", "\tcat"), ("a b", "a  b"), ("a b", "a\u00a0b"),
         ("cat", "Cat"), ("cat", "CAT "), ("caf\u00e9", "cafe\u0301"), ("\u00c5", "\u212b"),
         ("cat", "\ufeffcat"), ("cat", "c\u200bat"), ("A", "A ")]


def test_numbers_are_ordered_by_value_wherever_they_stand():
    assert natural_order(reversed(NAMES), "it") == NAMES
    assert natural_order(["class10", "class2", "class1"], "it") == ("class1", "class2", "class10")
    assert natural_order([f"{i}" for i in range(20)], "it") == tuple(map(str, range(20)))


@given(st.lists(st.text(max_size=8) | st.from_regex(r"\A[ab]?[0-9]{1,3}[ab]?\Z"), min_size=1),
       st.data())
def test_the_order_depends_on_the_names_alone(names, data):
    def outcome(given_names):
        try:
            return natural_order(given_names, "it")
        except InputError as error:
            return str(error)

    expected = outcome(names)
    assert outcome(data.draw(st.permutations(names))) == expected
    if isinstance(expected, tuple):
        assert sorted(expected) == sorted(set(names))
        for one, other in itertools.combinations(expected, 2):  # a total order: pairs agree
            assert natural_order([other, one], "it") == (one, other)


@given(st.lists(st.integers(-10**30, 10**30), unique=True))
def test_whole_numbers_are_ordered_by_value(numbers):
    assert natural_order(map(str, numbers), "it") == tuple(map(str, sorted(numbers)))


@pytest.mark.parametrize(("one", "other"), ALIKE)
def test_names_that_could_be_one_class_are_rejected_by_both_names(one, other):
    with pytest.raises(InputError, match=r"^photos: the classes .* rename one") as caught:
        natural_order({one, other, "x"}, "photos")
    message = str(caught.value)
    assert all(repr(name) in message or ascii(name) in message for name in (one, other))
    if unicodedata.normalize("NFC", one) != unicodedata.normalize("NFC", other):
        with pytest.raises(InputError, match=r"which it lacks; it is spelled .* there"):
            match_classes([one], [other, "x"], "mine have", "it lacks", "-")


COMPOSED, DECOMPOSED = ("caf\u00e9", "b", "z"), ("cafe\u0301", "z", "b")


def test_classes_that_differ_in_unicode_normalization_alone_are_one():
    assert match_classes(COMPOSED, DECOMPOSED, "mine have", "it lacks", "-") == [0, 2, 1]
    assert match_classes(DECOMPOSED, COMPOSED, "mine have", "it lacks", "-") == [0, 2, 1]
    assert class_order(DECOMPOSED, COMPOSED) == [0, 2, 1]
    assert [natural_order([name, "cafz", "cafa"], "it").index(name)
            for name in (COMPOSED[0], DECOMPOSED[0])] == [2, 2]


def test_a_class_is_found_by_the_name_that_is_shown():
    classes = ("cafe\u0301", "b\udcff", "\x1b", "b\udcff")
    assert [find_class(name, classes) for name in (
        "caf\u00e9", "b\udcff", r"b\xff", r"\x1b")] == [0, 1, 1, 2]
    with pytest.raises(InputError, match=r"there is no class 'bb'; choose from .*, b\\xff"):
        find_class("bb", classes)


@pytest.mark.parametrize("blank", ["", " ", "\t\n", "\u00a0", "\ufeff"])
def test_a_class_without_a_name_is_rejected(blank):
    with pytest.raises(InputError, match="has no name; give it one"):
        check_names(["cat", blank], "it")


def test_a_class_that_is_listed_twice_is_rejected():
    with pytest.raises(InputError, match="the class 'cat' is listed twice"):
        check_names(["cat", "dog", "".join(["c", "at"])], "it")


def test_what_distinguishes_classes_is_kept():
    kept = ("A", "a", "Masse", "Ma\u00dfe", "a1", "a01", "1", "1a", "x\u00b2", "x2", "9" * 5000)
    assert set(natural_order(kept, "it")) == set(kept)


RUN = """
from cvt.data.classes import check_names, class_order, find_class, match_classes, natural_order
print(natural_order({"10", "2", "1", "b", "a10", "a2", "a02", "2.5", "-3"}, "it"))
try:
    natural_order({"3", "1", "01", "1.0", "Cat", "cat", "cat "}, "it")
except ValueError as error:
    print(error)
"""


def test_neither_order_nor_error_depends_on_the_hash_seed():
    said = {subprocess.run([sys.executable, "-c", RUN], capture_output=True, text=True, check=True,
                           env={**os.environ, "PYTHONHASHSEED": seed}).stdout
            for seed in ("0", "1", "2", "3", "4")}
    order, error = said.pop().splitlines()
    assert said == set()
    assert order == "('-3', '1', '2', '2.5', '10', 'a02', 'a2', 'a10', 'b')"
    assert error.startswith("it: the classes '01' and '1' are the same number")


def test_folder_manifest_and_shards_have_the_same_classes(tmp_path):
    names = ("a", "2", "10", "1", "a2", "a10", "B1", "-1", "0.5")
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, format="PNG")
    image, rows = file.getvalue(), ["path,label,split"]
    (tmp_path / "tars").mkdir()
    for half in ("train", "val"):
        with tarfile.open(tmp_path / "tars" / f"{half}-0.tar", "w") as archive:
            for i, name in enumerate(names):
                path = tmp_path / "photos" / half / name / "1.png"
                path.parent.mkdir(parents=True)
                path.write_bytes(image)
                rows.append(f"{path},{name},{half}")
                for member, data in ((f"{i}.png", image), (f"{i}.cls", name.encode())):
                    info = tarfile.TarInfo(member)
                    info.size = len(data)
                    archive.addfile(info, io.BytesIO(data))
    (tmp_path / "list.csv").write_text("\n".join(rows) + "\n")

    datasets = (folder(tmp_path / "photos"), manifest(tmp_path / "list.csv"),
             shards(tmp_path / "tars"))

    for data in datasets:
        assert data.train.classes == data.val.classes == (
            "-1", "0.5", "1", "2", "10", "B1", "a", "a2", "a10")
        assert sorted(data.train.labels) == sorted(data.val.labels) == list(range(9))


def test_names_are_matched_wherever_they_stand():
    assert match_classes(["b", "a"], ["a", "b", "c"], "mine have", "it lacks", "-") == [1, 0]
    assert class_order(["b", "a"], ["a", "b"]) == [1, 0]
    assert class_order(["b", "a"], ["a", "b", "c"]) == "c"
    assert class_order(["a", "d"], ["a", "b"]) == "d"
    with pytest.raises(InputError, match="mine have the class 'd', which it lacks; add it"):
        match_classes(["a", "d"], ["a", "b"], "mine have", "it lacks", "add it")


def test_a_name_that_two_classes_have_is_rejected():
    with pytest.raises(InputError, match="the class 'a', which is the name of two classes there"):
        match_classes(["b", "a"], ["a", "b", "a"], "mine have", "it lacks", "-")
    assert class_order(["b", "a"], ["a", "b", "a"]) == "a"


def test_imagenets_classes_are_known_by_wordnet_id_and_by_description():
    info = ImageNetInfo()
    ids, words = info.label_names(), info.label_descriptions()
    for known in (ids, words):
        assert match_classes([ids[517], ids[134], words[0]], known, "", "", "") == [517, 134, 0]
        assert class_order(ids, known) == list(range(1000))
        assert class_order(ids[::-1], known) == list(range(999, -1, -1))
    assert words[134] == words[517] == "crane"
    with pytest.raises(InputError, match="'crane', which is the name of two classes there"):
        match_classes(["crane", words[3]], ids, "mine have", "it lacks", "-")
