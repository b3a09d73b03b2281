import json
import os
import shutil
import time

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from cvt.config import Preprocess
from cvt.data.check.contact_sheet import contact_sheet
from cvt.data.check.duplicates import MAX_LEAKS_PER_IMAGE
from cvt.data.check.run import (
    MANIFEST,
    REPORT,
    SHEET,
    check,
    check_output,
    save_report,
)
from cvt.data.config import DataConfig, guess_source
from cvt.data.load import load_dataset
from cvt.data.sources.builtin import digits
from cvt.data.sources.folder import folder
from cvt.data.sources.manifest import manifest
from cvt.system.errors import InputError

PHOTOS = [Image.fromarray(pixels) for pixels in load_sample_images().images]


@pytest.fixture
def root(tmp_path):
    """train/ and val/ of two classes, six and two different images of each, all readable."""
    for photo, name in zip(PHOTOS, ("temple", "flower"), strict=True):
        for i in range(8):
            path = tmp_path / "photos" / ("train" if i < 6 else "val") / name / f"{i}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            photo.crop((40 * i, 20 * i, 40 * i + 300, 20 * i + 240)).save(path)
    return tmp_path / "photos"


def names(images):
    return [os.path.basename(p.name) for p in images]


def test_a_clean_dataset_has_nothing_to_report(root):
    report = check(folder(root), Preprocess(size=200))
    assert not report.has_errors
    assert (report.train, report.val, report.smaller_than_input) == (12, 4, 0)
    assert (report.exact_duplicates, report.near_duplicates) == ((), ())
    assert (report.leaks, report.unreadable) == ((), ())
    assert (report.width.min, report.height.max) == (300, 240)
    assert (report.formats, report.modes) == ({"JPEG": 16}, {"RGB": 16})


def test_every_unreadable_image_is_listed_in_both_halves_with_its_reason(root):
    (root / "train/temple/0.jpg").write_bytes(b"")
    (root / "val/flower/7.jpg").write_bytes((root / "val/flower/7.jpg").read_bytes()[:900])
    (root / "train/flower/gone.jpg").symlink_to("nowhere")
    Image.new("RGB", (1, 60_000)).save(root / "train/flower/thin.png")
    report = check(folder(root))
    reasons = {(u.split, os.path.basename(u.name), u.label): u.reason for u in report.unreadable}
    assert report.has_errors
    assert reasons.keys() == {("train", "0.jpg", "temple"), ("val", "7.jpg", "flower"),
                              ("train", "gone.jpg", "flower"), ("train", "thin.png", "flower")}
    words = ("empty", "No such file", "too thin", "truncated")
    for (_, name, _), word in zip(sorted(reasons), words, strict=True):
        reason, = (r for (_, n, _), r in reasons.items() if n == name)
        assert word in reason
        assert name in reason
    assert [(c.name, c.unreadable) for c in report.classes] == [("flower", 3), ("temple", 1)]


def test_a_smaller_recompressed_copy_in_val_is_a_leak_and_unrelated_images_are_not(root):
    with Image.open(root / "train/temple/3.jpg") as image:
        image.resize((150, 120), Image.Resampling.LANCZOS).save(root / "val/temple/x.jpg",
                                                                quality=60)
    report = check(folder(root))
    leak, = report.leaks
    assert (leak.kind, *names((leak.val, leak.train))) == ("near", "x.jpg", "3.jpg")
    assert report.has_errors
    group, = report.near_duplicates
    assert names(group.images) == ["3.jpg", "x.jpg"]
    assert report.exact_duplicates == ()


def test_equal_files_and_equal_pixels_are_distinguished_and_conflicting_labels_named(root):
    shutil.copy(root / "train/temple/1.jpg", root / "train/flower/again.jpg")
    with Image.open(root / "train/temple/2.jpg") as image:
        image.save(root / "val/temple/same.png")
    report = check(folder(root))
    assert [(g.kind, names(g.images), g.conflicting_labels) for g in report.exact_duplicates] == [
        ("file", ["again.jpg", "1.jpg"], True), ("pixels", ["2.jpg", "same.png"], False)]
    assert [p.label for p in report.exact_duplicates[0].images] == ["flower", "temple"]
    assert [(k.kind, *names((k.val, k.train))) for k in report.leaks] == [
        ("pixels", "same.png", "2.jpg")]
    assert report.near_duplicates == ()
    written = json.loads(json.dumps(report.to_dict()))
    assert written["exact_duplicates"][0]["conflicting_labels"] is True


def test_duplicates_within_train_are_no_error(root):
    shutil.copy(root / "train/temple/1.jpg", root / "train/temple/again.jpg")
    report = check(folder(root))
    assert len(report.exact_duplicates) == 1
    assert not report.has_errors


@pytest.mark.slow
def test_two_thousand_blank_images_are_quickly_done(tmp_path):
    for i in range(2000):
        home = tmp_path / ("val" if i % 4 == 0 else "train") / str(i % 2)
        home.mkdir(parents=True, exist_ok=True)
        shade = 255 - i % 5
        Image.new("RGB", (16, 16), (shade, shade, shade)).save(home / f"{i}.png")
    start = time.monotonic()
    report = check(folder(tmp_path))
    assert time.monotonic() - start < 15
    assert (report.blank, report.near_duplicates, len(report.exact_duplicates)) == (2000, (), 5)
    assert report.leaked == 500
    assert len(report.leaks) == 500 * MAX_LEAKS_PER_IMAGE


def test_how_images_are_stored_is_counted(root):
    home = root / "train/flower"
    photo = PHOTOS[1].crop((0, 200, 200, 420))
    photo.convert("L").save(home / "gray.png")
    photo.convert("RGBA").rotate(90).save(home / "alpha.png")
    photo.convert("CMYK").rotate(180).save(home / "cmyk.jpg")
    photo.save(home / "moves.gif", save_all=True, append_images=[photo.rotate(9)])
    exif = Image.Exif()
    exif[0x0112] = 6
    photo.resize((300, 100)).save(home / "turned.jpg", exif=exif)
    report = check(folder(root))
    assert report.modes == {"RGB": 17, "CMYK": 1, "L": 1, "P": 1, "RGBA": 1}
    assert report.formats == {"JPEG": 18, "PNG": 2, "GIF": 1}
    assert (report.multi_frame, report.exif_rotated) == (1, 1)
    assert report.height.max == 300  # as it is seen, a quarter turn on


def test_classes_without_validation_images_and_the_imbalance_are_reported(root):
    shutil.rmtree(root / "val/temple")
    for i in range(4):
        (root / f"train/temple/{i}.jpg").unlink()
    report = check(folder(root))
    assert report.classes_without("val") == ("temple",)
    assert report.classes_without("train") == ()
    assert report.imbalance == 3


def test_images_that_never_were_files_are_checked_too():
    report = check(digits())
    assert (report.train, report.val) == (1437, 360)
    assert (report.smaller_than_input, report.formats) == (1797, {})
    assert [g.kind for g in report.exact_duplicates] == []


def test_progress_counts_every_image(root):
    reported = []
    check(folder(root), progress=lambda *args: reported.append(args))
    assert reported == [(i, 16) for i in range(1, 17)]


def test_the_manifest_leaves_unreadable_images_out_of_training_only(root, tmp_path):
    odd = os.fsdecode(b"caf\xe9, \"no. 1\"\n.jpg")
    os.rename(root / "train/temple/5.jpg", root / "train/temple" / odd)
    for name in ("train/temple/0.jpg", "val/flower/7.jpg"):
        (root / name).write_bytes(b"?")
    data = folder(root)
    written = save_report(check(data), data, tmp_path / "check", "photos")
    assert [p.name for p in written] == [REPORT, SHEET, MANIFEST]
    again = manifest(tmp_path / "check" / MANIFEST)
    assert again.train.classes == data.train.classes
    assert {os.path.realpath(n) for n in again.val.names} == set(data.val.names)
    assert {os.path.realpath(n) for n in again.train.names} == (
        set(data.train.names) - {str(root / "train/temple/0.jpg")})
    assert len(json.loads((tmp_path / "check" / REPORT).read_text())["unreadable"]) == 2
    # Relative, so that both may be moved together.
    shutil.move(root, tmp_path / "elsewhere")
    (tmp_path / "elsewhere").rename(root)
    assert str(tmp_path) not in "".join(
        line.split(",")[0] for line in (tmp_path / "check" / MANIFEST).read_text(
            errors="surrogateescape").splitlines())


def test_no_manifest_is_written_of_images_that_are_not_files(tmp_path):
    data = digits()
    written = save_report(check(data), data, tmp_path / "check", "digits")
    assert [p.name for p in written] == [REPORT, SHEET]


def test_the_output_is_not_written_among_the_images(root, tmp_path):
    for output in (root, root / "train/check"):
        with pytest.raises(InputError, match="is inside"):
            check_output(output, root)
    check_output(tmp_path / "check", root)
    check_output(tmp_path, tmp_path / "list.csv")


def test_the_contact_sheet_has_a_row_a_class_and_marks_what_cannot_be_read(tmp_path):
    for label in range(23):
        for half in ("train", "val"):
            home = tmp_path / half / f"{label:02}\n[bold]"
            home.mkdir(parents=True)
            for i in range(30 - label):
                Image.new("RGB", (40, 30), (0, 0, 250)).save(home / f"{i}.png")
    bad = sorted((tmp_path / "train/00\n[bold]").iterdir())[0]
    bad.write_bytes(b"?")
    sheet = np.asarray(contact_sheet(folder(tmp_path), "t").convert("RGB")).astype(int)
    column = sheet[:, 264 + 48]  # through the middle of the first images
    blue = (np.abs(column - (0, 0, 250)).sum(1) < 30).astype(int)
    assert (np.diff(blue) == 1).sum() == 19  # twenty rows, one of them marked
    red = (sheet[..., 0] > 150) & (sheet[..., 1] < 90) & (sheet[..., 2] < 90)
    assert red.sum() > 300
    assert red[:, 264 + 96:].sum() == 0
    assert sheet[0, 0].tolist() == [255, 255, 255]


@pytest.mark.parametrize(("make", "kind"), [
    ("list.csv", "manifest"), ("list.parquet", "manifest"), ("d/train-0.tar", "shards"),
    ("d/train/0.tar", "shards"), ("d/state.json", "huggingface"), ("d/train/cat/0.jpg", "folder"),
    ("d.csv/cat/0.jpg", "folder"),
])
def test_the_kind_of_a_source_is_guessed_from_what_lies_there(tmp_path, make, kind):
    path = tmp_path / make
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    assert guess_source(str(tmp_path / make.split("/")[0])) == kind


def test_a_check_of_its_own_manifest_finds_the_same_sizes(root, tmp_path):
    data = folder(root)
    save_report(check(data), data, tmp_path / "check", "photos")
    table = load_dataset(DataConfig(name="manifest", root=str(tmp_path / "check" / MANIFEST)))
    assert check(table).to_dict()["width"] == check(data).to_dict()["width"]
