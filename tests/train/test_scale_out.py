"""Real processes under torchrun, or started as it does, over gloo."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from cvt.cli import main
from cvt.weights.tensors import read_tensors

from .torchrun import launch

pytestmark = pytest.mark.slow

ENV = {**os.environ, "OMP_NUM_THREADS": "1"}


TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone")


def options_of(model, run, *options):
    return ["train", f"--model={model}", "--image_size=8", "--epochs=1",
            "--optim.warmup_epochs=0", "--batch_size=64", "--augment.mixup=0.2",
            "--augment.crop=shift", "--device=cpu", "--sync_batchnorm=true", "--ema=0.9", "--quiet",
            f"--output={run}", *options]


def train(model, run, processes, *options):
    code, out, error = launch(processes, *options_of(model, run, *options))
    assert code == 0, error
    return out


def test_two_and_four_processes_train_as_one(tiny_file, tmp_path):
    """22 steps of synchronised BatchNorm, mixup and EMA; only rounding may differ."""
    said = {n: train(tiny_file, tmp_path / str(n), n) for n in (1, 2, 4)}
    one = read_tensors(tmp_path / "1/last.safetensors")
    for n in (2, 4):
        assert said[n].count("report:") == 1  # one process speaks
        other = read_tensors(tmp_path / f"{n}/last.safetensors")
        assert other.keys() == one.keys()
        apart = {name: (other[name] - one[name].double()).norm() for name in one}
        length = {name: one[name].double().norm() for name in one}
        assert torch.stack([*apart.values()]).norm() <= (
            1e-5 * torch.stack([*length.values()]).norm())
        for name in one:  # AdamW makes noise of gradients that are 0, as those of the keys' biases
            assert apart[name] <= 1e-4 * length[name] or length[name] < 0.05, name


def test_a_frozen_process_ends_all_within_a_minute_and_says_so(tiny_file, tmp_path):
    launcher = subprocess.Popen(
        [*TORCHRUN, "--nproc-per-node=2", "-m", "cvt",
         *options_of(tiny_file, tmp_path / "run", "--epochs=1000")], env=ENV,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        while not (tmp_path / "run/last.safetensors").exists():
            assert launcher.poll() is None, launcher.stderr.read()
            time.sleep(0.1)
        victim = int(subprocess.check_output(["pgrep", "-P", str(launcher.pid)], text=True)
                     .split()[-1])
        os.kill(victim, signal.SIGSTOP)
        start = time.monotonic()
        _, error = launcher.communicate(timeout=70)
        assert time.monotonic() - start < 60
        assert "has given no sign of life" in error
        assert launcher.returncode != 0
    finally:
        launcher.kill()


def test_a_batch_that_cannot_be_shared_is_refused(tiny_file, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(options_of(tiny_file, tmp_path / "run", "--batch_size=66")) == 1
    assert "batch_size=66 is shared by 2 processes" in capfd.readouterr().err
    assert not (tmp_path / "run").exists()
