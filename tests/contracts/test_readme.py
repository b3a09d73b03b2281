"""What the README shows works as it stands there."""

import re
import shlex
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
import yaml
from PIL import Image

import cvt
from cvt.cli import COMMANDS as CLI
from cvt.cli import main
from cvt.deploy.doctor import Trial
from cvt.weights.names import FROM_NATIVE, rename

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
COMMANDS = [shlex.split(line, comments=True)[1:] for kind, text in BLOCKS if kind == "sh"
            for line in re.findall(r"(?:^|\| )(cvt .*)$", text, re.MULTILINE)]


def test_the_readme_shows_every_command():
    assert {args[0] for args in COMMANDS} == set(CLI)


@pytest.mark.parametrize("args", COMMANDS, ids=" ".join)
def test_commands_are_understood(args, monkeypatch, tmp_path, capsys):
    for name in ("recipes", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    for name in ("holiday/a.jpg", "scans/b.png", "photo.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    if args[0] in ("train", "ablate", "search", "serve") and "--resume" not in args:
        assert main([*args, "--print_config"]) == 0
    elif args[0] == "bench":  # understood up to a value that stops it before it measures
        assert main([*args, "--rounds", "0"]) == 2
        assert "rounds" in capsys.readouterr().err
    elif args[0] == "doctor":  # which tries every backend for half a minute
        monkeypatch.setattr("cvt.deploy.doctor._trials", lambda _: [Trial(
            backend="eager", precision="fp32", device="cpu", milliseconds=1.0, difference=0.0)])
        assert main(args) == 0
    elif args[0] == "predict" and args[1].startswith("runs/"):  # understood, but it is not here
        assert main(args) == 2
        assert f"nothing at {args[1]}" in capsys.readouterr().err
    elif args[0] in ("info", "zoo") or (
            args[0] in ("predict", "explain") and not args[1].startswith("cvt_13.")):
        assert main(args) == 0
    else:  # understood, but there is no such model here
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        assert main(args) == 1
        assert re.search("no model at runs/|runs/.* has no recipe|OFFLINE|photos is not a dir",
                         capsys.readouterr().err)


def test_python_examples_run(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    official = {rename(name, FROM_NATIVE["official"]): tensor
                for name, tensor in cvt.CvT(cvt.VARIANTS["cvt_13"]).state_dict().items()}
    torch.save(official, "CvT-13-224x224-IN-1k.pth")
    spec = {"NUM_STAGES": 1, "DIM_EMBED": [8], "NUM_HEADS": [1], "DEPTH": [1]}
    Path("cvt-13-224x224.yaml").write_text(yaml.safe_dump({"MODEL": {"SPEC": spec}}))
    stage = cvt.StageConfig(dim=8, num_heads=1, depth=1)
    cvt.save_model("runs/cvt_nano_digits", cvt.CvT(cvt.CvTConfig(stages=(stage,), num_classes=2)),
                   cvt.Preprocess(), ("a", "b"))
    names = {}
    for kind, text in BLOCKS:
        if kind == "python":
            exec(text, names)
    assert [m.shape[1:] for m in names["maps"]] == [(64, 56, 56), (192, 28, 28), (384, 14, 14)]
    assert names["trunk"].channels == {"stride4": 64, "stride8": 192, "stride16": 384}
    assert names["model"].config.stages[0].dim == 8
