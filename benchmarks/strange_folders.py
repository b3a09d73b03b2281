"""Folders, tables and archives as people have them: is each read, or rejected in one line?

    python benchmarks/strange_folders.py [--print] [--only WORDS]

Each case is built from tiny images and named after where it comes from. `cvt data check`, `cvt
train`, `cvt evaluate` and `cvt predict` are then called on it, in this process. Expected is either
a number of images, or an error of one line with the given words. What is left out must be said; no
command may end in a traceback; and all of them must agree: train rejects what data check rejects,
in the same words, and validates as many images. The exit code is 1 if a case is not as expected.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import json
import os
import sys
import tarfile
import tempfile
import time
import traceback
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from cvt import cli
from cvt.config import CvTConfig, Preprocess, StageConfig
from cvt.data.config import guess_source
from cvt.data.listing import list_images
from cvt.model import CvT
from cvt.weights.models import save_model
from timing import keep

Build = Callable[[Path], "Path | None"]  # returns what the commands are given, by default the home
SIDE = 12
SVG = b'<svg xmlns="http://www.w3.org/2000/svg"/>'
HEIC = find_spec("pillow_heif") is not None
FORMATS = {".jpg": "JPEG", ".jpeg": "JPEG", ".jpe": "JPEG", ".jfif": "JPEG", ".png": "PNG",
           ".gif": "GIF", ".bmp": "BMP", ".tif": "TIFF", ".tiff": "TIFF", ".webp": "WEBP",
           ".avif": "AVIF", ".jp2": "JPEG2000"}


@dataclass(frozen=True)
class Case:
    name: str
    build: Build
    n: int | None
    """Images to train on and to validate with; None if it is rejected."""
    says: tuple[str, ...] = ()
    """Words in what data check, train and evaluate print: of the error, or of what is left out."""
    val: int | None = None
    """Images of its own validation split, which evaluate scores; without it, all of them."""
    evaluate: int | str | None = ""
    """What evaluate scores, if it is something else; None for an error."""
    unreadable: int = 0
    """Images among them that cannot be read."""
    predict: int | None = -1
    """Images that predict classifies, by default n; None if it takes no such thing."""
    predict_says: tuple[str, ...] = ()
    """Words that predict prints; it has no classes, so it may read what the others reject."""
    options: tuple[str, ...] = field(default=())
    """Further options of all but predict."""


def encoded(name: str, kind: str) -> bytes:
    """An image that differs from that of any other name."""
    rng = np.random.default_rng(zlib.crc32(name.encode(errors="surrogateescape")))
    file = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(file, kind)
    return file.getvalue()


def content(name: str) -> bytes:
    suffix = os.path.splitext(name)[1].lower()
    if suffix in FORMATS:
        return encoded(name, FORMATS[suffix])
    if suffix == ".heic" and HEIC:
        from pillow_heif import register_heif_opener

        register_heif_opener()
        return encoded(name, "HEIF")
    return SVG if suffix == ".svg" else b"text\n"


def write(home: Path, names: Iterable[str], data: bytes | None = None) -> None:
    for name in names:
        path = home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content(name) if data is None else data)


def spread(*homes: str, n: int = 5, form: str = "{i}.jpg", classes: Sequence[str] = ("cat", "dog")
           ) -> list[str]:
    """Names of n images of each class in each of `homes`."""
    return [f"{home}{name}/{form.format(i=i, name=name)}" for home in homes or ("",)
            for name in classes for i in range(n)]


def folder(*names: str | Sequence[str], links: dict[str, str] | None = None,
           raw: dict[str, bytes] | None = None, at: str = "", empty: Sequence[str] = ()) -> Build:
    """A folder of these files; `raw` maps further ones to their content, `links` links to targets,
    and `at` is what the commands are given."""
    def build(home: Path) -> Path:
        write(home, [name for group in names
                     for name in ([group] if isinstance(group, str) else group)])
        for name, data in (raw or {}).items():
            write(home, [name], data)
        for name in empty:
            (home / name).mkdir(parents=True)
        for name, target in (links or {}).items():
            (home / name).parent.mkdir(parents=True, exist_ok=True)
            (home / name).symlink_to(target)
        return home / at
    return build


def tar(*archives: tuple[str, Sequence[tuple[str, bytes]]], classes: str = "") -> Build:
    def build(home: Path) -> None:
        for name, members in archives:
            (home / name).parent.mkdir(parents=True, exist_ok=True)
            with tarfile.open(home / name, "w") as archive:
                for member, data in members:
                    info = tarfile.TarInfo(member)
                    info.size = len(data)
                    archive.addfile(info, io.BytesIO(data))
        if classes:
            (home / "classes.txt").write_text(classes)
    return build


def samples(n: int = 5, start: int = 0, form: str = "{i:06d}", suffix: str = ".jpg"
            ) -> list[tuple[str, bytes]]:
    """Members of a tar archive: n images of each class."""
    return [member for i in range(start, start + 2 * n) for member in (
        (form.format(i=i) + suffix, content(f"{i}{suffix}")),
        (form.format(i=i) + ".cls", ("cat", "dog")[i % 2].encode()))]


def table(name: str, heading: Sequence[str], rows: Iterable[Sequence[str]], *, files: Sequence[str],
          delimiter: str = ",", encoding: str = "utf-8", end: str = "\n") -> Build:
    def build(home: Path) -> Path:
        write(home, files)
        with (home / name).open("w", encoding=encoding, newline="") as file:
            csv.writer(file, delimiter=delimiter, lineterminator=end).writerows([heading, *rows])
        return home / name
    return build


IMAGES = spread("img/")
ROWS = [(name, name.split("/")[1]) for name in IMAGES]
MOTION = encoded("motion", "JPEG") + b"\0\0\0\x18ftypmp42" + b"\xff\xda" * 100 + bytes(2000)
NFC, NFD = (unicodedata.normalize(form, "caf\u00e9") for form in ("NFC", "NFD"))


def zipped(home: Path) -> Path:
    with zipfile.ZipFile(home / "photos.zip", "w") as archive:
        for name in spread():
            archive.writestr(name, content(name))
    return home / "photos.zip"


def many_links(home: Path) -> None:
    write(home, spread())
    for depth in range(30):  # 2^30 ways without a loop
        (home / f"cat/d{depth}").mkdir()
        for name in ("one", "two"):
            (home / f"cat/d{depth}" / name).symlink_to(home / f"cat/d{depth + 1}")
    write(home, ["cat/d30/x.jpg"])


NO_FOLDERS = "not in sub-directories"
LEFT = "left out: "
CASES: list[Case] = [
    Case("torchvision ImageFolder", folder(spread()), 10),
    Case("torchvision ImageFolder with splits", folder(spread("train/"), spread("val/", n=2)), 14,
         val=4),
    # Splits
    Case("Keras: Train and Validation", folder(spread("Train/"), spread("Validation/", n=2)), 14,
         val=4),
    Case("Kaggle chest X-ray: train, val, test",
         folder(spread("train/"), spread("val/", n=2), spread("test/", n=2)), 14, val=4, predict=18,
         says=("test/ is used neither to train nor to validate",)),
    Case("Kaggle fruits-360: Training and Test",
         folder(spread("Training/"), spread("Test/", n=2)), 14, val=4,
         says=("Test/ is used for validation",)),
    Case("Kaggle cats and dogs: training_set/training_set",
         folder(spread("training_set/training_set/"), spread("test_set/test_set/", n=2)), 14,
         val=4, says=("test_set/ is used for validation",)),
    Case("Kaggle Intel: seg_train, seg_test, seg_pred",
         folder(spread("seg_train/seg_train/"), spread("seg_test/seg_test/", n=2),
                ["seg_pred/seg_pred/1.jpg", "seg_pred/seg_pred/2.jpg"]), 14, val=4, predict=16,
         says=("2 images beside the class directories",)),
    Case("Kaggle ASL: asl_alphabet_train alone and a flat test",
         folder(spread("asl_train/"), ["asl_test/A_test.jpg"]), None, predict=11,
         says=(NO_FOLDERS,)),
    Case("Roboflow: train, valid, test with README and _classes.csv",
         folder(spread("train/"), spread("valid/", n=2), spread("test/", n=1),
                ["README.roboflow.txt", "train/_classes.csv"]), 14, val=4, predict=16,
         says=("1 .csv, 1 .txt (not images)", "test/ is used neither")),
    Case("fast.ai imagenette: TRAIN and VAL in capitals",
         folder(spread("TRAIN/"), spread("VAL/", n=2)), 14, val=4),
    Case("a colleague's script: dev and train", folder(spread("train/"), spread("dev/", n=2)), 14,
         val=4),
    Case("a colleague's script: train_images and val_images",
         folder(spread("train_images/"), spread("val_images/", n=2)), 14, val=4),
    Case("COCO style: train2017 and val2017",
         folder(spread("train2017/"), spread("val2017/", n=2), ["annotations/instances.json"]), 14,
         val=4, says=("1 .json (not images)",)),
    Case("a download that stopped: train alone", folder(spread("train/")), 10,
         says=("0.2 of each class",), evaluate=10),
    Case("a test set alone", folder(spread("test/")), None, evaluate=10, predict=10,
         says=("has test/ but no train/",)),
    Case("an export with val and valid", folder(spread("train/", "val/", "valid/")), None,
         predict=30, says=("all names of the val split", "join them")),
    Case("cross-validation: fold1 and fold2", folder(spread("fold1/", "fold2/")), None, predict=20,
         says=("hold the same directories, cat, dog", "call them train and val")),
    Case("MVTec: a train and a test in each class",
         folder([f"{c}/{s}/{i}.png" for c in ("cat", "dog") for s in ("train", "test")
                 for i in range(3)]), None, predict=12, says=("move cat/test to test/cat",)),
    Case("CycleGAN: trainA, trainB, testA, testB",
         folder([f"{s}/{i}.jpg" for s in ("trainA", "trainB", "testA", "testB") for i in range(3)]),
         None, predict=12, says=("names of splits, not of classes",)),
    Case("Kaggle dogs-vs-cats: flat train and test1",
         folder([f"train/cat.{i}.jpg" for i in range(5)], ["test1/1.jpg"]), None, predict=6,
         says=("train has 5 images, but " + NO_FOLDERS, "list images and labels in a table")),
    Case("ImageNet: val without class directories",
         folder(spread("train/"), [f"val/ILSVRC2012_val_{i:08d}.JPEG" for i in range(4)]), None,
         predict=14, says=("val has 4 images, but " + NO_FOLDERS,)),
    Case("tiny-imagenet: images/ in each class",
         folder([f"train/{c}/images/{i}.JPEG" for c in ("cat", "dog") for i in range(5)],
                spread("val/", n=2)), 14, val=4),
    Case("a class called train", folder(spread(classes=["cat", "dog"]),
                                        spread(classes=["train"])), 15, evaluate=None),
    Case("backgrounds beside train", folder(spread("train/"), ["backgrounds/1.jpg"]), None,
         predict=11, says=("train/ with directories in it beside backgrounds/",)),
    Case("unlabelled images beside the splits",
         folder(spread("train/"), spread("val/", n=2), ["unlabeled/1.jpg"]), 14, val=4, predict=15,
         says=("1 images beside the class directories",)),
    # Layouts
    Case("unzipped with one directory around it", folder(spread("photos/")), None, evaluate=None,
         predict=10, says=("photos",)),
    Case("unzipped with one directory around the splits",
         folder(spread("set/train/", "set/val/")), None, predict=20, says=("give data.root=",)),
    Case("a flat folder", folder([f"{i}.jpg" for i in range(5)]), None, predict=5,
         says=(NO_FOLDERS,)),
    Case("Oxford pets: images and annotations",
         folder([f"images/cat_{i}.jpg" for i in range(4)],
                [f"annotations/trimaps/cat_{i}.png" for i in range(4)]), None, predict=8,
         says=("parts of a dataset for detection or segmentation",)),
    Case("Pascal VOC", folder(["JPEGImages/1.jpg", "SegmentationClass/1.png", "Annotations/1.xml"]),
         None, predict=2, says=("parts of a dataset",)),
    Case("YOLO: images and labels", folder([f"images/{i}.jpg" for i in range(4)],
                                           [f"labels/{i}.txt" for i in range(4)]), None, predict=4,
         evaluate=None, says=("'images'",)),
    Case("annotations beside the classes", folder(spread(), ["annotations/1.xml", "notes.md"]), 10,
         says=("1 .md, 1 .xml (not images)", "1 class directories without images")),
    Case("a single class", folder(spread(classes=["cat"])), None, evaluate=5, predict=5,
         says=("single class 'cat'",)),
    Case("a new, empty class", folder(spread(), empty=["mouse"]), 10,
         says=("1 class directories without images",)),
    Case("strays beside the classes", folder(spread(), ["stray.jpg", "stray2.PNG"]), 10, predict=12,
         says=("2 images beside the class directories",)),
    Case("sub-directories in a class", folder(spread(), ["cat/2021/05/a.jpg", "dog/old/b.jpg"]),
         12),
    Case("an empty folder", folder(empty=["x"], at="x"), None, predict=None,
         predict_says=("has no images",), says=("no images in sub-directories",)),
    Case("a missing folder", folder(at="gone"), None, predict=None,
         predict_says=("gone",), says=("is not a directory",)),
    # Systems
    Case("Mac: .DS_Store and ._ files", folder(
        spread(), [".DS_Store", "cat/.DS_Store", "cat/._0.jpg", "dog/._1.jpg"]), 10,
         says=("4 hidden or system files",)),
    Case("Mac zip: __MACOSX", folder(spread(), spread("__MACOSX/", form="._{i}.jpg")), 10,
         says=("1 hidden or system files",)),
    Case("Mac zip with splits", folder(spread("train/"), spread("val/", n=2),
                                       spread("__MACOSX/train/", form="._{i}.jpg")), 14, val=4,
         says=("1 hidden or system files",)),
    Case("Mac: custom folder icon", folder(spread(), ["cat/Icon\r"]), 10,
         says=("1 hidden or system files",)),
    Case("Synology NAS: @eaDir and #recycle", folder(
        spread(), ["cat/@eaDir/0.jpg/SYNOPHOTO_THUMB_M.jpg", "#recycle/1.jpg"]), 10,
         says=("2 hidden or system files",)),
    Case("QNAP NAS: .@__thumb", folder(spread(), ["cat/.@__thumb/0.jpg", "@Recycle/x.jpg"]), 10,
         says=("2 hidden or system files",)),
    Case("Windows: Thumbs.db and desktop.ini", folder(
        spread(), ["cat/Thumbs.db", "dog/THUMBS.DB", "Desktop.ini"]), 10,
         says=("3 hidden or system files",)),
    Case("Windows: a shortcut and a recycle bin", folder(
        spread(), ["cat/0 - Shortcut.lnk", "$RECYCLE.BIN/S-1/x.jpg"]), 10,
         says=("1 .lnk (not images)", "1 hidden or system files")),
    Case("Windows: upper-case suffixes and spaces", folder(
        spread(form="New Image ({i}).JPG")), 10),
    Case("Linux: a mounted disk with lost+found", folder(spread(), empty=["lost+found"]), 10,
         says=("1 hidden or system files",)),
    Case("Jupyter: .ipynb_checkpoints", folder(
        spread(), ["cat/.ipynb_checkpoints/0-checkpoint.jpg", ".ipynb_checkpoints/x.ipynb"]), 10,
         says=("2 hidden or system files",)),
    Case("git repository", folder(spread(), [".git/config", ".gitattributes", "LICENSE"]), 10,
         says=("2 hidden or system files", "1 without a suffix")),
    # Phones, cameras, services
    Case("iPhone: JPEG with MOV and AAE", folder(
        spread(form="IMG_{i:04d}.JPG"), ["cat/IMG_0001.MOV", "cat/IMG_0002.AAE"]), 10,
         says=("1 .aae, 1 .mov (not images)",)),
    Case("iPhone: some HEIC", folder(spread(), ["cat/IMG_1.HEIC"]), 11 if HEIC else 10,
         says=() if HEIC else ("1 .heic (read after pip install",)),
    Case("iPhone: a class of HEIC", folder(
        spread(classes=["cat"]), spread(classes=["dog"], form="IMG_{i}.HEIC")),
         10 if HEIC else None, predict=10 if HEIC else 5, predict_says=() if HEIC else ("5 .heic",),
         says=() if HEIC else ("dog has no image that can be read: 5 .heic",)),
    Case("Android: Motion Photos", folder(spread(), raw={"cat/PXL_1.MP.jpg": MOTION}), 11),
    Case("Android: .thumbnails, .nomedia and .trashed", folder(
        spread(), ["cat/.thumbnails/1.jpg", "cat/.nomedia", "dog/.trashed-1700-1.jpg"]), 10,
         says=("3 hidden or system files",)),
    Case("camera: raw files beside JPEG", folder(
        spread(form="IMG_{i:04d}.JPG"), ["cat/IMG_0000.CR2", "dog/IMG_0001.NEF"]), 10,
         says=("1 .cr2, 1 .nef (formats that are not read: convert",)),
    Case("camera: a class of raw files", folder(
        spread(classes=["cat"]), spread(classes=["dog"], form="{i}.ARW")), None, predict=5,
         says=("dog has no image that can be read: 5 .arw",), predict_says=("5 .arw",)),
    Case("camera card: DCIM directories", folder(
        [f"{c}/DCIM/100CANON/IMG_{i}.JPG" for c in ("cat", "dog") for i in range(5)],
        ["cat/DCIM/CANONMSC/M0100.CTG"]), 10, says=("1 .ctg",)),
    Case("Google Takeout: sidecars", folder(
        spread(), [f"{name}.json" for name in spread()], ["cat/metadata.json"]), 10,
         says=("11 .json (not images)",)),
    Case("Google Images scraper: names without a suffix", folder(
        spread(n=3), raw={f"{c}/{i}": encoded(f"{c}{i}", "JPEG") for c in ("cat", "dog")
                          for i in (7, 8)} | {"cat/9": b"<html>404</html>"}), 10,
         says=("1 without a suffix (not images)",)),
    Case("scanner: dates with dots for names", folder(
        raw={f"{c}/Scan 2021.05.0{i}": encoded(f"{c}{i}", "TIFF") for c in ("cat", "dog")
             for i in range(5)}), 10),
    Case("Wikimedia: a fifth is SVG", folder(spread(), ["cat/a.svg", "dog/b.SVG", "dog/c.svg"]), 10,
         says=("3 .svg (formats that are not read: convert them to JPEG or PNG)",)),
    Case("icons: a class of SVG", folder(spread(classes=["cat"]),
                                         spread(classes=["dog"], form="{i}.svg")), None, predict=5,
         says=("dog has no image that can be read: 5 .svg",), predict_says=("5 .svg",)),
    Case("browser: downloads that stopped", folder(spread(), ["cat/x.jpg.crdownload",
                                                              "dog/y.jpg.part"]), 10,
         says=("1 .crdownload, 1 .part (not images)",)),
    Case("editor: .psd, .xcf and backups", folder(spread(), ["cat/0.psd", "cat/1.xcf", "dog/0.jpg~",
                                                             "dog/1.bak"]), 10,
         says=("1 .jpg~, 1 .psd, 1 .xcf", "1 .bak (not images)")),
    Case("video frames: a video beside them", folder(spread(), ["cat/clip.mp4"]), 10,
         says=("1 .mp4 (not images)",)),
    Case("every format", folder([f"{c}/{i}{suffix}" for c in ("cat", "dog")
                                 for i, suffix in enumerate(FORMATS)]), 2 * len(FORMATS)),
    # Links
    Case("a colleague's script: links to files", folder(
        [f"store/{i}.jpg" for i in range(10)], links={
            f"set/{c}/{i}.jpg": f"../../store/{i + 5 * (c == 'dog')}.jpg"
            for c in ("cat", "dog") for i in range(5)}, at="set"), 10),
    Case("a colleague's script: links to class directories", folder(
        spread("store/"), links={"set/cat": "../store/cat", "set/dog": "../store/dog"}, at="set"),
         10),
    Case("a colleague's script: a link to a directory inside a class", folder(
        spread("set/"), ["more/1.jpg", "more/2.jpg"], links={"set/cat/more": "../../more"},
        at="set"), 12),
    Case("a link to its own directory", folder(spread(), links={"cat/again": "."}), 10,
         says=("1 links to directories that are listed already",)),
    Case("a link to the directory above", folder(spread(), links={"cat/up": ".."}), 10,
         says=("1 links to directories that are listed already or lie above",)),
    Case("links in 2^30 ways", many_links, 11,
         says=("60 links to directories that are listed already",)),
    Case("an unmounted disk: a class is a link to nowhere", folder(
        spread(), links={"mouse": "/mnt/gone/mouse"}), None, predict=10,
         predict_says=("1 links that lead nowhere",),
         says=("mouse is a link to /mnt/gone/mouse that cannot be opened",)),
    Case("git-annex: links to images that lead nowhere", folder(
        spread(), links={"cat/9.jpg": "../.git/annex/objects/9.jpg"}), 11,
         unreadable=1, predict_says=("9.jpg",)),
    # Archives
    Case("WebDataset", tar(("train-000000.tar", samples()), ("val-000000.tar", samples(2, 20))), 14,
         val=4),
    Case("WebDataset without splits", tar(("000000.tar", samples()), ("000001.tar",
                                                                     samples(2, 20))), 14),
    Case("WebDataset: train and validation", tar(
        ("imagenet-train-0000.tar", samples()), ("imagenet-validation-0000.tar", samples(2, 20))),
         14, val=4),
    Case("WebDataset: Train and Test directories", tar(
        ("Train/0.tar", samples()), ("Test/0.tar", samples(2, 20))), 14, val=4, predict=14,
         says=("are used for validation",)),
    Case("tar made on a Mac", tar(("a.tar", [
        ("._.DS_Store", b"x"), (".DS_Store", b"x"), ("./._000000.jpg", b"x"),
        *samples(form="./{i:06d}"), ("__MACOSX/._000001.jpg", b"x")]),), 10,
         says=("4 hidden or system files",)),
    Case("a tar archive's own ._ file", tar(("a.tar", samples()), ("._a.tar", [("x", b"")])), 10),
    Case("tar with captions and SVG", tar(("a.tar", [
        *samples(), ("000000.txt", b"a cat"), ("x.svg", SVG), ("x.cls", b"cat")])), 10,
         says=("1 .svg (formats", "1 .txt (not images)")),
    Case("tar of a class of raw files", tar(("a.tar", [
        *samples(), ("x.nef", b"raw"), ("x.cls", b"mouse")])), None, predict=10,
         says=("the class 'mouse' has no image that can be read",), predict_says=("1 .nef",)),
    Case("tar of class directories", tar(("a.tar", [(n, content(n)) for n in spread()])), None,
         predict=10, says=("has no class; it takes",)),
    Case("an archive beside what was unpacked from it", lambda home: (
        folder(spread())(home), tar(("photos.tar", [(n, content(n)) for n in spread()]))(home))[1],
         10, says=("1 .tar (not images)",)),
    Case("a zip file", zipped, None, predict=None, says=("unpack it",),
         predict_says=("unpack it",)),
    # Tables and lists
    Case("pandas: path,label", table("list.csv", ("path", "label"), ROWS, files=IMAGES), 10,
         predict=None),
    Case("pandas: index column", table(
        "list.csv", ("", "path", "label"), [(str(i), *row) for i, row in enumerate(ROWS)],
        files=IMAGES), 10, predict=None),
    Case("Excel in Europe: semicolons and a byte order mark", table(
        "list.csv", ("path", "label"), ROWS, files=IMAGES, delimiter=";", encoding="utf-8-sig",
        end="\r\n"), 10, predict=None),
    Case("Excel: tabs in a .csv", table("list.csv", ("path", "label"), ROWS, files=IMAGES,
                                        delimiter="\t"), 10, predict=None),
    Case("typed by hand: Path, Label", table("list.csv", ("Path", " label"), ROWS, files=IMAGES),
         10, predict=None),
    Case("Kaggle: id_code,diagnosis", table("list.csv", ("id_code", "diagnosis"), ROWS,
                                            files=IMAGES), None, predict=None,
         says=("one must be path",)),
    Case("Label Studio: image,choice with more columns", table(
        "list.csv", ("image", "id", "choice", "annotator"),
        [(path, "1", label, "7") for path, label in ROWS], files=IMAGES), 10, predict=None,
         options=("--data.path_column", "image", "--data.label_column", "choice")),
    Case("a Mac's names: NFD on disk, NFC in the table", table(
        "list.csv", ("path", "label"), [(f"img/{NFC}{i}.jpg", ("cat", "dog")[i % 2])
                                        for i in range(10)],
        files=[f"img/{NFD}{i}.jpg" for i in range(10)]), 10, predict=None,
         options=("--data.max_unreadable", "0")),
    Case("a table with test rows named testing", table(
        "list.csv", ("path", "label", "split"),
        [(path, label, ("Training", "Validation", "Testing")[i % 5 % 3])
         for i, (path, label) in enumerate(ROWS)], files=IMAGES), 8, val=4, predict=None),
]


@dataclass
class Outcome:
    code: int
    out: str
    err: str
    traceback: str = ""

    @property
    def error(self) -> str:
        """The last line, without the name of the command."""
        return self.err.strip().rpartition("\n")[2].partition(": ")[2]


def run(*args: str | Path) -> Outcome:
    out, err = io.StringIO(), io.StringIO()
    trace, code = "", -1
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = cli.main([str(arg) for arg in args])
        except BaseException:
            trace = traceback.format_exc()
    return Outcome(code, out.getvalue(), err.getvalue(), trace)


def judge(case: Case, home: Path, model: Path, recipe: Path) -> dict[str, Any]:
    """What the four commands do with a case, and what of it is not as expected."""
    root = home / "case"
    root.mkdir()
    root = case.build(root) or root
    wrong: list[str] = []
    data = ("--data.name", guess_source(str(root)), "--data.root", root, *case.options)
    readable = tuple(option for option in case.options if "max_unreadable" not in option
                     and option != "0")
    outcomes = {"check": run("data", "check", root, "--output", home / "check", "--quiet",
                             *readable)}
    outcomes["train"] = run("train", "--config", recipe, "--output", home / "run",
                            "--data.max_unreadable", "1", *data)
    outcomes["evaluate"] = run("evaluate", "--model", model, "--output", home / "evaluation",
                               "--data.max_unreadable", "1", *data)
    if case.predict is not None or case.predict_says:
        outcomes["predict"] = run("predict", root, "--model", model, "--json")
    numbers: dict[str, int | None] = dict.fromkeys(outcomes)

    def number(path: Path, *keys: str) -> int | None:
        read = json.loads(path.read_text()) if path.exists() else None
        return read and sum(read[key] if isinstance(read[key], int) else len(read[key])
                            for key in keys)

    numbers["check"] = number(home / "check" / "check.json", "train", "val")
    validated = number(home / "check" / "check.json", "val")
    numbers["train"] = number(home / "run" / "metrics.json", "n")
    numbers["evaluate"] = number(home / "evaluation" / "metrics.json", "n")
    if "predict" in outcomes:
        numbers["predict"] = outcomes["predict"].out.count("\n") or None

    for name, outcome in outcomes.items():
        if outcome.traceback:
            wrong.append(f"{name}: traceback: {outcome.traceback.strip().splitlines()[-1]}")
        elif numbers[name] is None and (outcome.code == 0 or not outcome.error):
            wrong.append(f"{name}: code {outcome.code} and no error")
    scored = case.evaluate if case.evaluate != "" else (case.val or case.n)
    expected = {"check": case.n, "train": validated if case.n is not None else None,
                "evaluate": scored, "predict": case.n if case.predict == -1 else case.predict}
    for name, outcome in outcomes.items():
        if numbers[name] != expected[name]:
            wrong.append(f"{name}: {numbers[name]} images, expected {expected[name]}: "
                         f"{outcome.error}")
    bad = number(home / "check" / "check.json", "unreadable")
    if bad not in (None, case.unreadable):
        wrong.append(f"{bad} images cannot be read: {outcomes['check'].out[-500:]}")
    for words in case.says:
        for name in ("check", "train", "evaluate"):
            if name == "evaluate" and (scored is None) != (case.n is None):
                continue
            if name == "evaluate" and ("of each class" in words or case.n is None is not scored):
                continue
            text = outcomes[name].out + outcomes[name].err
            if words not in text:
                wrong.append(f"{name} does not say {words!r}: {outcomes[name].err[-300:]!r}")
    for words in case.predict_says:
        if words not in outcomes["predict"].err:
            wrong.append(f"predict does not say {words!r}: {outcomes['predict'].err[-300:]!r}")
    if outcomes["check"].error != outcomes["train"].error and case.n is None:
        wrong.append(f"train says {outcomes['train'].error!r}")
    lines = {name: outcome.err.replace(str(home), "").strip()[:500]
             for name, outcome in outcomes.items()}
    return {"case": case.name, "expected": case.n, "images": numbers, "said": lines,
            "wrong": wrong}


def walk(files: int, directories: int) -> dict[str, Any]:
    """Seconds to list a folder, the fastest of three; with pathlib once."""
    with tempfile.TemporaryDirectory() as name:
        for i in range(files):
            if i < directories:
                os.mkdir(f"{name}/{i:05}")
            os.close(os.open(f"{name}/{i % directories:05}/{i:08}.jpg", os.O_CREAT))

        def seconds(list_all: Callable[[], Sequence[object]], times_to_do: int) -> float:
            times = []
            for _ in range(times_to_do):
                start = time.perf_counter()
                assert len(list_all()) == files
                times.append(time.perf_counter() - start)
            return round(min(times), 3)

        return {"files": files, "directories": directories,
                "list_images": seconds(lambda: list_images(Path(name)), 3),
                "rglob_and_is_file": seconds(lambda: sorted(
                    path for path in Path(name).rglob("*") if path.is_file()), 1)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--print", action="store_true", help="do not write benchmarks/results")
    parser.add_argument("--only", default="", help="cases whose name contains these words")
    args = parser.parse_args()
    torch.set_num_threads(1)
    start, rows = time.monotonic(), []
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        stage = StageConfig(dim=8, num_heads=1, depth=1, cls_token=True)
        config = CvTConfig(stages=(stage,), num_classes=2, image_size=8)
        config.save(home / "tiny.json")
        save_model(home / "model", CvT(config), Preprocess(size=8, crop=1.0), ("cat", "dog"))
        (home / "recipe.yaml").write_text(
            f"model: {home / 'tiny.json'}\nimage_size: 8\nepochs: 1\nbatch_size: 4\ndevice: cpu\n"
            "optim: {lr: 0.001, warmup_epochs: 0}\n")
        for i, case in enumerate(case for case in CASES if args.only in case.name):
            place = home / str(i)
            place.mkdir()
            rows.append(judge(case, place, home / "model", home / "recipe.yaml"))
            print(f"{'WRONG' if rows[-1]['wrong'] else 'ok':6}{case.name}", *rows[-1]["wrong"],
                  sep="\n        ", flush=True)
    wrong = [row["case"] for row in rows if row["wrong"]]
    result = {"cases": len(rows), "as_expected": len(rows) - len(wrong), "wrong": wrong,
              "loaded": sum(row["expected"] is not None for row in rows),
              "tracebacks": sum("traceback" in text for row in rows for text in row["wrong"]),
              "heic_is_read": HEIC,
              "walk_seconds": [] if args.only else [walk(65_000, 100), walk(66_000, 22_000)],
              "seconds": round(time.monotonic() - start), "rows": rows}
    print(json.dumps({key: value for key, value in result.items() if key != "rows"}, indent=2))
    if not args.print:
        keep("strange_folders", result)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
