import os
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from cvt.data import images, listing
from cvt.data.images import read_image
from cvt.data.listing import LeftOut, list_images
from cvt.data.sources.archives import archive_images
from cvt.system.errors import InputError

PNG = b"\x89PNG\r\n\x1a\n" + bytes(40)

SYSTEM = [".DS_Store", "._a.png", "__MACOSX/a/._b.png", "__MACOSX/b.png", "@eaDir/a.png/SYNO_X.jpg",
          "Thumbs.db", "THUMBS.DB", "desktop.ini", "Desktop.ini", "$RECYCLE.BIN/c.png", "Icon\r",
          ".thumbnails/1.jpg", ".ipynb_checkpoints/a-checkpoint.png", "#recycle/d.jpg",
          ".@__thumb/a.jpg", "lost+found/x.png", ".git/objects/aa"]


def touch(home, *names, content=b""):
    for name in names:
        path = home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def listed(home):
    left_out = LeftOut()
    paths = list_images(home, left_out)
    return [str(Path(path).relative_to(home)) for path in paths], left_out


def test_a_folder_lists_its_images_and_nothing_else(tmp_path):
    touch(tmp_path, "b.png", "a.JPG", "sub/c.webp", "notes.txt", ".hidden/d.png", ".e.png")
    assert listed(tmp_path)[0] == ["a.JPG", "b.png", "sub/c.webp"]


def test_images_are_sorted_by_the_names_on_the_way(tmp_path):
    touch(tmp_path, "a-b/1.png", "a/2.png", "a/10.png", "a.png", "B/1.png")
    names = listed(tmp_path)[0]
    assert names == sorted(names, key=lambda name: Path(name).parts)
    assert names == ["B/1.png", "a/10.png", "a/2.png", "a-b/1.png", "a.png"]


@pytest.mark.parametrize("name", SYSTEM)
def test_what_systems_leave_behind_is_no_image(tmp_path, name):
    touch(tmp_path, "a.png", name)
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        archive.add(tmp_path / "a.png", "./photos/a.png")
        archive.add(tmp_path / name, f"./photos/{name}")
    (tmp_path / "x.tar").rename(tmp_path.with_suffix(".tar"))

    names, left_out = listed(tmp_path)
    members = LeftOut()

    assert names == ["a.png"]
    assert str(left_out) == "1 hidden or system files"
    assert [m.name for m in archive_images(tmp_path.with_suffix(".tar"), members)] == [
        "./photos/a.png"]
    assert members == left_out


def test_everything_that_is_left_out_is_counted(tmp_path):
    touch(tmp_path, "a.png", "b.svg", "sub/c.SVG", "d.cr2", "e.txt", "f.json", "sub/f.JSON", "g")
    names, left_out = listed(tmp_path)
    assert names == ["a.png"]
    assert str(left_out) == (
        "2 .svg, 1 .cr2 (formats that are not read: convert them to JPEG or PNG); "
        "2 .json, 1 without a suffix, 1 .txt (not images)")
    assert left_out.to_dict() == {listing.OTHER_FORMATS: {".svg": 2, ".cr2": 1},
                                  listing.NOT_IMAGES: {".json": 2, "": 1, ".txt": 1}}


def test_a_line_names_the_most_frequent_suffixes(tmp_path):
    touch(tmp_path, *(f"{i}.x{n}" for n in range(9) for i in range(9 - n)))
    assert str(listed(tmp_path)[1]).startswith("9 .x0, 8 .x1, 7 .x2, 6 .x3, 5 .x4, 10 of other")


def test_a_name_with_control_characters_does_not_reach_the_terminal(tmp_path):
    touch(tmp_path, "a.\x1b[31m", "b.\udcff", "c.t\nt")
    assert str(listed(tmp_path)[1]) == "3 without a suffix (not images)"


@pytest.mark.parametrize("kind", images._FORMATS)
def test_every_readable_format_is_listed_by_its_suffixes(tmp_path, kind):
    Image.init()
    known = {suffix for suffix, form in Image.registered_extensions().items() if form == kind}
    suffixes = known & images.SUFFIXES
    assert suffixes
    for suffix in suffixes:
        Image.new("RGB", (9, 9), "red").save(tmp_path / f"x{suffix}")
    paths = list_images(tmp_path)
    assert {Path(path).suffix for path in paths} == suffixes
    assert {read_image(path).size for path in paths} == {(9, 9)}


@pytest.mark.parametrize("kind", [kind for kind in images._FORMATS if kind != "TGA"])
def test_a_file_without_a_suffix_is_known_by_its_content(tmp_path, kind):
    Image.new("RGB", (9, 9), "red").save(tmp_path / "photo", kind)
    Image.new("RGB", (9, 9), "red").save(tmp_path / "2021.05.03 17.20", kind)
    touch(tmp_path, "README", content=b"BM and P1 are not images\n" * 3)
    names, left_out = listed(tmp_path)
    assert names == ["2021.05.03 17.20", "photo"]
    assert str(left_out) == "1 without a suffix (not images)"


def test_heic_is_listed_where_it_can_be_read(tmp_path, monkeypatch):
    touch(tmp_path, "a.HEIC", "b.heif")
    touch(tmp_path, "c", content=b"\0\0\0\x18ftypheic" + bytes(20))
    monkeypatch.setattr(listing, "_reads_heif", lambda: False)
    assert str(listed(tmp_path)[1]) == "2 .heic, 1 .heif (read after pip install 'cvt-torch[heic]')"
    monkeypatch.setattr(listing, "_reads_heif", lambda: True)
    assert listed(tmp_path) == (["a.HEIC", "b.heif", "c"], LeftOut())


def test_a_link_that_leads_nowhere_is_listed_and_a_pipe_is_not(tmp_path):
    (tmp_path / "gone.png").symlink_to(tmp_path / "moved.png")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    (tmp_path / "gone").symlink_to(tmp_path / "moved")
    os.mkfifo(tmp_path / "pipe.png")
    os.mkfifo(tmp_path / "pipe")
    names, left_out = listed(tmp_path)
    assert names == ["gone.png", "loop.png"]
    assert str(left_out) == "1 links that lead nowhere; 2 pipes, sockets and devices"


def test_links_are_followed_and_loops_are_not(tmp_path):
    home = tmp_path / "photos"
    touch(tmp_path, "photos/a.png", "elsewhere/b.png", "elsewhere/sub/c.png")
    (home / "other").symlink_to(tmp_path / "elsewhere")
    (home / "file.png").symlink_to(tmp_path / "elsewhere" / "b.png")
    (tmp_path / "elsewhere" / "back").symlink_to(home)
    (home / "sub").mkdir()
    (home / "sub" / "up").symlink_to("..")

    names, left_out = listed(home)

    assert names == ["a.png", "file.png", "other/b.png", "other/sub/c.png"]
    assert str(left_out) == "2 links to directories that are listed already or lie above"


def test_a_link_to_a_directory_above_is_not_followed(tmp_path):
    touch(tmp_path, "photos/cat/1.png", "photos/dog/2.png")
    (tmp_path / "photos/cat/up").symlink_to("..")
    (tmp_path / "photos/cat/top").symlink_to(tmp_path)
    names, left_out = listed(tmp_path / "photos/cat")
    assert names == ["1.png"]
    assert left_out == {(listing.AGAIN, ""): 2}


def test_links_to_one_directory_do_not_multiply(tmp_path):
    for depth in range(40):  # 2^40 ways
        (tmp_path / f"d{depth:02d}").mkdir()
        for name in ("one", "two"):
            (tmp_path / f"d{depth:02d}" / name).symlink_to(tmp_path / f"d{depth + 1:02d}")
    touch(tmp_path, "d40/a.png")
    assert listed(tmp_path / "d00")[0] == ["/".join(["one"] * 40 + ["a.png"])]


def test_a_directory_keeps_its_own_name_although_a_link_comes_first(tmp_path):
    touch(tmp_path, "z/a.png")
    (tmp_path / "a").symlink_to("z")
    assert listed(tmp_path)[0] == ["z/a.png"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root opens every directory")
def test_a_directory_that_cannot_be_opened_is_counted(tmp_path):
    touch(tmp_path, "a.png", "secret/b.png")
    (tmp_path / "secret").chmod(0)
    assert listed(tmp_path) == (["a.png"], LeftOut({(listing.CLOSED, ""): 1}))


def test_a_directory_that_disappears_is_counted(tmp_path, monkeypatch):
    touch(tmp_path, "a.png", "sub/b.png")
    scan = os.scandir

    def gone(path):
        if str(path).endswith("sub"):
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", gone)
    assert listed(tmp_path) == (["a.png"], LeftOut({(listing.CLOSED, ""): 1}))
    with pytest.raises(PermissionError):
        list_images(tmp_path / "sub")


def test_an_archive_of_other_files_is_rejected_with_what_it_holds(tmp_path):
    touch(tmp_path, "a.svg")
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        archive.add(tmp_path / "a.svg")
    with pytest.raises(InputError, match=r"x\.tar has no images in it; left out: 1 \.svg"):
        archive_images(tmp_path / "x.tar", LeftOut())
