import json

import pytest

from cvt.cli import main


def test_evaluate_writes_metrics_and_report(model, capsys):
    images = model.parent / "images"
    assert main(["evaluate", "--model", str(model), "--data.name", "folder", "--data.root",
                 str(images), "--data.val_fraction", "0.5"]) == 0
    out = capsys.readouterr().out
    assert "n = 6" in out
    metrics = json.loads((model / "evaluation/metrics.json").read_text())
    assert metrics["n"] == 6
    assert sum(map(sum, metrics["confusion_matrix"])) == 6
    assert (model / "evaluation/report.html").stat().st_size > 5000


def test_evaluate_without_data_needs_the_recipe(model, capsys):
    assert main(["evaluate", "--model", str(model)]) == 1
    assert "--data.name" in capsys.readouterr().err


def test_evaluate_refuses_classes_that_the_model_does_not_know(model, capsys):
    (model.parent / "images/cat").rename(model.parent / "images/dog")
    assert main(["evaluate", "--model", str(model), "--data.name", "folder", "--data.root",
                 str(model.parent / "images")]) == 1
    assert "class 'dog'" in capsys.readouterr().err
    assert not (model / "evaluation").exists()


def test_evaluate_matches_classes_by_name(model, capsys):
    """A folder that lacks the first class still counts the others as what they are."""
    args = ["evaluate", "--model", str(model), "--data.name", "folder", "--data.val_fraction",
            "0.5", "--json", "--data.root", str(model.parent / "images")]
    assert main(args) == 0
    whole = json.loads(capsys.readouterr().out)["confusion_matrix"]
    for path in (model.parent / "images/ant").iterdir():
        path.unlink()
    assert main(args) == 0
    part = json.loads(capsys.readouterr().out)["confusion_matrix"]
    assert sum(part[0]) == 0
    assert [sum(row) for row in part[1:]] == [sum(row) for row in whole[1:]] == [2, 2]


@pytest.mark.parametrize(("split", "n"), [("val", 6), ("train", 6), ("all", 12)])
def test_evaluate_scores_a_half_or_all(model, split, n, capsys):
    assert main(["evaluate", "--model", str(model), "--split", split, "--data.name", "folder",
                 "--data.val_fraction", "0.5", "--json", "--data.root",
                 str(model.parent / "images")]) == 0
    metrics = json.loads(capsys.readouterr().out)
    assert metrics["n"] == n
    assert sum(map(sum, metrics["confusion_matrix"])) == n


def test_evaluate_scores_all_of_a_folder_without_splits(model, capsys):
    args = ["evaluate", "--model", str(model), "--data.name", "folder", "--json", "--data.root"]
    (model.parent / "images/ant/x.svg").touch()
    assert main([*args, str(model.parent / "images")]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["n"] == 12
    assert "left out: 1 .svg" in err
    assert "scores all 12 images" in err


def test_evaluate_scores_a_single_class(model, capsys):
    (model.parent / "one").mkdir()
    (model.parent / "images/cat").rename(model.parent / "one/cat")
    assert main(["evaluate", "--model", str(model), "--data.name", "folder", "--json",
                 "--data.root", str(model.parent / "one")]) == 0
    metrics = json.loads(capsys.readouterr().out)
    assert metrics["n"] == 4
    assert [sum(row) for row in metrics["confusion_matrix"]].count(4) == 1
