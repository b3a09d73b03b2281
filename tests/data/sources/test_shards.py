import io
import tarfile

import numpy as np
import pytest
from PIL import Image

from cvt.data.config import DataConfig
from cvt.data.load import load_dataset
from cvt.data.sources.archives import archive_members
from cvt.data.sources.shards import INDEX, shards
from cvt.system.errors import InputError


def png(shade):
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, shade, shade)).save(file, format="PNG")
    return file.getvalue()


def pack(path, *files, format=tarfile.DEFAULT_FORMAT):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format) as archive:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def samples(shades, kind="cls"):
    for shade in shades:
        yield f"{shade:04}.png", png(shade)
        text = str(shade % 2)
        yield f"{shade:04}.{kind}", (f'{{"label": {text}}}' if kind == "json" else text).encode()


def test_images_are_reached_alone_in_any_order(tmp_path):
    pack(tmp_path / "train-000000.tar", *samples(range(6)))
    pack(tmp_path / "train-000001.tar", *samples(range(6, 9), "json"))
    pack(tmp_path / "val-000000.tar", *samples((20, 21)))
    (tmp_path / "classes.txt").write_text("even\nodd\n")
    data = shards(tmp_path)
    assert data.train.classes == ("even", "odd")
    assert (len(data.train), len(data.val)) == (9, 2)
    for i in (8, 0, 5):
        assert data.train.read(i).getpixel((0, 0))[0] == i
        assert data.train.labels[i] == i % 2
    assert data.val.read(1).getpixel((0, 0))[0] == 21
    assert data.train.names[7] == f"{tmp_path / 'train-000001.tar'}:0007.png"


def labelled(home, *labels, classes=None, kind="cls"):
    """What is read where train and val have an image for each label, as it is written."""
    for half in ("train", "val"):
        files = [(f"{i}{suffix}", data) for i, label in enumerate(labels)
                 for suffix, data in ((".png", png(i)), (f".{kind}", label.encode()))]
        pack(home / f"{half}-0.tar", *files)
    if classes is not None:
        (home / "classes.txt").write_bytes(classes.encode())
    data = shards(home)
    assert data.train.classes == data.val.classes
    return data.train.classes, [data.train.classes[label] for label in data.val.labels]


def test_without_a_list_the_classes_are_in_natural_order(tmp_path):
    assert labelled(tmp_path, "10", "a10", "2", "a2", "-1") == (
        ("-1", "2", "10", "a2", "a10"), ["10", "a10", "2", "a2", "-1"])


@pytest.mark.parametrize("text", [
    "dog\ncat\n", "dog\ncat", "dog\r\ncat\r\n", "\ufeffdog\ncat\n", "dog \n\tcat\n\n\n", "dog\rcat",
])
def test_a_list_of_classes_keeps_its_order_however_it_is_saved(tmp_path, text):
    assert labelled(tmp_path, "1", "dog", "cat\n", "0", "\ufeff1 ", classes=text) == (
        ("dog", "cat"), ["cat", "dog", "cat", "dog", "cat"])


@pytest.mark.parametrize(("text", "message"), [
    ("dog\n\ncat\n", "line 2 is empty, and numbers count lines"),
    ("", "line 1 is empty"),
    ("dog\ncat\ndog\n", "the class 'dog' is listed twice"),
    ("dog\nDog\n", "the classes 'dog' and 'Dog' are the same but for"),
    ("1\n01\n", "the classes '1' and '01' are the same number"),
])
def test_a_list_that_does_not_tell_classes_apart_is_rejected(tmp_path, text, message):
    with pytest.raises(InputError, match=rf"classes\.txt: {message}"):
        labelled(tmp_path, "0", "1", classes=text)


@pytest.mark.parametrize(("names", "labels", "expected"), [
    ("cat dog", "0 1 cat", "cat dog cat"),
    ("cat dog", "000 01", "cat dog"),
    ("0 1 2", "2 0", "2 0"),  # a name and its own number are the same
    ("1 2 10", "1 2 10", "1 2 10"),  # there is no line 10, so they are names
    ("1 2 10", "0 1 2", "1 2 10"),  # there is no name 0, so they are numbers
    ("7 cat", "1 0", "cat 7"),
    ("-1 0 1", "-1 0 1 2", None),
])
def test_a_number_is_a_line_or_a_name_as_all_of_them_are(tmp_path, names, labels, expected):
    lines = names.replace(" ", "\n")
    if expected is None:
        with pytest.raises(InputError, match=r"class .*, and classes\.txt has 3 names, which lack"):
            labelled(tmp_path, *labels.split(), classes=lines)
    else:
        assert labelled(tmp_path, *labels.split(), classes=lines)[1] == expected.split()


@pytest.mark.parametrize(("names", "labels"), [
    ("1 0", "0 1"), ("1 2 10", "1 2"), ("cat 0", "cat 0"), ("1 2 10", "01 02"), ("1.0 2", "1"),
])
def test_a_number_that_may_be_a_line_or_a_name_is_rejected(tmp_path, names, labels):
    with pytest.raises(InputError, match=r"which may be the name or the number of a line in class"):
        labelled(tmp_path, *labels.split(), classes=names.replace(" ", "\n"))


def test_a_text_of_json_is_a_name_before_it_is_a_number(tmp_path):
    texts = [f'{{"label": "{label}"}}' for label in ("1", "0", "2")]
    assert labelled(tmp_path, *texts, classes="1\n2\n0", kind="json")[1] == ["1", "0", "2"]
    for name in ("train-0.tar", "val-0.tar"):
        (tmp_path / name).unlink()
    assert labelled(tmp_path, *texts, classes="a\nb\nc", kind="json")[1] == ["b", "a", "c"]
    numbers = ['{"label": 1}', '{"label": 2.0}', '{"label": 0}']
    assert labelled(tmp_path, *numbers, classes="a\nb\nc", kind="json")[1] == ["b", "c", "a"]


@pytest.mark.parametrize("label", ["NaN", "null", "true", '""', '" "', "[1, 0]", '{"a": 1}'])
def test_what_names_no_class_is_none(tmp_path, label):
    with pytest.raises(InputError, match=r"0\.png has no class"):
        labelled(tmp_path, f'{{"label": {label}}}', '{"label": 1}', kind="json")


@pytest.mark.parametrize("label", ["\u0661", "\uff11", "\u00b9", "-1", "+1", "1.0", "9" * 5000,
                                   "Dog"])
def test_another_spelling_is_neither_a_number_of_a_line_nor_a_name(tmp_path, label):
    with pytest.raises(InputError, match=r"has images of the class .* 2 names, which lack it"):
        labelled(tmp_path, "0", label, classes="cat\ndog\n")


def test_of_a_cls_and_a_json_file_the_cls_file_decides(tmp_path):
    for half, order in (("train", (0, 1, 2)), ("val", (2, 1, 0))):
        files = [("1.png", png(1)), ("1.cls", b"cat"), ("1.json", b'{"label": "dog"}')]
        pack(tmp_path / f"{half}-0.tar", *(files[i] for i in order),
             ("2.png", png(2)), ("2.cls", b"dog"))
    data = shards(tmp_path)
    assert data.train.labels == data.val.labels == (0, 1)


def test_a_class_of_validation_images_alone_is_rejected(tmp_path):
    pack(tmp_path / "train-0.tar", *samples(range(4)))
    pack(tmp_path / "val-0.tar", *samples(range(2)), ("9.png", png(9)), ("9.cls", b"2"))
    with pytest.raises(InputError, match="the class '2' in val but not in train"):
        shards(tmp_path)
    pack(tmp_path / "val-0.tar", *samples(range(2)), ("9.png", png(9)), ("9.cls", b"01"))
    with pytest.raises(InputError, match="the classes '01' and '1' are the same number"):
        shards(tmp_path)


def test_the_index_is_kept_and_made_anew_for_other_archives(tmp_path):
    pack(tmp_path / "a.tar", *samples(range(20)))
    first = load_dataset(DataConfig(name="shards", root=str(tmp_path)))
    kept = (tmp_path / INDEX).stat().st_mtime_ns
    again = load_dataset(DataConfig(name="shards", root=str(tmp_path)))
    assert (tmp_path / INDEX).stat().st_mtime_ns == kept
    assert again.val.names == first.val.names
    assert again.train.read(3).tobytes() == first.train.read(3).tobytes()
    pack(tmp_path / "a.tar", *samples(range(30)))
    assert len(shards(tmp_path).all) == 30
    whole = (tmp_path / INDEX).read_bytes()
    for corrupt in (b"corrupt", whole[: len(whole) // 2], whole.replace(b"0003.png", b"0004.png")):
        (tmp_path / INDEX).write_bytes(corrupt)
        assert len(shards(tmp_path).all) == 30


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_corrupt_archive_is_not_mistaken_for_a_shorter_one(tmp_path, format):
    pack(tmp_path / "a.tar", *samples(range(5)), format=format)
    whole = (tmp_path / "a.tar").read_bytes()
    members = list(archive_members(tmp_path / "a.tar"))
    assert len(members) == 10
    header = members[4].offset - 512
    flipped = whole[:header] + bytes([whole[header] ^ 1]) + whole[header + 1:]
    for corrupt in (flipped, whole[:header], whole[: header + 100], whole[: header + 600]):
        (tmp_path / "a.tar").write_bytes(corrupt)
        with pytest.raises(InputError, match=r"a\.tar is not a complete, uncompressed tar archive"):
            shards(tmp_path)


def test_archives_without_an_image_to_hold_out_are_rejected(tmp_path):
    pack(tmp_path / "train-0.tar", *samples(range(6)))
    pack(tmp_path / "val-0.tar", ("notes.txt", b"nothing"))
    with pytest.raises(InputError, match="has no images to validate with"):
        load_dataset(DataConfig(name="shards", root=str(tmp_path)))


def test_an_index_that_would_run_code_is_not_believed(tmp_path):
    pack(tmp_path / "a.tar", *samples(range(20)))
    np.savez(tmp_path / INDEX, archives=np.array([{"an": "object"}], dtype=object))
    assert len(shards(tmp_path).all) == 20


def test_a_directory_that_cannot_be_written_does_without_an_index(tmp_path, monkeypatch):
    pack(tmp_path / "a.tar", *samples(range(20)))

    def fail(*_):
        raise PermissionError

    monkeypatch.setattr("cvt.data.sources.shards.replace_file", fail)
    assert len(shards(tmp_path).all) == 20


def test_an_archive_truncated_later_is_an_unreadable_image(tmp_path):
    pack(tmp_path / "a.tar", *samples(range(20)))
    data = shards(tmp_path)
    whole = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(whole[:9000])
    last = max(range(len(data.train)), key=lambda i: data.train.names[i])
    with pytest.raises(InputError, match=r"a\.tar:0019\.png is empty"):
        data.train.read(last)


@pytest.mark.parametrize(("members", "message"), [
    ([], "hold no images"),
    ([("1.png", png(1)), ("1.txt", b"x")], r"1\.png has no class; it takes 1\.cls"),
    ([("1.png", png(1)), ("1.json", b"{}")], r"1\.png has no class"),
    ([("1.png", png(1)), ("1.jpg", png(1)), ("1.cls", b"0")], "two images called 1"),
    ([("1.png", png(1)), ("1.cls", b"0")], "the single class '0'"),
])
def test_archives_that_cannot_be_trained_on_say_why(tmp_path, members, message):
    pack(tmp_path / "a.tar", *members)
    with pytest.raises(InputError, match=message):
        shards(tmp_path)


def test_directories_that_cannot_be_trained_on_say_why(tmp_path):
    with pytest.raises(InputError, match="is not a directory"):
        shards(tmp_path / "gone")
    with pytest.raises(InputError, match=r"no \.tar archives; unpack compressed ones"):
        shards(tmp_path)
    pack(tmp_path / "train-0.tar", *samples(range(4)))
    with pytest.raises(InputError, match="archives for train but none for val"):
        shards(tmp_path)
    pack(tmp_path / "val-0.tar", *samples(range(4)))
    (tmp_path / "classes.txt").write_text("only\n")
    with pytest.raises(InputError, match=r"the class '1', and classes\.txt has 1 names"):
        shards(tmp_path)
    (tmp_path / "val-0.tar").write_bytes(b"\x1f\x8b" + bytes(600))
    with pytest.raises(InputError, match="is not a complete, uncompressed tar archive"):
        shards(tmp_path)


@pytest.mark.parametrize("name", [
    ".DS_Store", "._0001.png", "./._0001.cls", "__MACOSX/._0001.png", "a/.hidden.json", "..", "a/.",
    "Thumbs.db", "@eaDir/0001.png/SYNOFILE_THUMB.jpg", "", "/"])
def test_hidden_and_system_files_in_archives_are_left_out(tmp_path, name):
    pack(tmp_path / "a.tar", (name, b"x"), *samples(range(6)), ("./6.png", png(6)), ("6.cls", b"1"))
    pack(tmp_path / "._a.tar", ("x", b""))
    for _ in range(2):  # the second time from the index
        data = shards(tmp_path)
        assert len(data.all) == 7
        assert data.messages == ("left out: 1 hidden or system files",)


def test_other_files_in_archives_are_counted_also_from_the_index(tmp_path):
    pack(tmp_path / "a.tar", *samples(range(6)), ("8.svg", b"<svg/>"), ("8.cls", b"1"),
         ("8.txt", b"a caption"), ("README", b""))
    for _ in range(2):
        assert shards(tmp_path).messages == (
            "left out: 1 .svg (formats that are not read: convert them to JPEG or PNG); "
            "1 without a suffix, 1 .txt (not images)",)


def test_a_class_in_archives_that_loses_its_images_is_an_error(tmp_path):
    pack(tmp_path / "a.tar", *samples(range(6)), ("8.svg", b"<svg/>"), ("8.cls", b"icon"))
    with pytest.raises(InputError, match="the class 'icon' has no image that can be read; left o"):
        shards(tmp_path)


@pytest.mark.parametrize("names", [
    ("train-0.tar", "valid-0.tar"), ("Train/0.tar", "Val/0.tar"), ("training.tar", "testing.tar"),
    ("imagenet-train-000.tar", "imagenet-validation-000.tar"), ("train_0.TAR.tar", "val_0.x.tar")])
def test_archives_of_splits_are_known_by_their_usual_names(tmp_path, names):
    pack(tmp_path / names[0], *samples(range(6)))
    pack(tmp_path / names[1], *samples(range(2)))
    if "TAR" in names[0]:  # other words than those of the split
        names = (names[0], names[1].replace(".x.", ".TAR."))
        (tmp_path / "val_0.x.tar").rename(tmp_path / names[1])
    data = shards(tmp_path)
    assert (len(data.train), len(data.val)) == (6, 2)


def test_archives_of_a_test_split_beside_validation_are_not_used(tmp_path):
    for name in ("train-0", "val-0", "test-0", "extra-0"):
        pack(tmp_path / f"{name}.tar", *samples(range(4)))
    data = shards(tmp_path)
    assert (len(data.train), len(data.val)) == (4, 4)
    assert [note.split(" in ")[0] for note in data.notes] == ["1 archives of test", "1 archives"]


def test_an_evaluation_of_archives_takes_all_of_a_single_class(tmp_path):
    pack(tmp_path / "test-0.tar", ("1.png", png(1)), ("1.cls", b"cat"))
    config = DataConfig(name="shards", root=str(tmp_path))
    with pytest.raises(InputError, match="archives for test but none for train"):
        load_dataset(config)
    assert len(load_dataset(config, hold_out=False).val) == 1
