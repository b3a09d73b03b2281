"""The list of images that could not be read."""

import os

import pytest

from cvt.data.unreadable import read_unreadable, unreadable_reason, write_unreadable
from cvt.system.errors import InputError
from cvt.train.log import Log
from cvt.train.state import Progress


def test_a_name_of_any_bytes_comes_back(tmp_path):
    rows = [("train", os.fsdecode(b"b\xff.png"), "is truncated"), ("val", "a,\n.png", "is empty")]
    write_unreadable(tmp_path / "list.csv", rows)
    assert read_unreadable(tmp_path / "list.csv") == tuple(rows)
    write_unreadable(tmp_path / "list.csv", [])
    assert not (tmp_path / "list.csv").exists()
    assert read_unreadable(tmp_path / "list.csv") == ()


def test_a_run_lists_an_image_once_also_when_it_goes_on(tmp_path):
    row = ("train", os.fsdecode(b"b\xff.png"), "is truncated")
    for _ in range(2):
        log = Log(tmp_path, epochs=1, steps=1, progress=Progress(), quiet=True,
                  track=lambda *_: None)
        with log:
            log.unreadable([row])
            log.unreadable([row, ("val", "c.png", "is empty")])
    assert read_unreadable(tmp_path / "unreadable.csv") == (row, ("val", "c.png", "is empty"))


@pytest.mark.parametrize(("error", "reported"), [
    (InputError("an image of 9x9000 pixels is too thin"), "a.png: an image of 9x9000 pixels is"),
    (InputError("a.png is empty"), "a.png is empty"),
    (FileNotFoundError(2, "No such file or directory", "a.png"), "a.png: No such file")])
def test_a_reason_names_its_image(error, reported):
    assert unreadable_reason(error, "a.png").startswith(reported)
