"""The package works where there is no fork, no /proc and no UTF-8 console."""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cvt.cli import main
from cvt.system.device import autocast, free_cache, out_of_memory, pick_device
from cvt.system.errors import InputError
from cvt.system.machine import available_memory, peak_memory, reset_peak_memory

LINUX = pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="looks into Linux's /proc")


@LINUX
@pytest.mark.slow
def test_commands_run_without_what_only_linux_has(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("katze", "\N{CJK UNIFIED IDEOGRAPH-732B}"):  # no letter of cp1252
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(4):
            Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(
                tmp_path / "photos" / name / f"{i}.png")
    train = ["train", "photos", "--image_size", "16", "--batch_size", "4", "--epochs", "2",
             "--optim.warmup_steps", "0", "--steps", "2", "--save_every", "1",
             "--keep_checkpoints", "1", "--data.val_fraction", "0.5", "--data.workers", "1",
             "--output", "run", "--quiet"]
    commands = [
        train,
        ["train", "--resume", "run", "--steps", "3", "--data.workers", "0", "--quiet"],
        ["evaluate", "run", "photos", "--data.val_fraction", "0.5"],
        ["predict", "run", "photos"], ["predict", "run", "photos", "--output", "out"],
        ["explain", "run", "photos/katze/0.png"],
        ["data", "copy", "photos", "small", "--short_side", "8", "--quiet"], ["info"]]
    environment = {**os.environ, "PYTHONIOENCODING": "cp1252", "PYTHONUTF8": "0",
                   "PYTHONWARNDEFAULTENCODING": "1", "OMP_NUM_THREADS": "1"}

    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("another_machine.py"))], check=False,
        input="\n".join(map(json.dumps, commands)), capture_output=True, cwd=tmp_path,
        env=environment, encoding="cp1252", timeout=600)

    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert [line for line in done.stdout.splitlines() if line.startswith("== ")] == [
        f"== {args[0]}: 0" for args in commands]
    assert r"\u732b" in done.stdout


def test_auto_is_the_accelerator_that_pytorch_knows(monkeypatch):
    for kind in ("cuda", "xpu", "mps"):
        monkeypatch.setattr(torch.accelerator, "current_accelerator",
                            lambda kind=kind, **_: torch.device(kind))
        assert pick_device("auto").type == kind
    for none in (None, torch.device("meta")):
        monkeypatch.setattr(torch.accelerator, "current_accelerator",
                            lambda none=none, **_: none)
        assert pick_device("auto").type == "cpu"


def test_a_precision_that_the_device_lacks_is_an_error(monkeypatch):
    def without(kind, dtype=None, enabled=True):
        if enabled and dtype == torch.bfloat16:
            warnings.warn("In MPS autocast, but the target dtype is not supported.", stacklevel=2)
        return "autocast"

    monkeypatch.setattr(torch, "autocast", without)
    assert autocast(torch.device("mps"), "fp32") == autocast(torch.device("mps"), "fp16")
    with pytest.raises(InputError, match="'bf16' cannot be computed on device='mps'"):
        autocast(torch.device("mps"), "bf16")


def test_memory_is_known_and_can_be_short_anywhere():
    free_cache(torch.device("cpu"))
    reset_peak_memory()
    assert 0 < peak_memory() < available_memory() + peak_memory()
    assert out_of_memory(RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"))
    assert out_of_memory(RuntimeError("DefaultCPUAllocator: not enough memory: you tried"))
    assert not out_of_memory(RuntimeError("shapes do not match"))


@pytest.mark.parametrize(("system", "value"), [("darwin", "1"), ("linux", None)])
def test_operations_that_mps_lacks_run_on_the_cpu(system, value, monkeypatch, capsys):
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setitem(os.environ, "PYTORCH_ENABLE_MPS_FALLBACK", "")
    del os.environ["PYTORCH_ENABLE_MPS_FALLBACK"]
    assert main(["--version"]) == 0
    assert os.environ.get("PYTORCH_ENABLE_MPS_FALLBACK") == value


@pytest.mark.slow
def test_a_cuda_toolkit_without_a_gpu_is_not_spoken_of(tmp_path):
    code = ("from cvt.cli import main; main(['--version'])\n"
            "import logging; log = logging.getLogger('torch.utils.cpp_extension')\n"
            "import torch.utils.cpp_extension; log.warning('something else')")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                          env={**os.environ, "CUDA_HOME": str(tmp_path),
                               "CUDA_VISIBLE_DEVICES": ""})
    assert "No CUDA runtime" not in done.stderr
    assert "something else" in done.stderr
