"""Names that the output's encoding lacks, and names that are not UTF-8 on the disk."""

import io
import json
import os
import sys
import unicodedata

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from cvt.cli import main
from cvt.cli.console import PathCell
from cvt.config import CvTConfig, Preprocess, StageConfig
from cvt.model import CvT
from cvt.weights.models import save_model

# "cafe" in Latin-1, two Chinese letters, and "cafe" as macOS stores it.
CLASSES = ("caf\udce9", "\u65e5\u672c\U0001f600", "cafe\u0301 2")
IMAGE = os.fsdecode(b"\xff") + "\u732b{}.png"


@pytest.fixture
def home(tmp_path):
    """model/ and images/, one of which is unreadable, with classes called CLASSES."""
    stage = StageConfig(dim=8, num_heads=1, depth=1, cls_token=True)
    torch.manual_seed(0)
    net = CvT(CvTConfig(stages=(stage,), num_classes=3, image_size=8))
    save_model(tmp_path / "model", net, Preprocess(size=8, crop=1.0), CLASSES)
    rng = np.random.default_rng(0)
    for name in CLASSES:
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(4):
            Image.fromarray(rng.integers(0, 256, (10, 12, 3), dtype=np.uint8)).save(
                tmp_path / "images" / name / IMAGE.format(i))
    (tmp_path / "images" / CLASSES[0] / IMAGE.format("bad")).write_bytes(b"no image")
    return tmp_path


@pytest.fixture(params=["ascii", "cp1252", "latin-1", "utf-8"])
def run(request, monkeypatch):
    """run(*args): exit code and output of a command whose streams have that encoding."""
    def run(*args):
        with monkeypatch.context() as patch:
            for name in ("stdout", "stderr"):
                patch.setattr(sys, name, io.TextIOWrapper(io.BytesIO(), request.param))
            code = main([str(arg) for arg in args])
            sys.stdout.flush()
            return code, sys.stdout.buffer.getvalue().decode(request.param)
    return run


def test_predictions_are_printed_in_any_encoding(home, run):
    code, out = run("predict", home / "images", "--model", home / "model")
    assert code == 1  # an image is unreadable
    assert r"\xff" in out
    assert out.count("%") == 12 * 3
    code, out = run("predict", home / "images", "--model", home / "model", "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert len(rows) == 13
    assert {c["name"] for row in rows for c in row["classes"]} == set(CLASSES)
    assert all(os.path.exists(row["image"]) for row in rows)


def test_a_dataset_is_checked_in_any_encoding(home, run):
    images = home / "\udcff\u732b"
    (home / "images").rename(images)
    code, out = run("data", "check", images, "--output", home / "check")
    assert code == 1
    assert r"caf\xe9" in out
    report = json.loads((home / "check/check.json").read_text(encoding="ascii"))
    assert {c["name"] for c in report["classes"]} == set(CLASSES)
    code, out = run("data", "check", home / "check/manifest.csv", "--json")
    assert code == 0  # the unreadable image is left out of train
    assert {unicodedata.normalize("NFC", c["name"]) for c in json.loads(out)["classes"]} == {
        unicodedata.normalize("NFC", name) for name in CLASSES}


@pytest.mark.slow
def test_a_model_is_evaluated_and_explained_in_any_encoding(home, run):
    # The manifest's labels are in NFC, those of the model are not.
    assert run("data", "check", home / "images", "--output", home / "check")[0] == 1
    for source in (["folder", "--data.root", home / "images"],
                   ["manifest", "--data.root", home / "check/manifest.csv"]):
        code, out = run("evaluate", "--model", home / "model", "--data.max_unreadable", "1",
                        "--data.name", *source)
        assert code == 0
        assert "top-1" in out
    image = home / "images" / CLASSES[1] / IMAGE.format(0)
    for target in (CLASSES[0], r"caf\xe9", "caf\u00e9 2"):
        code, out = run("explain", image, "--model", home / "model", "--output", home / "out",
                        "--json", "--target", target)
        assert code == 0
        assert r"caf\xe9" in out
    assert run("explain", image, "--model", home / "model", "--target", "\udcff")[0] == 1


@pytest.mark.slow
def test_a_model_is_trained_and_converted_in_any_encoding(home, run):
    images = home / "\udcff"  # the place has such a name, too
    (home / "images").rename(images)
    assert run("train", "--data.name", "folder", "--data.root", images, "--model",
               "cvt_nano", "--image_size", "32", "--epochs", "1", "--optim.warmup_epochs", "0",
               "--batch_size", "4", "--data.max_unreadable", "1", "--output", home / "run")[0] == 0
    assert run("evaluate", "--model", home / "run")[0] == 0  # on the data in recipe.yaml
    for to in ("huggingface", "timm"):
        assert run("convert", home / "run", home / to, "--to", to)[0] == 0
        code, out = run("predict", images, "--model", home / to, "--json")
        assert code == 1
        assert json.loads(out.splitlines()[-1])["classes"][0]["name"] in CLASSES


@pytest.mark.parametrize("table", ["csv", "jsonl", "parquet"])
def test_predictions_are_written_with_any_name(home, table):
    assert main(["predict", str(home / "images"), "--model", str(home / "model"), "--output",
                 str(home / "out"), "--table", table]) == 0
    [part] = (home / "out").glob("part-*")
    if table == "parquet":
        rows = pytest.importorskip("pyarrow.parquet").read_table(part).to_pylist()
        assert {name for row in rows for name in row["classes"]} == {r"caf\xe9", *CLASSES[1:]}
        assert all(r"/\xff" in row["image"] for row in rows)
    else:
        text = part.read_text(encoding="utf-8")
        assert ("\\udce9" if table == "jsonl" else r"caf\xe9") in text
    assert r"\xff" in (home / "out/unreadable.csv").read_text(encoding="utf-8")


def test_an_error_does_not_control_the_terminal(home, capsys):
    assert main(["predict", "\x1b]0;\udcff.png", "--model", str(home / "model")]) == 1
    assert r"\x1b]0;\xff.png" in capsys.readouterr().err
    assert main(["data", "check", "\x1b]0;\udcff"]) == 1
    assert r"\x1b]0;\xff" in capsys.readouterr().err
    assert main(["predict", "\x1b]0;\udcff"]) == 2
    assert r"\x1b]0;\xff" in capsys.readouterr().err


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_list_of_paths_is_read_as_editors_write_it(home, capsys, encoding, end):
    names = [f"{home}/images/{unicodedata.normalize('NFC', CLASSES[2])}/a.png",
             f"{home}\\images\\{CLASSES[1]}\\b.png"]
    for name in names:
        image = home / "images" / CLASSES[2] / IMAGE.format(0)
        place = CLASSES[2] if name.endswith("a.png") else CLASSES[1]
        (home / "images" / place / name[-5:]).write_bytes(image.read_bytes())
    (home / "list.txt").write_bytes((end.join(names) + end).encode(encoding))
    assert main(["predict", "--list", str(home / "list.txt"), "--model", str(home / "model"),
                 "--json"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_a_list_that_is_no_text_names_what_is_not_read(home, capsys):
    (home / "list.txt").write_bytes(b"a\0.png\n\xff\xfe.png\n")
    assert main(["predict", "--list", str(home / "list.txt"), "--model", str(home / "model")]) == 1
    assert "a\\x00.png: contains a NUL" in capsys.readouterr().err
    (home / "list.txt").write_bytes(b"\xff\xfea")
    assert main(["predict", "--list", str(home / "list.txt"), "--model", str(home / "model")]) == 1
    assert "is not text in UTF-16 (truncated data); save it as UTF-8" in capsys.readouterr().err


def test_a_terminal_cuts_the_front_of_a_path_and_a_pipe_nothing(home, monkeypatch, capsys):
    folder = home / ("long " * 30) / "images"
    folder.parent.mkdir()
    (home / "images").rename(folder)
    command = ["predict", str(folder / CLASSES[1]), "--model", str(home / "model")]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert all(str(folder / CLASSES[1] / f"\\xff\u732b{i}.png") in out for i in range(4))
    monkeypatch.setenv("FORCE_COLOR", "1")  # what makes any stream a terminal to rich
    monkeypatch.setenv("COLUMNS", "70")
    assert main(command) == 0
    out = capsys.readouterr().out
    assert str(folder) not in out
    assert all(f"/\\xff\u732b{i}.png" in out for i in range(4))


@pytest.mark.parametrize(("width", "shown"), [
    (40, "/photos/\u732b\u732b/1.png"), (12, "...\u732b/1.png"), (2, "..")])
def test_a_path_is_cut_by_the_width_of_its_letters(width, shown):
    console = Console(file=io.StringIO(), width=width)
    console.print(PathCell("/photos/\u732b\u732b/1.png"), end="")
    assert console.file.getvalue().strip() == shown
