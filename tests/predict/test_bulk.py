import csv
import dataclasses
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from cvt.cli import main
from cvt.config import CvTConfig, Preprocess, StageConfig
from cvt.model import CvT
from cvt.predict.bulk import classify_into
from cvt.predict.predictor import Predictor, find_images
from cvt.system.errors import InputError
from cvt.weights.models import save_model

CLASSES = ("ant", "=bee", "cat", "dog")


@pytest.fixture(scope="module")
def home(tmp_path_factory, telling):
    """model/, and images/ with ten readable and two unreadable images."""
    home = tmp_path_factory.mktemp("bulk")
    torch.manual_seed(0)
    stage = StageConfig(dim=8, num_heads=1, depth=1, cls_token=True)
    model = telling(CvT(CvTConfig(stages=(stage,), num_classes=4, image_size=24)))
    save_model(home / "model", model, Preprocess(size=24), CLASSES)
    rng = np.random.default_rng(0)
    (home / "images").mkdir()
    for i in range(10):
        Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)).save(
            home / "images" / f"{i}.png")
    (home / "images" / "4 empty.png").touch()
    (home / "images" / "=1+2\x1b[31m.png").write_bytes(b"no image")
    return home


@pytest.fixture(scope="module")
def predictor(home):
    return Predictor(home / "model", batch_size=2)


def read_rows(output, table):
    """Image, classes, probabilities and error of each row of all parts."""
    for part in sorted(output.glob(f"part-*.{table}")):
        if table == "parquet":
            for row in pyarrow.parquet.read_table(part).to_pylist():
                assert row["class"] == (row["classes"] or [None])[0]
                yield row["image"], row["classes"], row["probabilities"], row["error"]
        elif table == "jsonl":
            for row in map(json.loads, part.read_text().splitlines()):
                yield (row["image"], [c["name"] for c in row["classes"]],
                       [c["probability"] for c in row["classes"]], row.get("error"))
        else:
            with part.open(newline="") as file:
                for row in csv.DictReader(file):
                    ranks = [i for i in range(1, 5) if row.get(f"class_{i}")]
                    yield (row["image"], [row[f"class_{i}"] for i in ranks],
                           [float(row[f"probability_{i}"]) for i in ranks], row["error"] or None)


@pytest.mark.parametrize("table", ["csv", "jsonl", "parquet"])
def test_each_table_format_has_the_predictions(home, predictor, tmp_path, table):
    images = find_images([str(home / "images")])
    outcome = classify_into(tmp_path / "out", predictor, images, table=table, top_k=2, part_size=5)

    assert (outcome.images, outcome.skipped, outcome.unreadable) == (12, 0, 2)
    rows = list(read_rows(tmp_path / "out", table))
    for (name, classes, probabilities, error), expected in zip(
            rows, predictor(images, 2), strict=True):
        safe = table == "csv"
        assert name == (expected.image.replace("\x1b", "\\x1b") if safe else expected.image)
        assert classes == [f"'{c}" if safe and c[0] == "=" else c for c, _ in expected.classes]
        assert probabilities == pytest.approx([p for _, p in expected.classes], rel=1e-5)
        assert (error is None) == (expected.error is None)
    with (tmp_path / "out/unreadable.csv").open(newline="") as file:
        heading, *bad = csv.reader(file)
    assert heading == ["image", "reason"]
    assert [Path(name).name for name, _ in bad] == ["4 empty.png", "=1+2\\x1b[31m.png"]
    assert "is empty" in bad[0][1]


def test_a_name_that_looks_like_a_formula_is_escaped(home, predictor, tmp_path, monkeypatch):
    monkeypatch.chdir(home / "images")
    classify_into(tmp_path / "out", predictor, ["=1+2\x1b[31m.png", "0.png"])
    rows = list(read_rows(tmp_path / "out", "csv"))
    assert rows[0][0] == "'=1+2\\x1b[31m.png"
    assert (tmp_path / "out/unreadable.csv").read_text().splitlines()[1].startswith("'=1+2\\x1b")


def test_a_name_of_any_bytes_is_kept(home, predictor, tmp_path):
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png")
    Path(odd).write_bytes((home / "images/0.png").read_bytes())
    for table in ("csv", "jsonl", "parquet"):
        classify_into(tmp_path / table, predictor, [odd], table=table)
    assert next(read_rows(tmp_path / "jsonl", "jsonl"))[0] == odd
    assert next(read_rows(tmp_path / "parquet", "parquet"))[0].endswith("/\\xff.png")


def test_a_resumed_job_computes_only_the_missing_parts(home, predictor, tmp_path):
    images = find_images([str(home / "images")])
    classify_into(tmp_path / "whole", predictor, images, part_size=3)

    class DiskFullError(OSError):
        pass

    def fail(now):
        if now.part == 1:
            raise DiskFullError

    with pytest.raises(DiskFullError):
        classify_into(tmp_path / "cut", predictor, images, part_size=3, progress=fail)
    assert sorted(p.name for p in (tmp_path / "cut").iterdir()) == [
        "job.json", "part-00000.csv", "part-00001.csv"]
    outcome = classify_into(tmp_path / "cut", predictor, images, part_size=3)
    assert (outcome.images, outcome.skipped, outcome.unreadable) == (6, 6, 2)
    for file in (tmp_path / "whole").iterdir():
        assert file.read_bytes() == (tmp_path / "cut" / file.name).read_bytes()


@pytest.mark.slow
def test_a_killed_process_leaves_only_complete_parts(home, tmp_path):
    many = tmp_path / "list.txt"
    many.write_text(f"{home / 'images/0.png'}\n" * 20_000)
    command = [sys.executable, "-m", "cvt", "predict", "--list", str(many), "--model",
               str(home / "model"), "--output", str(tmp_path / "out"), "--part_size", "50"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 60
    while len(list((tmp_path / "out").glob("part-*"))) < 3 and time.monotonic() < end:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    parts = list((tmp_path / "out").glob("part-*"))
    assert 3 <= len(parts) < 400
    assert all(len(part.read_text().splitlines()) == 51 for part in parts)
    assert not (tmp_path / "out/unreadable.csv").exists()


@pytest.mark.slow
def test_processes_share_a_job(home, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
         "-m", "cvt", "predict", str(home / "images"), "--model", str(home / "model"),
         "--output", str(tmp_path / "out"), "--part_size", "2"],
        capture_output=True, text=True, check=True)
    assert "process 0: part 1 of 6" in done.stderr
    assert "process 1: part 2 of 6" in done.stderr
    assert "2 could not be read, see unreadable.csv" in done.stderr
    assert len(list(read_rows(tmp_path / "out", "csv"))) == 12
    assert len((tmp_path / "out/unreadable.csv").read_text().splitlines()) == 3


def test_the_last_process_lists_the_unreadable_images_of_all(home, predictor, tmp_path):
    images = find_images([str(home / "images")])
    first, second = (classify_into(tmp_path / "out", predictor, images, part_size=5, rank=rank,
                                   world=2) for rank in range(2))
    assert (first.images, first.unreadable) == (7, None)
    assert (second.images, second.unreadable) == (5, 2)


def test_a_directory_of_another_job_is_an_error(home, predictor, tmp_path):
    images = find_images([str(home / "images")])
    classify_into(tmp_path / "out", predictor, images[:4])
    torch.manual_seed(1)
    save_model(tmp_path / "other", CvT(predictor.card.model).eval(), Preprocess(size=24), CLASSES)
    for message, changed in {
        "of another model or precision": {"predictor": Predictor(tmp_path / "other")},
        "has 4 images, not 5": {"images": images[:5]},
        "other images, or in another order": {"images": images[3::-1]},
        "table=csv, not jsonl": {"table": "jsonl"},
        "top_k=4, not 2": {"top_k": 2},
        "part_size=10000, not 7": {"part_size": 7},
    }.items():
        arguments = {"predictor": predictor, "images": images[:4]} | changed
        with pytest.raises(InputError, match=message):
            classify_into(tmp_path / "out", **arguments)
    assert classify_into(tmp_path / "out", predictor, images[:4]).skipped == 4


def test_a_job_cannot_be_resumed_with_a_changed_image(home, predictor, tmp_path):
    path = tmp_path / "x.png"
    Image.new("RGB", (24, 24), "red").save(path)
    classify_into(tmp_path / "out", predictor, [str(path)])
    Image.new("RGB", (32, 24), "blue").save(path)
    with pytest.raises(InputError, match="or an image has changed its size; give a new directory"):
        classify_into(tmp_path / "out", predictor, [str(path)])


def test_a_directory_with_other_files_is_an_error(home, predictor, tmp_path):
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(InputError, match="contains other files than a job's"):
        classify_into(tmp_path, predictor, [str(home / "images/0.png")])
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(("message", "changed"), [
    ("'csv'|csv", {"table": "cvs"}), ("top_k=0", {"top_k": 0}), ("rank=2", {"rank": 2, "world": 2}),
    ("no images", {"images": []}), ("standard input", {"images": ["-"]})])
def test_invalid_arguments_are_an_error_before_anything_is_written(
        predictor, tmp_path, message, changed):
    arguments = {"images": ["a.png"]} | changed
    with pytest.raises(InputError, match=message):
        classify_into(tmp_path / "out", predictor, **arguments)
    assert not (tmp_path / "out").exists()


def test_images_in_archives_are_classified(home, predictor, tmp_path):
    (tmp_path / "shards").mkdir()
    for i in range(2):
        with tarfile.open(tmp_path / f"shards/{i}.tar", "w") as archive:
            for j in range(3):
                archive.add(home / f"images/{3 * i + j}.png", f"in/{j}.png")
            archive.add(home / "model/config.json", "in/0.json")

    for names in ([str(tmp_path / "shards")], [str(tmp_path / "shards/*.tar")],
                  [str(tmp_path / "shards/0.tar"), str(tmp_path / "shards/1.tar")]):
        images = find_images(names)
        assert [str(image) for image in images] == [
            f"{tmp_path}/shards/{i}.tar:in/{j}.png" for i in range(2) for j in range(3)]
    plain = predictor([home / f"images/{i}.png" for i in range(6)])
    for inside, outside in zip(predictor(images), plain, strict=True):
        assert inside == dataclasses.replace(outside, image=inside.image)


def test_a_corrupt_or_empty_archive_is_an_error(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"\x1f\x8b" * 600)
    with pytest.raises(InputError, match=r"a\.tar is not a complete, uncompressed tar archive"):
        find_images([str(tmp_path / "a.tar")])
    with tarfile.open(tmp_path / "a.tar", "w"):
        pass
    with pytest.raises(InputError, match=r"a\.tar has no images"):
        find_images([str(tmp_path / "a.tar")])


@pytest.mark.slow
def test_identity_depends_on_the_weights_but_not_on_the_backend(home):
    eager, converted = (Predictor(home / "model", backend=backend)
                        for backend in ("eager", "openvino"))
    assert list(islice(eager([home / "images/0.png"]), 1))
    assert eager.identity == converted.identity
    assert eager.identity != Predictor(home / "model", precision="bf16").identity


def test_wrong_arguments_of_the_command_are_explained(tmp_path, capsys):
    (tmp_path / "empty.txt").write_text("\n \n")
    assert main(["predict", "--list", str(tmp_path / "empty.txt")]) == 1
    assert "lists no images" in capsys.readouterr().err
    assert main(["predict", "--list", str(tmp_path / "none.txt")]) == 1
    assert "No such file" in capsys.readouterr().err
    assert main(["predict", "typo", "--output", str(tmp_path / "out")]) == 2
    assert "nothing at typo, neither a model nor an image" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main(["predict"]) == 2
    assert "--list FILE" in capsys.readouterr().err
    assert main(["predict", "a.png", "--json", "--output", str(tmp_path / "out")]) == 2
    assert "--table jsonl" in capsys.readouterr().err


@pytest.mark.parametrize("option", [["--table", "jsonl"], ["--part_size", "5"]])
def test_an_option_of_output_without_output_is_an_error(option, capsys):
    assert main(["predict", "a.png", *option]) == 2
    assert "what --output writes, which is not given" in capsys.readouterr().err


def test_several_processes_without_output_are_an_error(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["predict", "a.png"]) == 2
    assert "2 processes would all print the same" in capsys.readouterr().err
