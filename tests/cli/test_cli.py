import json
import os
import re
import subprocess
import sys

import pytest

from cvt.cli import COMMANDS, main
from cvt.cli.parser import _SYNONYMS
from cvt.cli.train import GROUPS
from cvt.train.recipe import Recipe


def test_help_is_fast_and_needs_no_torch():
    code = ("import sys; from cvt.cli import main; assert main(['--help']) == 0; "
            "assert 'torch' not in sys.modules")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert all(command in done.stdout for command in COMMANDS)


@pytest.fixture(scope="module")
def helps():
    """What the help of every command printed, all of them in one process without torch."""
    code = ("import contextlib, io, json, sys; from cvt.cli import COMMANDS, main\n"
            "texts = {}\n"
            "long = [[name, 'all'] for name in ('train', 'ablate', 'search')]\n"
            "for args in [[name] for name in COMMANDS] + long:\n"
            "    with contextlib.redirect_stdout(io.StringIO()) as text:\n"
            "        assert main([args[0], '--help', *args[1:]]) == 0\n"
            "    assert 'torch' not in sys.modules, args\n"
            "    texts[' '.join(args)] = text.getvalue()\n"
            "for action in ('check', 'copy'):\n"
            "    with contextlib.redirect_stdout(io.StringIO()) as text:\n"
            "        assert main(['data', action, '--help']) == 0\n"
            "    texts[f'data {action}'] = text.getvalue()\n"
            "print(json.dumps(texts))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                          env={**os.environ, "COLUMNS": "80", "NO_COLOR": "1"})
    return json.loads(done.stdout)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_without_torch(helps, command):
    assert f"usage: cvt {command}" in helps[command]


def test_python_m_cvt_is_the_command():
    done = subprocess.run([sys.executable, "-m", "cvt", "--version"], capture_output=True,
                          text=True, check=True)
    assert done.stdout.startswith("cvt ")


@pytest.mark.parametrize(("args", "message"), [
    (["trian"], "did you mean train?"),
    ([], "usage: cvt COMMAND"),
    (["train", "--optim.lrr", "1"], "did you mean --optim.lr?"),
    (["train", "--data.name", "digit"], "did you mean digits?"),
    (["train", "--optim.lr", "fast"], "optim.lr=fast is not of type float"),
    (["train", "--optim.lr", "-1"], "lr=-1.0 must not be negative"),
    (["train", "--in_chans", "2"], "choose from 1, 3"),
    (["train", "--resume", "x", "--seed", "3"], "--seed would be ignored"),
    (["train", "--data.name", "folder"], "needs data.root"),
    (["evaluate", "--model", "x", "--data.name", "folder"], "needs data.root"),
    (["train", "--model", "cvt_nan"], "did you mean cvt_nano?"),
    (["train", "--image_size", "0"], "image"),
    (["train", "--config", "absent.yaml"], "absent.yaml"),
    (["info", "--size", "big"], "not a size"),
    (["predict", "--model", "x"], "give images"),
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


def test_without_pytorch_a_trained_model_prints_the_install_line(tmp_path):
    code = ("import sys; sys.modules['torch'] = None\n"
            "from cvt.cli import main; sys.exit(main(sys.argv[1:]))")
    done = subprocess.run([sys.executable, "-c", code, "predict", "a.png", "--model", "runs/mine"],
                          capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("cvt predict: this needs PyTorch, which is not installed; pip i")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("args", [*([command] for command in COMMANDS), ["train", "all"],
                                  ["ablate", "all"], ["search", "all"], ["data check"],
                                  ["data copy"]], ids=" ".join)
def test_help_fits_80_columns_without_noise(helps, args):
    text = helps[" ".join(args)]
    assert max(map(len, text.splitlines())) <= 80
    assert "null" not in text
    assert "type:" not in text
    assert "\b" not in text


def test_the_help_of_train_is_short_and_the_rest_is_one_word_away(helps):
    common, rest = (set(re.findall(r"^  (?:-h, )?--([\w.]+)", helps[name], re.MULTILINE))
                    for name in ("train", "train all"))
    assert len(common) <= 30
    assert {"data.name", "model", "epochs", "optim.lr", "augment.mixup", "output"} <= common
    assert common < rest
    assert f"\n{len(rest - common)} more options: cvt train --help all" in helps["train"]
    assert "more options" not in helps["train all"]
    fields = set(Recipe().flat())
    assert fields <= rest


def test_every_option_of_a_recipe_has_a_heading():
    names = [name for names in GROUPS.values() for name in names]
    for field in Recipe().flat():
        assert any(field == name or (name.endswith(".") and field.startswith(name))
                   for name in names), field


@pytest.mark.parametrize(("args", "nearest"), [
    (["train", "--learning_rate", "1"], "--optim.lr"),
    (["train", "--learning-rate=1"], "--optim.lr"),
    (["train", "--lr", "1"], "--optim.lr"),
    (["train", "--weight-decay", "0.1"], "--optim.weight_decay"),
    (["train", "--num_epochs", "3"], "--epochs"),
    (["train", "--workers", "2"], "--data.workers"),
    (["train", "--mixup", "0.8"], "--augment.mixup"),
    (["train", "--warmup_epoch", "1"], "--optim.warmup_epochs"),
    (["train", "--name", "folder"], "--data.name or --optim.name"),
    (["train", "--dry"], "--dry_run"),
    (["train", "--keep", "1"], "--keep_checkpoints"),
    (["search", "--lr", "1"], "--optim.lr"),
    (["evaluate", "x", "--root", "y"], "--data.root"),
    (["predict", "a.png", "--topk", "3"], "--top_k")])
def test_an_option_by_another_name_names_ours(args, nearest, capsys):
    assert main(args) == 2
    assert f"did you mean {nearest}?" in capsys.readouterr().err


def test_an_option_like_no_other_lists_none(capsys):
    assert main(["train", "--zzz"]) == 2
    assert capsys.readouterr().err == (
        "cvt train: there is no option --zzz (see cvt train --help)\n")


def test_every_synonym_is_of_an_option_of_train(capsys):
    for name, option in _SYNONYMS.items():
        assert main(["train", f"--{name}", "1"]) == 2
        assert f"did you mean --{option}?" in capsys.readouterr().err
