import io
import os

import numpy as np
import pytest
from PIL import Image, ImageCms
from sklearn.datasets import load_sample_images

from cvt.data.config import DataConfig
from cvt.data.copy.run import OPTIONS, copy
from cvt.data.images import read_image
from cvt.data.load import load_dataset
from cvt.data.sources.folder import folder
from cvt.data.sources.shards import shards
from cvt.data.unreadable import UNREADABLE
from cvt.system.errors import InputError

PHOTO = Image.fromarray(load_sample_images().images[0])  # 640x427


@pytest.fixture
def root(tmp_path):
    """train/ and val/ of two classes: three and one images of each, 150x100 and 90x60."""
    for k, name in enumerate(("temple", "tree [a]")):
        for i in range(4):
            path = tmp_path / "photos" / ("train" if i < 3 else "val") / name / f"{i}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            size = (90, 60) if i == 1 else (150, 100)
            PHOTO.crop((99 * i, 99 * k, 99 * i + 300, 99 * k + 200)).resize(size).save(path)
    return tmp_path / "photos"


def of(root):
    return DataConfig(name="folder", root=str(root))


def content(root):
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*"))
            if p.is_file() and p.name != OPTIONS}


@pytest.mark.parametrize("to", ["folder", "shards"])
def test_a_copy_has_the_same_classes_labels_and_split(root, tmp_path, to):
    out = tmp_path / "out"
    done = copy(of(root), out, to=to, short_side=80, shard_size=4)
    data, small = folder(root), {"folder": folder, "shards": shards}[to](out)
    assert (done.train, done.val, done.existing, done.unreadable) == (6, 2, 0, ())
    assert small.train.classes == data.train.classes == ("temple", "tree [a]")
    assert (small.train.labels, small.val.labels) == (data.train.labels, data.val.labels)
    for i in range(len(data.all)):
        one, other = data.all.read(i), small.all.read(i)
        assert min(other.size) == min(80, min(one.size))
        shrunk = np.asarray(one.resize(other.size, Image.Resampling.LANCZOS), float)
        assert np.abs(shrunk - np.asarray(other)).mean() < 4
    if to == "shards":
        assert sorted(p.name for p in out.glob("*.tar")) == [
            "train-000000.tar", "train-000001.tar", "val-000000.tar"]


def test_small_upright_images_are_copied_byte_for_byte_and_others_lose_their_metadata(root,
                                                                                       tmp_path):
    home = root / "train/temple"
    gray = PHOTO.crop((0, 0, 60, 50)).convert("L")
    gray.save(home / "gray.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    PHOTO.resize((60, 40)).save(home / "turned.jpg", exif=exif)
    PHOTO.save(home / "profile.jpg", icc_profile=profile, exif=exif, comment=b"mine")
    PHOTO.resize((60, 40)).convert("RGBA").save(home / "alpha.png")
    copy(of(root), tmp_path / "out", short_side=80)
    out = tmp_path / "out/train/temple"
    for name in ("gray.png", "1.jpg"):
        assert (out / name).read_bytes() == (home / name).read_bytes()
    for name, size in (("turned.jpg", (40, 60)), ("profile.jpg", (80, 120)),
                       ("alpha.jpg", (60, 40))):
        with Image.open(out / name) as image:
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", size)
            assert not {"icc_profile", "exif", "comment"} & set(image.info)


@pytest.mark.parametrize("to", ["folder", "shards"])
def test_unreadable_images_leave_train_and_stay_in_val(root, tmp_path, to):
    bad = (root / "val/temple/3.jpg").read_bytes()[:700]
    (root / "train/temple/0.jpg").write_bytes(bad)
    (root / "val/temple/3.jpg").write_bytes(bad)
    (root / "val/temple/gone.png").symlink_to("nowhere")
    out = tmp_path / "out"
    for before in (0, 8):
        done = copy(of(root), out, to=to, short_side=80)
        assert (done.train, done.val, done.existing) == (5, 3, before)
        assert [(split, os.path.basename(name)) for split, name, _ in done.unreadable] == [
            ("train", "0.jpg"), ("val", "3.jpg"), ("val", "gone.png")]
        lines = (out / UNREADABLE).read_text().splitlines()
        assert lines[0] == "split,image,reason"
        assert len(lines) == 4
        assert "truncated" in lines[1]
    data = {"folder": folder, "shards": shards}[to](out)
    assert (len(data.train), len(data.val)) == (5, 3)
    assert bad in [data.val.fetch(i) for i in range(3)]
    for i in (0, 1):
        with pytest.raises(InputError, match=r"truncated|is empty"):
            data.val.read(i)


def test_a_copy_that_was_stopped_goes_on_and_is_the_same(root, tmp_path):
    whole, part = tmp_path / "whole", tmp_path / "part"
    copy(of(root), whole, short_side=80)

    def stop(done, _):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        copy(of(root), part, short_side=80, progress=stop)
    there = [p for p in part.rglob("*.jpg") if not p.name.startswith(".")]
    assert 3 <= len(there) <= 8
    there[0].unlink()
    (there[0].parent / ".0.jpg.12345678").write_bytes(b"half of it")
    stamps = {p: p.stat().st_mtime_ns for p in there[1:]}
    done = copy(of(root), part, short_side=80)
    assert done.existing == len(there) - 1
    assert {p: p.stat().st_mtime_ns for p in there[1:]} == stamps
    assert content(part) == content(whole)


def test_an_image_that_was_mended_is_taken_in_later(root, tmp_path):
    path = root / "train/temple/0.jpg"
    sound = path.read_bytes()
    path.write_bytes(b"?")
    assert len(copy(of(root), tmp_path / "out").unreadable) == 1
    path.write_bytes(sound)
    done = copy(of(root), tmp_path / "out")
    assert (done.train, done.existing, done.unreadable) == (6, 7, ())
    assert not (tmp_path / "out" / UNREADABLE).exists()


def test_images_of_one_name_do_not_overwrite_each_other(root, tmp_path):
    home = root / "train/temple"
    for name in ("a/0.png", "b/0.jpg", "b/0.v2.jpg", "b/0_v2.jpg", "\x1b[31m.jpg"):
        (home / name).parent.mkdir(exist_ok=True)
        PHOTO.resize((9, 9)).save(home / name)
    copy(of(root), tmp_path / "out", short_side=80)
    names = sorted(p.name for p in (tmp_path / "out/train/temple").iterdir())
    assert names == ["0-2.png", "0-3.jpg", "0.jpg", "0_v2-2.jpg", "0_v2.jpg", "1.jpg", "2.jpg",
                     "_31m.jpg"]


@pytest.mark.slow
def test_arrays_are_copied_without_loss(tmp_path):
    copy(DataConfig(name="digits"), tmp_path / "out")
    data, small = load_dataset(DataConfig(name="digits")), folder(tmp_path / "out")
    assert (len(small.train), len(small.val)) == (1437, 360)
    place = small.val.names.index(str(tmp_path / "out/val/3") + os.sep
                                  + data.val.names[data.val.labels.index(3)].replace(" ", "_")
                                  + ".png")
    assert small.val.read(place).tobytes() == data.val.read(data.val.labels.index(3)).tobytes()


def table(tmp_path, root, *labels):
    rows = "".join(f'"{root}/train/temple/{i}.jpg","{label}",{split}\n' for label in labels
                   for i, split in ((0, "train"), (1, "val")))
    (tmp_path / "list.csv").write_text("path,label,split\n" + rows)
    return DataConfig(name="manifest", root=str(tmp_path / "list.csv"))


@pytest.mark.parametrize("label", ["a/b", "..", ".hidden", "/etc", "x" * 300])
def test_a_class_that_no_directory_can_be_named_after_is_rejected_and_shards_keep_it(root, tmp_path,
                                                                                   label):
    data = table(tmp_path, root, "plain", label)
    with pytest.raises(InputError, match="--to shards"):
        copy(data, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    copy(data, tmp_path / "out", to="shards")
    assert shards(tmp_path / "out").train.classes == load_dataset(data).train.classes


def test_classes_that_are_numbers_keep_their_meaning_in_shards(root, tmp_path):
    data = table(tmp_path, root, "7", "1", "0")
    copy(data, tmp_path / "out", to="shards")
    small = shards(tmp_path / "out")
    assert [small.train.classes[k] for k in small.train.labels] == ["7", "1", "0"]


def test_what_the_archives_cannot_hold_is_rejected(root, tmp_path):
    for labels, message in ((("a\nb", "c"), "line break"), ((" a", "7"), "with a blank")):
        with pytest.raises(InputError, match=message):
            copy(table(tmp_path, root, *labels), tmp_path / "out", to="shards")


def test_a_directory_that_holds_something_else_is_left_alone(root, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"holds notes\.txt.*--overwrite"):
        copy(of(root), out)
    copy(of(root), out, short_side=80, overwrite=True)
    with pytest.raises(InputError, match="with other options"):
        copy(of(root), out, short_side=50)
    before = content(out)
    copy(of(root), out, short_side=50, overwrite=True)
    after = content(out)
    assert after["notes.txt"] == b"mine"
    assert before.keys() == after.keys()
    assert min(read_image(out / "val/temple/3.jpg").size) == 50
    (root / "val/temple/3.jpg").unlink()
    (root / "val/temple/4.jpg").write_bytes(before["val/temple/3.jpg"])
    with pytest.raises(InputError, match="a copy of other images"):
        copy(of(root), out, short_side=50)


def test_somebody_elses_dataset_is_never_removed(root, tmp_path):
    other = tmp_path / "other"
    (other / "train/cat").mkdir(parents=True)
    (other / "train/cat/1.png").write_bytes(b"the only one")
    with pytest.raises(InputError, match="holds train, which no copy has written"):
        copy(of(root), other, overwrite=True)
    assert content(other) == {"train/cat/1.png": b"the only one"}


def test_a_copy_is_not_written_into_or_around_its_source(root, tmp_path):
    before = content(tmp_path)
    data = table(tmp_path, root, "a", "b")
    for source, out in ((of(root), root), (of(root), root / "small"), (of(root), tmp_path),
                        (data, root), (data, tmp_path)):
        with pytest.raises(InputError, match="not apart"):
            copy(source, out, overwrite=True)
    (tmp_path / "list.csv").unlink()
    assert content(tmp_path) == before


def test_a_very_long_image_is_kept_whole(root, tmp_path):
    file = io.BytesIO()
    Image.new("P", (70_000, 2)).save(file, format="PNG")
    (root / "train/temple/long.png").write_bytes(file.getvalue())
    copy(of(root), tmp_path / "out")
    assert read_image(tmp_path / "out/train/temple/long.png").size == (70_000, 2)


def test_a_copy_that_was_killed_while_it_replaced_another_can_be_replaced(root, tmp_path,
                                                                          monkeypatch):
    out = tmp_path / "out"
    copy(of(root), out, short_side=80)

    def killed(path):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            copy(of(root), out, short_side=50, overwrite=True)

    with pytest.raises(InputError, match="with other options; replace it with --overwrite"):
        copy(of(root), out, short_side=50)
    assert copy(of(root), out, short_side=50, overwrite=True).existing == 0
    assert min(read_image(next(out.rglob("*.jpg"))).size) <= 50
