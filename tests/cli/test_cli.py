import json
import subprocess
import sys

import pytest

from cvt.cli import COMMANDS, main


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
            "for command in COMMANDS:\n"
            "    with contextlib.redirect_stdout(io.StringIO()) as text:\n"
            "        assert main([command, '--help']) == 0\n"
            "    assert 'torch' not in sys.modules, command\n"
            "    texts[command] = text.getvalue()\n"
            "print(json.dumps(texts))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
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
    (["train", "--optim.lrr", "1"], "did you mean optim.lr?"),
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


def test_without_pytorch_a_trained_model_is_answered_with_the_install_line(tmp_path):
    code = ("import sys; sys.modules['torch'] = None\n"
            "from cvt.cli import main; sys.exit(main(sys.argv[1:]))")
    done = subprocess.run([sys.executable, "-c", code, "predict", "a.png", "--model", "runs/mine"],
                          capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("cvt predict: this needs PyTorch, which is not installed; pip i")
    assert done.stderr.count("\n") == 1
