import io
import json
import os
import sys

import pytest

from cvt.cli import main


def test_predict_takes_files_folders_and_patterns(model, capsys):
    images = model.parent / "images"
    assert main(["predict", str(images / "ant"), str(images / "bee/*.png"),
                 str(images / "cat/0.png"), "--model", str(model), "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(rows) == 9
    assert rows[-1]["image"].endswith("cat/0.png")
    for row in rows:
        assert {c["name"] for c in row["classes"]} == {"ant", "bee", "cat"}
        assert sum(c["probability"] for c in row["classes"]) == pytest.approx(1, abs=1e-5)


def test_predict_reads_one_image_from_standard_input(model, monkeypatch, capsys):
    data = (model.parent / "images/ant/0.png").read_bytes()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    assert main(["predict", "-", "--model", str(model), "--json"]) == 0
    piped = json.loads(capsys.readouterr().out)
    main(["predict", str(model.parent / "images/ant/0.png"), "--model", str(model), "--json"])
    assert piped["classes"] == json.loads(capsys.readouterr().out)["classes"]
    assert piped["image"] == "-"


def test_predict_prints_a_table(model, capsys):
    assert main(["predict", str(model.parent / "images"), "--model", str(model)]) == 0
    out = capsys.readouterr().out
    assert "probability" in out
    assert out.count("%") == 12 * 3  # images, and classes of each


def test_predict_reports_a_broken_image_and_classifies_the_rest(model, capsys):
    images = model.parent / "images/ant"
    (images / "2.png").write_bytes(b"not an image")
    assert main(["predict", str(images), str(images / "gone.png"), "--model", str(model),
                 "--json", "--batch_size", "2"]) == 1
    out, err = capsys.readouterr()
    rows = [json.loads(line) for line in out.splitlines()]
    assert [("error" in row) for row in rows] == [False, False, True, False, True]
    assert "not an image" in rows[2]["error"]
    assert "2 of 5 images could not be read" in err


def test_predict_of_a_folder_without_images_says_so(model, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert main(["predict", str(tmp_path / "empty"), "--model", str(model)]) == 1
    assert "has no images" in capsys.readouterr().err


def test_names_that_look_like_markup_are_printed_as_they_are(model, capsys):
    config = json.loads((model / "config.json").read_text())
    config["classes"] = ["[red]", "[/bold]", ":bee:"]
    (model / "config.json").write_text(json.dumps(config))
    image = model.parent / "[b].png"
    (model.parent / "images/ant/0.png").rename(image)
    assert main(["predict", str(image), "--model", str(model)]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in ("[red]", "[/bold]", ":bee:"))


def test_a_name_in_another_encoding_is_printed(model, capsys):
    image = os.fsencode(model.parent) + b"/\xff.png"
    os.rename(model.parent / "images/ant/0.png", image)
    assert main(["predict", os.fsdecode(image), "--model", str(model)]) == 0
    assert "probability" in capsys.readouterr().out


def test_the_activation_can_be_overridden_where_a_model_is_used(model, capsys):
    image = str(model.parent / "images/ant/0.png")
    printed = []
    for act in ("quick_gelu", "gelu"):
        assert main(["predict", image, "--model", str(model), "--act", act, "--json"]) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] != printed[1]
