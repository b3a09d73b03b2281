import os
import stat
import subprocess
import sys
import unicodedata
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from cvt.system.errors import InputError
from cvt.system.files import find_file, read_text, replace_file
from cvt.weights.tensors import write_tensors


def test_a_new_file_replaces_the_old_one(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    replace_file(path, lambda part: part.write_text("new"))

    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_half_way_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def write(part):
        part.write_text("ne")
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        replace_file(path, write)

    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_until_the_write_is_done_readers_see_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    seen = []

    def write(part):
        part.write_text("new")
        seen.append(path.read_text())

    replace_file(path, write)

    assert seen == ["old"]


def test_a_file_has_the_permissions_that_open_would_give_it(tmp_path):
    replace_file(tmp_path / "a.txt", lambda part: part.write_text("new"))
    (tmp_path / "b.txt").write_text("new")

    modes = {stat.S_IMODE(os.stat(tmp_path / name).st_mode) for name in ("a.txt", "b.txt")}

    assert len(modes) == 1


def test_weights_are_as_open_to_others_as_any_file(tmp_path):
    write_tensors({"a": torch.zeros(3)}, tmp_path / "a.safetensors")
    (tmp_path / "b.txt").write_text("x")
    modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert len(modes) == 1


def test_threads_that_write_at_once_leave_the_umask_alone(tmp_path):
    before, interval = os.umask(0o027), sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # threads take turns as often as they can
    try:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda i: replace_file(tmp_path / str(i), lambda p: p.write_text("x")),
                          range(1000)))
        assert {stat.S_IMODE(p.stat().st_mode) for p in tmp_path.iterdir()} == {0o640}
    finally:
        after = os.umask(before)
        sys.setswitchinterval(interval)
    assert after == 0o027


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_text_is_read_with_and_without_a_byte_order_mark(tmp_path, encoding):
    (tmp_path / "a.txt").write_bytes("caf\u00e9\r\n\u732b".encode(encoding))
    assert read_text(tmp_path / "a.txt") == "caf\u00e9\r\n\u732b"


def test_bytes_that_are_not_utf8_stay_in_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    assert os.fsencode(read_text(tmp_path / "a.txt")) == b"caf\xe9"
    (tmp_path / "a.txt").write_bytes(b"\xff\xfea")
    with pytest.raises(InputError, match="is not text in UTF-16"):
        read_text(tmp_path / "a.txt")


@pytest.mark.parametrize(("asked", "stored"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_a_file_is_found_in_another_unicode_normalization(tmp_path, asked, stored):
    path = tmp_path / unicodedata.normalize(stored, "\u00e9t\u00e9/\u00e0.png")
    path.parent.mkdir()
    asked_path = tmp_path / unicodedata.normalize(asked, "\u00e9t\u00e9/\u00e0.png")
    path.touch()
    assert find_file(asked_path) == path
    assert find_file(str(asked_path).replace("/", "\\")) == path
    assert find_file(path) == path


def test_a_path_that_is_found_in_no_spelling_stays(tmp_path):
    for name in ("\u00e9.png", "a\\b.png", "\udcff", "a\0\u00e9", "C:\\x.png", "b.png"):
        assert find_file(tmp_path / name) == tmp_path / name
    (tmp_path / "a\\b.png").symlink_to(tmp_path / "gone")
    (tmp_path / "a").mkdir()
    (tmp_path / "a/b.png").touch()
    assert find_file(tmp_path / "a\\b.png").name == "a\\b.png"


def test_a_file_is_found_where_names_are_bytes_to_python(tmp_path):
    (tmp_path / "caf\u00e9.png").touch()
    code = "from cvt.system.files import find_file; print(find_file('caf\\u00e9.png').is_file())"
    env = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, check=True,
                          capture_output=True, text=True)
    assert done.stdout == "True\n"
