"""Unreadable files in a dataset: does the check list each of them, and does training continue?

    python benchmarks/bad_files.py [--print]

5,000 images of Fashion-MNIST, 64 pixels a side, half PNG and half JPEG, sorted into folders; 50
of them are unreadable, in many ways. `cvt data check` must list those and no others. A tiny network
is then trained for an epoch with data.max_unreadable=0.05: the run must complete, list the images
that it could not read, and count those of validation as wrong.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import random
import struct
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from cvt.config import CvTConfig, StageConfig
from cvt.data.config import DataConfig
from cvt.data.sources.builtin import fashion_mnist
from cvt.train import loop
from cvt.train.recipe import OptimConfig, Recipe
from cvt.train.state import UNREADABLE
from timing import keep

IMAGES, BAD = 5_000, 50
Corruption = Callable[[Path, Image.Image], None]


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format=kind, **options)
    return file.getvalue()


def large(image: Image.Image) -> Image.Image:
    return image.resize((256, 256), Image.Resampling.BICUBIC)


def content(make: Callable[[Image.Image], bytes]) -> Corruption:
    return lambda path, image: path.write_bytes(make(image)) and None


def truncated(kind: str, part: float) -> Corruption:
    def make(image: Image.Image) -> bytes:
        data = encoded(large(image), kind)
        return data[:int(len(data) * part)]

    return content(make)


def zeroed(kind: str, start: float, end: float) -> Corruption:
    """Part of the file is zeros, as a disk returns for a lost block.

    Only where a decoder must notice: zeros among the coefficients of a JPEG or WebP file decode to
    a dull image.
    """
    def make(image: Image.Image) -> bytes:
        data = bytearray(encoded(large(image), kind))
        first, last = int(len(data) * start), int(len(data) * end)
        data[first:last] = bytes(last - first)
        return bytes(data)

    return content(make)


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, body: bytes, method: int = 0) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, method, 0, 0)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body)
            + chunk(b"IEND", b""))


def wrong_crc(image: Image.Image) -> bytes:
    data = bytearray(encoded(image, "PNG"))
    data[data.index(b"IDAT") + 8] ^= 0x10
    return bytes(data)


def zipped(image: Image.Image) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("image.png", encoded(image, "PNG"))
    return file.getvalue()


def no_height(image: Image.Image) -> bytes:
    data = bytearray(encoded(image, "JPEG"))
    start = data.index(b"\xff\xc0")  # the frame's header: length, precision, height, width
    data[start + 5:start + 7] = b"\0\0"
    return bytes(data)


def no_tables(image: Image.Image) -> bytes:
    data = bytearray(encoded(image, "JPEG"))
    start = data.index(b"\xff\xc4") + 2  # Huffman's: the length, then the tables
    length = int.from_bytes(data[start:start + 2], "big")
    data[start + 2:start + length] = bytes(length - 2)
    return bytes(data)


def broken_directory(image: Image.Image) -> bytes:
    data = bytearray(encoded(image, "TIFF"))
    start = struct.unpack("<I", data[4:8])[0]
    data[start + 2:start + 14] = b"\xff" * 12
    return bytes(data[:start + 20])


def huge_bmp(image: Image.Image) -> bytes:
    data = bytearray(encoded(image, "BMP"))
    data[18:26] = struct.pack("<ii", 2_000_000_000, 2_000_000_000)
    return bytes(data)


def other_compression(image: Image.Image) -> bytes:
    data = bytearray(encoded(image, "TIFF", compression="raw"))
    place = data.index(struct.pack("<HHI", 259, 3, 1))
    data[place + 8:place + 10] = struct.pack("<H", 12345)
    return bytes(data)


def linked(target: str) -> Corruption:
    def corrupt(path: Path, _: Image.Image) -> None:
        path.symlink_to(path.name if target == "itself" else target)

    return corrupt


def thin(width: int, height: int) -> Corruption:
    return content(lambda _: encoded(Image.new("L", (width, height), 128), "PNG"))


HTML = b"<!DOCTYPE html><html><head><title>404 Not Found</title></head></html>"

# Ways in which a file is unreadable, with its suffix.
CORRUPTIONS: dict[str, tuple[str, Corruption]] = {
    "empty": (".jpg", content(lambda _: b"")),
    "JPEG truncated in its header": (".jpg", truncated("JPEG", 0.02)),
    "JPEG truncated in the middle": (".jpg", truncated("JPEG", 0.5)),
    "PNG truncated in its header": (".png", content(lambda i: encoded(i, "PNG")[:20])),
    "PNG truncated in the middle": (".png", truncated("PNG", 0.5)),
    "WebP truncated": (".webp", truncated("WEBP", 0.5)),
    "GIF of a header alone": (".gif", content(lambda i: encoded(i, "GIF")[:13])),
    "BMP truncated": (".bmp", truncated("BMP", 0.5)),
    "TIFF truncated": (".tif", content(lambda i: encoded(i, "TIFF", compression="tiff_lzw")[:600])),
    "text": (".jpg", content(lambda _: b"a shirt, front view\n" * 20)),
    "page of an error": (".jpg", content(lambda _: HTML)),
    "zip archive": (".png", content(zipped)),
    "random bytes": (".jpg", content(lambda _: random.Random(0).randbytes(3000))),
    "all zeros": (".jpg", content(lambda _: bytes(4096))),
    "JPEG start, then random bytes": (".jpg", content(
        lambda i: encoded(i, "JPEG")[:200] + random.Random(1).randbytes(2000))),
    "PNG with zeros in the middle": (".png", zeroed("PNG", 0.5, 0.75)),
    "WebP with zeros at its start": (".webp", zeroed("WEBP", 0, 0.3)),
    "JPEG with zeros in its tables": (".jpg", content(no_tables)),
    "PNG of a wrong checksum": (".png", content(wrong_crc)),
    "PNG that unpacks to 2.5 billion pixels": (".png", content(
        lambda _: png(50_000, 50_000, zlib.compress(bytes(1000))))),
    "PNG of no pixels": (".png", content(lambda _: png(0, 64, zlib.compress(b"")))),
    "PNG without its data": (".png", content(lambda _: png(64, 64, b""))),
    "JPEG of height 0": (".jpg", content(no_height)),
    "TIFF of a broken directory": (".tif", content(broken_directory)),
    "TIFF of an unknown compression": (".tif", content(other_compression)),
    "TIFF of floating-point samples": (".tif", content(lambda i: encoded(
        Image.fromarray(np.asarray(i.convert("L"), np.float32) / 255), "TIFF"))),
    "BMP of two billion a side": (".bmp", content(huge_bmp)),
    "PPM of too little data": (".ppm", content(lambda _: b"P6 64 64 255\n" + bytes(100))),
    "1 pixel wide, 120,000 high": (".png", thin(1, 120_000)),
    "200,000 pixels wide, 2 high": (".png", thin(200_000, 2)),
    "link to nowhere": (".jpg", linked("nowhere.jpg")),
    "link to itself": (".png", linked("itself")),
}


def build(root: Path) -> dict[str, str]:
    """Write the images; returns the kind of corruption of each unreadable one, by path."""
    data, rng = fashion_mnist(), random.Random(0)
    bad = dict(zip(rng.sample(range(IMAGES), BAD),
                   (list(CORRUPTIONS) * 2)[:BAD], strict=True))
    truth = {}
    for i in range(IMAGES):
        half, source = ("train", data.train) if i % 5 else ("val", data.val)
        image = source.read(i).resize((64, 64), Image.Resampling.BICUBIC)
        home = root / half / source.classes[source.labels[i]]
        home.mkdir(parents=True, exist_ok=True)
        if i in bad:
            suffix, corrupt = CORRUPTIONS[bad[i]]
            path = home / f"{i:05}{suffix}"
            corrupt(path, image)
            truth[str(path)] = bad[i]
        elif i % 2:
            image.save(home / f"{i:05}.png")
        else:
            image.save(home / f"{i:05}.jpg", quality=90)
    # Not an image: opening it would block for ever.
    os.mkfifo(root / "train" / data.train.classes[0] / "pipe.jpg")
    return truth


def checked(root: Path, truth: dict[str, str]) -> tuple[dict[str, object], dict[str, str]]:
    """What `cvt data check` lists, compared with the truth, and the reasons it gives."""
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "cvt", "data", "check", str(root), "--json",
                           "--image_size", "32"], capture_output=True, text=True, check=False,
                          timeout=600)
    seconds = time.monotonic() - start
    report = json.loads(done.stdout)
    reasons = {row["name"]: row["reason"] for row in report["unreadable"]}
    return {"exit_code": done.returncode, "seconds": round(seconds, 1),
            "listed": len(reasons), "missed": sorted({truth[p] for p in truth.keys() - reasons}),
            "too_many": sorted(reasons.keys() - truth.keys()),
            "of_more_than_one_line": sum("\n" in r for r in reasons.values()),
            "standard_error": done.stderr[:500]}, reasons


def trained(home: Path, root: Path, truth: dict[str, str]) -> dict[str, object]:
    """Train for an epoch; returns the unreadable images it listed and its evaluation counted."""
    stages = (StageConfig(dim=8, num_heads=1, depth=1, embed_stride=4, embed_kernel=7,
                          embed_padding=2),
              StageConfig(dim=16, num_heads=2, depth=1, cls_token=True))
    CvTConfig(stages=stages, num_classes=10, image_size=32).save(home / "tiny.json")
    recipe = Recipe(model=str(home / "tiny.json"), image_size=32, epochs=1, batch_size=64,
                    device="cpu", optim=OptimConfig(lr=3e-3, warmup_epochs=0.5),
                    data=DataConfig(name="folder", root=str(root), workers=1,
                                    max_unreadable=0.05))
    run = home / "run"
    start = time.monotonic()
    evaluation = loop.train(recipe, run, quiet=True)
    assert evaluation is not None
    with (run / UNREADABLE).open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    listed = {half: {row["image"] for row in rows if row["split"] == half}
           for half in ("train", "val")}
    bad = {half: {p for p in truth if f"/{half}/" in p} for half in ("train", "val")}
    return {"seconds": round(time.monotonic() - start, 1),
            "train": {"bad": len(bad["train"]), "met": len(listed["train"]),
                      "too_many": sorted(listed["train"] - bad["train"]),
                      # The last batch would not be full, so a few images are not drawn.
                      "not_drawn": len(bad["train"] - listed["train"])},
            "val": {"bad": len(bad["val"]), "met": len(listed["val"]),
                    "same": listed["val"] == bad["val"]},
            "evaluation": {"n": evaluation.n, "images": IMAGES // 5,
                           "unreadable": len(evaluation.unreadable),
                           "same": {u.name for u in evaluation.unreadable} == bad["val"],
                           "top1_of_all": evaluation.top1.value}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--print", action="store_true", help="do not write benchmarks/results")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        truth = build(home / "images")
        check, reasons = checked(home / "images", truth)
        said = {kind: reasons.get(path, "NOT LISTED").replace(f"{home}/images/", "")
                for path, kind in sorted(truth.items(), key=lambda item: item[1])}
        result = {"images": IMAGES, "bad": len(truth), "kinds": len(CORRUPTIONS), "check": check,
                  "training": trained(home, home / "images", truth), "said": said}
    print(json.dumps(result, indent=2))
    if not args.print:
        keep("bad_files", result)


if __name__ == "__main__":
    main()
