import json
import os
import subprocess
import sys

import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from cvt.cli import main

PHOTOS = [Image.fromarray(pixels) for pixels in load_sample_images().images]


@pytest.fixture
def photos(tmp_path):
    """A directory of two classes, eight images of each, and without duplicates."""
    for photo, name in zip(PHOTOS, ("temple", "flower"), strict=True):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(8):
            photo.crop((40 * i, 20 * i, 40 * i + 300, 20 * i + 240)).save(
                tmp_path / "photos" / name / f"{i}.jpg")
    return tmp_path / "photos"


def test_a_clean_dataset_passes_and_an_unreadable_image_fails(photos, capsys):
    assert main(["data", "check", str(photos)]) == 0
    assert "unreadable: 0" in capsys.readouterr().out
    assert main(["data", "check", str(photos), "--json", "--image_size", "250"]) == 0
    assert json.loads(capsys.readouterr().out)["smaller_than_input"] == 16
    (photos / "temple/bad.jpg").write_bytes(b"<html>")
    assert main(["data", "check", str(photos)]) == 1
    out, err = capsys.readouterr()
    assert "temple/bad.jpg is not an image" in out
    assert err == ""


def test_the_output_is_a_source_of_its_own(photos, tmp_path, capsys):
    assert main(["data", "check", str(photos), "--output", str(tmp_path / "check")]) == 0
    assert "contact_sheet.png" in capsys.readouterr().err
    assert main(["data", "check", str(tmp_path / "check/manifest.csv"), "--json"]) == 0
    reported = json.loads(capsys.readouterr().out)
    assert (reported["train"], reported["val"]) == (12, 4)
    assert main(["data", "copy", str(photos), str(tmp_path / "tar"), "--to", "shards"]) == 0
    assert main(["data", "check", str(tmp_path / "tar"), "--output", str(tmp_path / "b")]) == 0
    assert "no manifest.csv, because the images of shards" in capsys.readouterr().err
    assert not (tmp_path / "b/manifest.csv").exists()


def test_options_of_data_say_otherwise_than_what_is_guessed(photos, capsys):
    assert main(["data", "check", str(photos), "--data.val_fraction", "0.5", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["val"] == 8
    assert main(["data", "check", "--data.name", "folder", "--data.root", str(photos)]) == 0
    assert main(["data", "check", str(photos), "--data.name", "shards"]) == 1
    assert "has no .tar archives" in capsys.readouterr().err


@pytest.mark.parametrize(("args", "message"), [
    ([], "usage: cvt data ACTION"),
    (["chek", "photos"], "did you mean check?"),
    (["check"], "give ROOT, or a built-in dataset with --data.name"),
    (["check", "photos", "--data.root", "other"], "ROOT is photos and --data.root other"),
    (["check", "photos", "--data.workers", "2"], "--data.workers would be ignored"),
    (["check", "photos", "--data.name", "digits"], "has no effect on digits"),
    (["check", "photos", "--image_size", "0"], "at least 1"),
    (["copy", "photos"], "give ROOT"),
    (["copy", "photos", "out", "--quality", "101"], "from 1 to 95"),
    (["copy", "photos", "out", "--short_side", "0"], "at least 1"),
])
def test_a_wrong_call_leaves_with_2_and_says_what_to_do(args, message, capsys):
    assert main(["data", *args]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("action", ["check", "copy"])
def test_every_action_has_help_without_torch(action):
    code = (f"import sys; from cvt.cli import main; assert main(['data', '{action}', '--help']) "
            "== 0; assert 'torch' not in sys.modules")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert f"usage: cvt data {action}" in done.stdout


def test_a_copy_says_what_it_did_and_fails_for_an_unreadable_image(photos, tmp_path, capsys):
    assert main(["data", "copy", str(photos), str(tmp_path / "small"), "--short_side", "50"]) == 0
    assert "12 training and 4 validation images\n" in capsys.readouterr().out
    assert main(["data", "copy", str(photos), str(tmp_path / "small"), "--short_side", "50"]) == 0
    assert "16 of them existed before" in capsys.readouterr().out
    (photos / "temple/0.jpg").write_bytes(b"")
    assert main(["data", "copy", str(photos), str(tmp_path / "other"), "--short_side", "50"]) == 1
    assert "1 images could not be read" in capsys.readouterr().err
    assert main(["data", "copy", str(photos), str(photos / "small")]) == 1
    assert "not apart" in capsys.readouterr().err


def test_hostile_names_are_printed_and_not_obeyed(photos, capsysbinary):
    for name in ("\x1b]0;owned\x07[red]\n.jpg", "\N{RIGHT-TO-LEFT OVERRIDE}gpj.jpg",
                 os.fsdecode(b"\xff\xfe.jpg")):
        (photos / "temple" / name).write_bytes(b"")
    (photos / "temple").rename(photos / "\x1b[2J[bold]")
    assert main(["data", "check", str(photos)]) == 1
    out = capsysbinary.readouterr().out
    assert b"\x1b" not in out
    assert b"\x07" not in out
    text = out.decode()
    assert "\\x1b]0;owned\\x07[red]\\n.jpg" in text
    assert "\\x1b[2J[bold]" in text
    assert "\\u202egpj.jpg" in text
    assert "\\xff\\xfe.jpg" in text
    assert main(["data", "check", str(photos), "--json"]) == 1
    assert len(json.loads(capsysbinary.readouterr().out)["unreadable"]) == 3


def test_progress_is_shown_on_a_terminal_unless_quiet(photos, monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")  # what makes any stream a terminal to rich
    assert main(["data", "check", str(photos)]) == 0
    assert "16/16" in capsys.readouterr().err
    assert main(["data", "check", str(photos), "--quiet"]) == 0
    assert capsys.readouterr().err == ""
