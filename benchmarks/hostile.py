"""Hostile input to `cvt serve`: images, unusual requests and random bytes.

    python benchmarks/hostile.py [--only images schema fuzz] [--examples 5000] [--minutes 10]

images: corrupt, foreign, unusual and resource-hungry files, one at a time, to a server with its
default limits; each must get a prediction or a named error. Records the time and memory of each.
schema: requests that schemathesis generates from the server's OpenAPI document, for each path
(needs `st` on the path or --schemathesis). fuzz: libFuzzer through atheris (pip install atheris) on
the code that reads images, forms and requests, guided by the coverage of Pillow, python-multipart
and our own code; anything but a named error is a crash.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import re
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from PIL import Image

from bad_files import HARMS, chunk, encoded, png
from cvt.deploy.export import export
from serve import Served, served
from timing import keep

PARTS = ("images", "schema", "fuzz")
TARGETS = ("image", "form", "request")
Make = Callable[[Image.Image], bytes]


def flat(width: int, height: int, mode: str = "RGB", kind: str = "PNG", **options: Any) -> Make:
    def make(_: Image.Image) -> bytes:
        return encoded(Image.new(mode, (width, height)), kind, **options)

    return make


def noisy(width: int, height: int, mode: str, kind: str, **options: Any) -> Make:
    def make(_: Image.Image) -> bytes:
        rng = np.random.default_rng(0)
        bands = Image.new(mode, (1, 1)).getbands()
        coarse = rng.integers(0, 256, (height // 50, width // 50, len(bands)), dtype=np.uint8)
        image = Image.fromarray(coarse.squeeze(), mode)
        return encoded(image.resize((width, height)), kind, **options)

    return make


def saved(mode: str, kind: str, **options: Any) -> Make:
    return lambda image: encoded(image.convert(mode), kind, **options)


def frames(kind: str, count: int, **options: Any) -> Make:
    def make(image: Image.Image) -> bytes:
        rest = [image.rotate(i) for i in range(1, count)]
        return encoded(image, kind, save_all=True, append_images=rest, **options)

    return make


def with_chunk(kind: bytes, body: bytes) -> Make:
    """A PNG with another chunk after its header."""
    def make(image: Image.Image) -> bytes:
        data = encoded(image, "PNG")
        return data[:33] + chunk(kind, body) + data[33:]

    return make


def with_exif(body: bytes) -> Make:
    return lambda image: encoded(image, "JPEG", exif=b"Exif\0\0" + body)


def turned(orientation: int) -> Make:
    def make(image: Image.Image) -> bytes:
        exif = Image.Exif()
        exif[274] = orientation
        return encoded(image, "JPEG", exif=exif)

    return make


def many_scans(count: int) -> Make:
    """A progressive JPEG of 16 million pixels whose last scan is repeated `count` times."""
    def make(_: Image.Image) -> bytes:
        data = encoded(Image.new("RGB", (4000, 4000), "red"), "JPEG", progressive=True)
        last = data.rindex(b"\xff\xda")
        return data[:-2] + data[last:-2] * count + data[-2:]

    return make


def nested_ico(image: Image.Image) -> bytes:
    """An icon with a declared size of 16x16 that contains a PNG of 9,000x9,000 pixels."""
    del image
    inside = png(9000, 9000, zlib.compress(bytes(9000 * 27001)))
    entry = struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(inside), 22)
    return struct.pack("<HHH", 0, 1, 1) + entry + inside


def large_gif(image: Image.Image) -> bytes:
    """A screen of 65,535x65,535 pixels with a small frame."""
    data = bytearray(encoded(image, "GIF"))
    data[6:10] = struct.pack("<HH", 65535, 65535)
    return bytes(data)


def looped_tiff(image: Image.Image) -> bytes:
    """A directory whose next directory is itself."""
    data = bytearray(encoded(image, "TIFF"))
    start = struct.unpack("<I", data[4:8])[0]
    count = struct.unpack("<H", data[start:start + 2])[0]
    data[start + 2 + 12 * count:start + 6 + 12 * count] = struct.pack("<I", start)
    return bytes(data)


# In addition to those of bad_files.py.
KINDS: dict[str, Make] = {
    "JPEG in CMYK": saved("CMYK", "JPEG"),
    "JPEG in gray": saved("L", "JPEG"),
    "progressive JPEG": saved("RGB", "JPEG", progressive=True),
    "JPEG of quality 1": saved("RGB", "JPEG", quality=1),
    **{f"JPEG turned by EXIF {i}": turned(i) for i in (2, 3, 6, 9)},
    "JPEG with random EXIF": with_exif(random.Random(0).randbytes(500)),
    "JPEG with EXIF of a loop": with_exif(
        b"II*\0\x08\0\0\0\x01\0\x69\x87\x04\0\x01\0\0\0\x08\0\0\0\0\0\0\0"),
    "JPEG of 50 scans": many_scans(40),
    "JPEG of 500 scans": many_scans(490),
    "JPEG with bytes behind its end": lambda i: encoded(i, "JPEG") + bytes(100_000),
    "JPEG that is also HTML": lambda i: (
        encoded(i, "JPEG") + b"<script>alert(1)</script>"),
    "JPEG of 16 million pixels": noisy(4000, 4000, "RGB", "JPEG"),
    "PNG of 16 million pixels": noisy(4000, 4000, "RGB", "PNG", compress_level=1),
    "PNG of 16 million pixels with alpha": noisy(4000, 4000, "RGBA", "PNG", compress_level=6),
    "PNG of 16 million pixels, 16 bits of gray": lambda _: encoded(Image.fromarray(
        np.full((4000, 4000), 300, np.uint16)), "PNG", compress_level=1),
    "PNG of 16,004,000 pixels": flat(4001, 4000),
    "GIF of 16 million pixels": noisy(4000, 4000, "L", "GIF"),
    "WebP of 16 million pixels": noisy(4000, 4000, "RGB", "WEBP", quality=1, method=0),
    "TIFF of 16 million pixels, LZW": flat(4000, 4000, "RGB", "TIFF", compression="tiff_lzw"),
    "BMP of 10 million pixels": noisy(4000, 2500, "RGB", "BMP"),
    "PNG of a pixel": flat(1, 1),
    "PNG in palette with transparency": lambda i: encoded(
        i.convert("P"), "PNG", transparency=3),
    "PNG in gray with alpha": saved("LA", "PNG"),
    "PNG of one bit": saved("1", "PNG"),
    "PNG of 16 bits": saved("I;16", "PNG"),
    "PNG whose text unpacks to 100 MB": with_chunk(
        b"zTXt", b"a\0\0" + zlib.compress(bytes(100_000_000), 9)),
    "PNG whose profile unpacks to 100 MB": with_chunk(
        b"iCCP", b"a\0\0" + zlib.compress(bytes(100_000_000), 9)),
    "PNG of 50,000 texts": lambda i: encoded(i, "PNG")[:33] + chunk(
        b"tEXt", b"a\0b") * 50_000 + encoded(i, "PNG")[33:],
    "PNG of unknown chunks": with_chunk(b"abCd", bytes(1000)),
    "PNG of a color type that is none": lambda i: (
        encoded(i, "PNG")[:25] + b"\x05" + encoded(i, "PNG")[26:]),
    "animated PNG": frames("PNG", 5),
    "animated GIF of 500 frames": frames("GIF", 500),
    "animated WebP": frames("WEBP", 5),
    "GIF of a screen of 4 billion pixels": large_gif,
    "TIFF in CMYK": saved("CMYK", "TIFF"),
    "TIFF in Lab": saved("LAB", "TIFF"),
    "TIFF of 5 pages": frames("TIFF", 5),
    "TIFF whose directory follows itself": looped_tiff,
    "TIFF, packed bits": saved("RGB", "TIFF", compression="packbits"),
    "icon with a PNG of 81 million pixels": nested_ico,
    "icon": saved("RGBA", "ICO"),
    "TGA": saved("RGB", "TGA", compression="tga_rle"),
    "JPEG 2000": saved("RGB", "JPEG2000"),
    "JPEG 2000 cut off": lambda i: encoded(i.resize((256, 256)), "JPEG2000")[:3000],
    "AVIF": saved("RGB", "AVIF"),
    "AVIF cut off": lambda i: encoded(i.resize((256, 256)), "AVIF")[:-400],
    "PPM of letters": lambda _: b"P3 4 4 255 " + b"1 2 3 " * 16,
    "PPM of a size that is no number": lambda _: b"P6 9999999999999999999 x 255\n",
    "PGM of 16 bits": lambda _: b"P5 8 8 65535\n" + bytes(range(128)),
    "SVG": lambda _: b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>",
    "SVG with an entity bomb": lambda _: (
        b"<!DOCTYPE s [<!ENTITY a 'aaaaaaaaaa'><!ENTITY b '&a;&a;&a;&a;'>]><svg>&b;</svg>"),
    "PostScript": lambda _: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(id) run\n",
    "PDF": lambda _: b"%PDF-1.7\n1 0 obj<</Type/Catalog>>endobj\n",
    "MPO, DDS, PSD, FLI, in their first bytes": lambda _: b"8BPS\0\1" + bytes(500),
    "program": lambda _: Path(sys.executable).read_bytes()[:5000],
    "gzip": lambda i: b"\x1f\x8b\x08" + encoded(i, "PNG"),
    "pickle": lambda _: b"\x80\x04cos\nsystem\n(S'id'\ntR.",
    "one byte": lambda _: b"\x89",
    "the first bytes of a PNG, again and again": lambda _: b"\x89PNG\r\n\x1a\n" * 1000,
    "31 MB of noise": lambda _: random.Random(2).randbytes(31_000_000),
    "31 MB of noise in a JPEG": lambda i: encoded(i, "JPEG")[:600] + random.Random(
        3).randbytes(31_000_000),
}


def post(port: int, data: bytes) -> tuple[int, dict[str, Any], float]:
    """Status, response and latency in seconds of one image."""
    start = time.perf_counter()
    link = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    link.request("POST", "/v1/classify", data, {"content-type": "application/octet-stream"})
    response = link.getresponse()
    body = response.read()
    link.close()
    return response.status, json.loads(body), time.perf_counter() - start


def peak_mb(server: Served, during: Callable[[], Any]) -> tuple[Any, float]:
    """The result of `during`, and the peak growth of the server's memory in MB."""
    home = Path(f"/proc/{server.process.pid}")

    def mb(name: str) -> float:
        return int(re.search(rf"^{name}:\s+(\d+)", (home / "status").read_text(), re.M)[1]) / 1024

    (home / "clear_refs").write_text("5")  # resets the peak
    before = mb("VmRSS")
    result = during()
    return result, mb("VmHWM") - before


def images(model: Path) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    shirt = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((64, 64))
    cases: dict[str, bytes] = {}
    with tempfile.TemporaryDirectory() as name:
        for kind, (suffix, harm) in HARMS.items():
            path = Path(name) / f"a{suffix}"
            harm(path, shirt)
            if not path.is_symlink():
                cases[kind] = path.read_bytes()
            path.unlink()
    cases |= {kind: make(shirt) for kind, make in KINDS.items()}
    rows = {}
    with served(model) as server:
        good = encoded(shirt, "PNG")
        before = post(server.port, good)[1]["predictions"]
        for kind, data in cases.items():
            (status, body, seconds), mb = peak_mb(server, lambda data=data: post(server.port, data))
            error = body.get("error", {})
            rows[kind] = {"status": status, "bytes": len(data), "seconds": round(seconds, 3),
                          "mb": round(mb, 1), "result": error.get("message")
                          or body["predictions"][0]["classes"][0]["name"]}
            print(kind, json.dumps(rows[kind]), flush=True)
        after = post(server.port, good)[1]["predictions"]
    return {"kinds": len(rows), "statuses": Counter(row["status"] for row in rows.values()),
            "max_seconds": max(row["seconds"] for row in rows.values()),
            "max_mb": max(row["mb"] for row in rows.values()),
            "same_before_and_after": before == after, "rows": rows}


def random_requests(port: int, path: str, count: int) -> Counter[str]:
    """Statuses of requests with random queries, headers and bodies."""
    rng = random.Random(path)
    letters = [chr(i) for i in range(33, 127)]

    def word(max_length: int) -> str:
        return "".join(rng.choices(letters, k=rng.randint(0, max_length)))

    statuses: Counter[str] = Counter()
    link = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    for _ in range(count):
        query = quote(word(40), safe="%&=+;/?")
        headers = {rng.choice(("X-Request-Id", "Accept", "Range", "Origin", "Authorization",
                               "If-None-Match", "Content-Type", "Cookie", "X-Odd")): word(60)
                   for _ in range(rng.randint(0, 3))}
        try:
            link.request(rng.choice(("GET", "GET", "GET", "HEAD", "POST", "OPTIONS", "PUT", "X")),
                         f"{path}?{query}", rng.randbytes(rng.choice((0, 0, 5, 500))), headers)
            response = link.getresponse()
            response.read()
            statuses[str(response.status)] += 1
        except (ConnectionError, http.client.HTTPException):
            statuses["disconnected"] += 1
            link.close()
    return statuses


def schema(model: Path, examples: int, program: str) -> dict[str, Any]:
    """Each path separately, with equally many requests; `random_requests` adds to those without
    parameters, for which schemathesis generates few."""
    results = {}
    # schemathesis writes into the working directory.
    with served(model) as server, tempfile.TemporaryDirectory() as home:
        url = f"http://127.0.0.1:{server.port}/openapi.json"
        for path in ("/v1/classify", "/v1/explain", "/v1/model", "/healthz", "/readyz", "/metrics"):
            start = time.perf_counter()
            done = subprocess.run(
                [program, "run", url, "--include-path", path, "--max-examples", str(examples),
                 "--checks", "not_a_server_error,status_code_conformance,content_type_conformance,"
                 "response_schema_conformance", "--phases", "fuzzing,coverage", "--no-color",
                 "--mode", "all", "--seed", "1", "--suppress-health-check", "all"],
                cwd=home, capture_output=True, text=True, check=False)
            link = http.client.HTTPConnection("127.0.0.1", server.port)
            link.request("GET", "/metrics")
            counts = Counter()
            for code, number in re.findall(
                    rf'cvt_http_requests_total{{path="{path}",status="(\d+)"}} ([\d.e+]+)',
                    link.getresponse().read().decode()):
                counts[code] += int(float(number))
            if counts.total() < examples:
                counts += random_requests(server.port, path, examples)
            results[path] = {"exit_code": done.returncode, "statuses": dict(sorted(counts.items())),
                           "seconds": round(time.perf_counter() - start, 1)}
            print(path, json.dumps(results[path]), flush=True)
            if done.returncode:
                print(done.stdout[-6000:], done.stderr[-2000:])
    return {"examples": examples, "paths": results}


def fuzz(minutes: float) -> dict[str, Any]:
    """Each target in a separate process, one after another."""
    results = {}
    for target in TARGETS:
        with tempfile.TemporaryDirectory() as name:
            home = Path(name)
            (home / "corpus").mkdir()
            for i, data in enumerate(seeds(target)):
                (home / "corpus" / str(i)).write_bytes(data)
            seconds = int(60 * minutes / len(TARGETS))
            done = subprocess.run(
                [sys.executable, Path(__file__).with_name("fuzz_targets.py"), target,
                 str(home / "corpus"),
                 f"-max_total_time={seconds}", "-max_len=8192", "-timeout=5", "-rss_limit_mb=3000",
                 "-print_final_stats=1", "-seed=1"],
                cwd=home, capture_output=True, text=True, check=False)
            runs = re.search(r"number_of_executed_units: (\d+)", done.stderr)
            coverage = re.findall(r"cov: (\d+)", done.stderr)
            results[target] = {
                "seconds": seconds, "exit_code": done.returncode,
                "inputs": int(runs[1]) if runs else 0, "first_coverage": int((coverage or [0])[0]),
                "coverage": int((coverage or [0])[-1]),
                "crashes": sorted(p.name for p in home.glob("*-*") if p.is_file())}
            print(target, json.dumps(results[target]), flush=True)
            if done.returncode:
                print(done.stderr[-4000:])
                for path in home.glob("*-*"):
                    print(path.name, path.read_bytes()[:2000])
    return {"minutes": minutes, "targets": results}


def seeds(target: str) -> list[bytes]:
    """The initial corpus of a target."""
    tiny = Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3))
    files = [encoded(tiny, kind) for kind in ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM",
                                              "ICO", "TGA", "JPEG2000", "AVIF", "QOI")]
    if target == "image":
        return files
    part = (b'--b\r\nContent-Disposition: form-data; name="images"; filename="a.png"\r\n'
            b"Content-Type: image/png\r\n\r\n")
    forms = [part + b"x\r\n--b--\r\n", part + b"x\r\n" + part + b"y\r\n--b--\r\n", b"--b--\r\n"]
    if target == "form":
        return forms
    head = b"POST /v1/classify?top_k=2 HTTP/1.1\r\nHost: localhost\r\n"
    return [head + b"Content-Type: image/png\r\nContent-Length: 3\r\n\r\nabc",
            head + b"Content-Type: multipart/form-data; boundary=b\r\nContent-Length: %d\r\n\r\n"
            % len(forms[0]) + forms[0],
            head + b"Transfer-Encoding: chunked\r\nContent-Type: image/png\r\n\r\n"
            b"3\r\nabc\r\n0\r\n\r\n",
            b"GET /v1/model HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: a\r\n\r\n" * 2,
            b"GET /samples/0 HTTP/1.1\r\nHost: [::1]:8000\r\nOrigin: http://localhost\r\n\r\n"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--examples", type=int, default=5000, help="of schema, for each path")
    parser.add_argument("--schemathesis", default="st", help="the schemathesis program")
    parser.add_argument("--minutes", type=float, default=10, help="duration of fuzz")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        exported = Path(name) / "nano"
        if "images" in args.only:
            export("cvt_nano.fashion_mnist", exported, "openvino")
        parts: dict[str, Callable[[], dict[str, Any]]] = {
            "images": lambda: images(exported),
            "schema": lambda: schema(Path("cvt_nano.fashion_mnist"), args.examples,
                                     args.schemathesis),
            "fuzz": lambda: fuzz(args.minutes)}
        for part in args.only:
            result = parts[part]()
            print(f"{part}:", json.dumps(result, indent=2))
            print(keep(f"hostile_{part}", result), flush=True)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
