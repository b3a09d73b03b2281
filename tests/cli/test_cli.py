import io
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from cvt import StageConfig
from cvt.cli import COMMANDS, main
from cvt.config import CvTConfig, Preprocess
from cvt.model import CvT
from cvt.weights.native import save_model


@pytest.fixture
def model(tmp_path):
    """The directory of an untrained model of three classes, and its folder of pictures."""
    stage = StageConfig(dim=8, num_heads=1, depth=1, cls_token=True)
    torch.manual_seed(0)
    net = CvT(CvTConfig(stages=(stage,), num_classes=3, image_size=8))
    save_model(tmp_path / "model", net, Preprocess(size=8, crop=1.0), ("ant", "bee", "cat"))
    rng = np.random.default_rng(0)
    for name in ("ant", "bee", "cat"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for i in range(4):
            pixels = rng.integers(0, 256, (10, 12, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pictures" / name / f"{i}.png")
    return tmp_path / "model"


def test_help_is_fast_and_needs_no_torch():
    code = ("import sys; from cvt.cli import main; assert main(['--help']) == 0; "
            "assert 'torch' not in sys.modules")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert all(command in done.stdout for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_without_torch(command):
    code = (f"import sys; from cvt.cli import main; assert main(['{command}', '--help']) == 0; "
            "assert 'torch' not in sys.modules")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert f"usage: cvt {command}" in done.stdout


def test_python_m_cvt_is_the_command():
    done = subprocess.run([sys.executable, "-m", "cvt", "--version"], capture_output=True,
                          text=True, check=True)
    assert done.stdout.startswith("cvt ")


@pytest.mark.parametrize(("args", "message"), [
    (["trian"], "did you mean train?"),
    ([], "usage: cvt COMMAND"),
    (["train", "--optim.lrr", "1"], "did you mean optim.lr?"),
    (["train", "--data.name", "digit"], "did you mean digits?"),
    (["train", "--optim.lr", "fast"], "optim.lr=fast is not of type float"),
    (["train", "--optim.lr", "-1"], "lr=-1.0 must not be negative"),
    (["train", "--in_chans", "2"], "choose from 1, 3"),
    (["train", "--resume", "x", "--epochs", "3"], "--epochs would be ignored"),
    (["train", "--data.name", "folder"], "needs data.root"),
    (["evaluate", "--model", "x", "--data.name", "folder"], "needs data.root"),
    (["train", "--model", "cvt_nan"], "did you mean cvt_nano?"),
    (["train", "--image_size", "0"], "image"),
    (["train", "--config", "absent.yaml"], "absent.yaml"),
    (["info", "--size", "big"], "not a size"),
    (["predict", "--model", "x"], "give pictures"),
    (["predict", "a.png", "--model", "x", "--top_k", "0"], "at least 1"),
    (["evaluate", "--model", "x", "--batch_size", "0"], "at least 1"),
    (["info", "--size", "\N{SUPERSCRIPT TWO}"], "not a size"),
])
def test_a_wrong_call_leaves_with_2_and_says_what_to_do(args, message, capsys):
    assert main(args) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


@pytest.mark.parametrize("text", ["epoch: 3\n", "optim:\n  lrr: 1\n"])
def test_a_misspelt_key_in_a_config_names_the_nearest(text, tmp_path, capsys):
    (tmp_path / "x.yaml").write_text(text)
    assert main(["train", "--config", str(tmp_path / "x.yaml")]) == 2
    assert "did you mean" in capsys.readouterr().err


def test_print_config_is_a_config(tmp_path, capsys):
    (tmp_path / "x.yaml").write_text("optim:\n  lr: 5e-4\n")
    assert main(["train", "--config", str(tmp_path / "x.yaml"), "--epochs", "7",
                 "--print_config"]) == 0
    printed = capsys.readouterr().out
    assert "lr: 0.0005" in printed
    assert "epochs: 7" in printed
    (tmp_path / "y.yaml").write_text(printed)
    assert main(["train", "--config", str(tmp_path / "y.yaml"), "--print_config"]) == 0
    assert capsys.readouterr().out == printed


def test_info_tells_the_papers_figures(capsys):
    assert main(["info", "cvt_13", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["parameters"] == 19_997_480
    assert told["multiply_adds"] == 4_566_089_216
    assert [s["grid"] for s in told["stages"]] == [[56, 56], [28, 28], [14, 14]]
    assert [s["tokens"] for s in told["stages"]] == [3136, 784, 197]


def test_info_prints_a_table_for_any_size(capsys):
    assert main(["info", "cvt_nano", "--size", "40x28"]) == 0
    out = capsys.readouterr().out
    assert "20x14" in out
    assert "multiply-adds" in out


def test_info_tells_the_keys_of_unlike_blocks(tiny, tmp_path, capsys):
    tiny(last={"stride_kv": (1, 2)}).save(tmp_path / "x.yaml")
    assert main(["info", str(tmp_path / "x.yaml")]) == 0
    assert "17 or 5" in capsys.readouterr().out
    assert main(["info", str(tmp_path / "x.yaml"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["stages"][2]["keys"] == [[4, 4], [2, 2]]


@pytest.mark.parametrize(("args", "message"), [
    (["info", "cvt_99"], "did you mean cvt_"),
    (["info", "--size", "2"], "at least 3 pixels"),
    (["predict", "x.png", "--model", "nowhere"], "no model at nowhere"),
    (["evaluate", "--model", "nowhere"], "no model at nowhere"),
    (["train", "--resume", "nowhere"], "nowhere has no recipe.yaml"),
    (["train", "--device", "abacus"], "abacus"),
    (["train", "--device", "meta"], "meta"),
    (["train", "--data.name", "folder", "--data.root", "nowhere"], "nowhere is not a directory"),
])
def test_what_cannot_be_done_leaves_with_1_in_one_line(args, message, tmp_path, monkeypatch,
                                                       capsys):
    monkeypatch.chdir(tmp_path)
    assert main(args) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_predict_takes_files_folders_and_patterns(model, capsys):
    pictures = model.parent / "pictures"
    assert main(["predict", str(pictures / "ant"), str(pictures / "bee/*.png"),
                 str(pictures / "cat/0.png"), "--model", str(model), "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(rows) == 9
    assert rows[-1]["picture"].endswith("cat/0.png")
    for row in rows:
        assert {name for name, _ in row["classes"]} == {"ant", "bee", "cat"}
        assert sum(p for _, p in row["classes"]) == pytest.approx(1, abs=1e-5)


def test_predict_reads_one_picture_from_standard_input(model, monkeypatch, capsys):
    data = (model.parent / "pictures/ant/0.png").read_bytes()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    assert main(["predict", "-", "--model", str(model), "--json"]) == 0
    piped = json.loads(capsys.readouterr().out)
    main(["predict", str(model.parent / "pictures/ant/0.png"), "--model", str(model), "--json"])
    assert piped["classes"] == json.loads(capsys.readouterr().out)["classes"]
    assert piped["picture"] == "-"


def test_predict_prints_a_table(model, capsys):
    assert main(["predict", str(model.parent / "pictures"), "--model", str(model)]) == 0
    out = capsys.readouterr().out
    assert "probability" in out
    assert out.count(".png") >= 12 or out.count("%") >= 12


def test_predict_reports_a_broken_picture_and_classifies_the_rest(model, capsys):
    pictures = model.parent / "pictures/ant"
    (pictures / "2.png").write_bytes(b"not a picture")
    assert main(["predict", str(pictures), str(pictures / "gone.png"), "--model", str(model),
                 "--json", "--batch_size", "2"]) == 1
    out, err = capsys.readouterr()
    rows = [json.loads(line) for line in out.splitlines()]
    assert [("error" in row) for row in rows] == [False, False, True, False, True]
    assert "not a picture" in rows[2]["error"]
    assert "2 of 5 pictures could not be read" in err


def test_predict_of_a_folder_without_pictures_says_so(model, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert main(["predict", str(tmp_path / "empty"), "--model", str(model)]) == 1
    assert "has no pictures" in capsys.readouterr().err


def test_evaluate_writes_metrics_and_report(model, capsys):
    pictures = model.parent / "pictures"
    assert main(["evaluate", "--model", str(model), "--data.name", "folder", "--data.root",
                 str(pictures), "--data.val_fraction", "0.5"]) == 0
    out = capsys.readouterr().out
    assert "n = 6" in out
    metrics = json.loads((model / "evaluation/metrics.json").read_text())
    assert metrics["n"] == 6
    assert sum(map(sum, metrics["confusion"])) == 6
    assert (model / "evaluation/report.html").stat().st_size > 5000


def test_evaluate_without_data_needs_the_recipe(model, capsys):
    assert main(["evaluate", "--model", str(model)]) == 1
    assert "--data.name" in capsys.readouterr().err


def test_evaluate_refuses_classes_that_the_model_does_not_know(model, capsys):
    (model.parent / "pictures/cat").rename(model.parent / "pictures/dog")
    assert main(["evaluate", "--model", str(model), "--data.name", "folder", "--data.root",
                 str(model.parent / "pictures")]) == 1
    assert "class 'dog'" in capsys.readouterr().err
    assert not (model / "evaluation").exists()


def test_evaluate_matches_classes_by_name(model, capsys):
    """A folder that lacks the first class still counts the others as what they are."""
    args = ["evaluate", "--model", str(model), "--data.name", "folder", "--data.val_fraction",
            "0.5", "--json", "--data.root", str(model.parent / "pictures")]
    assert main(args) == 0
    whole = json.loads(capsys.readouterr().out)["confusion"]
    for path in (model.parent / "pictures/ant").iterdir():
        path.unlink()
    assert main(args) == 0
    part = json.loads(capsys.readouterr().out)["confusion"]
    assert sum(part[0]) == 0
    assert [sum(row) for row in part[1:]] == [sum(row) for row in whole[1:]] == [2, 2]


def test_names_that_look_like_markup_are_printed_as_they_are(model, capsys):
    config = json.loads((model / "config.json").read_text())
    config["classes"] = ["[red]", "[/bold]", ":bee:"]
    (model / "config.json").write_text(json.dumps(config))
    picture = model.parent / "[b].png"
    (model.parent / "pictures/ant/0.png").rename(picture)
    assert main(["predict", str(picture), "--model", str(model)]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in ("[red]", "[/bold]", ":bee:"))


def test_a_name_in_another_encoding_is_printed(model, capsys):
    picture = os.fsencode(model.parent) + b"/\xff.png"
    os.rename(model.parent / "pictures/ant/0.png", picture)
    assert main(["predict", os.fsdecode(picture), "--model", str(model)]) == 0
    assert "probability" in capsys.readouterr().out


@pytest.mark.parametrize(("split", "n"), [("val", 6), ("train", 6), ("all", 12)])
def test_evaluate_scores_a_half_or_all(model, split, n, capsys):
    assert main(["evaluate", "--model", str(model), "--split", split, "--data.name", "folder",
                 "--data.val_fraction", "0.5", "--json", "--data.root",
                 str(model.parent / "pictures")]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["n"] == n
    assert sum(map(sum, told["confusion"])) == n


def test_the_zoo_is_printed_as_a_table_and_as_json(capsys):
    assert main(["zoo"]) == 0
    out = capsys.readouterr().out
    assert all(tag in out for tag in ("cvt_13.msft_in1k ", "cvt_w24.msft_in22k_ft_in1k_384 ",
                                      "cvt_nano.fashion_mnist "))
    assert "In this package, nothing is downloaded" in out
    assert max(map(len, out.splitlines())) <= 80
    assert main(["zoo", "cvt_21*", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["tag"] for row in rows] == [
        "cvt_21.msft_in1k", "cvt_21.msft_in1k_384", "cvt_21.msft_in22k_ft_in1k_384"]
    assert rows[2]["paper_top1"] == 84.9
    assert rows[2]["size"] == 384
    assert rows[1]["preprocess"]["mode"] == "squash"


def test_convert_prints_what_it_wrote_and_what_it_read(model, tmp_path, capsys):
    assert main(["convert", str(model), str(tmp_path / "x.pth"), "--to", "official"]) == 0
    out, err = capsys.readouterr()
    assert out.split() == [str(tmp_path / "x.yaml"), str(tmp_path / "x.pth")]
    assert "tensors in native names" in err
    assert main(["convert", str(tmp_path / "x.pth"), str(tmp_path / "t"), "--to", "timm"]) == 0
    assert main(["predict", str(tmp_path / "pictures/ant"), "--model", str(tmp_path / "t"),
                 "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["classes"][0][0] in "012"


def test_convert_refuses_in_one_line(model, tmp_path, capsys):
    for args, code, message in (
            ([str(model), str(tmp_path / "x"), "--to", "official"], 1, "one file; end it in"),
            ([str(model), str(model), "--to", "native"], 1, "--overwrite"),
            (["nowhere", "x", "--to", "native"], 1, "no model at nowhere"),
            ([str(model), "x", "--to", "onyx"], 2, "onyx"),
            ([str(model), "x"], 2, "required: to")):
        assert main(["convert", *args]) == code
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


def test_the_activation_can_be_overridden_where_a_model_is_used(model, capsys):
    picture = str(model.parent / "pictures/ant/0.png")
    told = []
    for act in ("quick_gelu", "gelu"):
        assert main(["predict", picture, "--model", str(model), "--act", act, "--json"]) == 0
        told.append(capsys.readouterr().out)
    assert told[0] != told[1]


def test_info_knows_the_zoo(capsys):
    assert main(["info", "cvt_w24.msft_in22k_ft_in1k_384", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["parameters"], told["size"]) == (277_196_392, [384, 384])


def test_without_pytorch_a_trained_model_is_answered_with_the_install_line(tmp_path):
    code = ("import sys; sys.modules['torch'] = None\n"
            "from cvt.cli import main; sys.exit(main(sys.argv[1:]))")
    done = subprocess.run([sys.executable, "-c", code, "predict", "a.png", "--model", "runs/mine"],
                          capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("cvt predict: this needs PyTorch, which is not installed; pip i")
    assert done.stderr.count("\n") == 1
