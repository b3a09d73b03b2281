import json
import sys

import psutil
import pytest

from cvt.cli import main
from cvt.config import CvTConfig, StageConfig
from cvt.train.plan import _max_micro_batch

from .torchrun import launch


@pytest.fixture
def options(tmp_path):
    """A run of a network whose tensors are much larger than what their files say besides."""
    stages = (StageConfig(dim=64, num_heads=1, depth=1, cls_token=True),)
    CvTConfig(stages=stages, num_classes=10, image_size=8).save(tmp_path / "tiny.json")
    return [f"--model={tmp_path / 'tiny.json'}", "--image_size=8", "--batch_size=64",
            "--epochs=3", f"--output={tmp_path / 'run'}"]


def test_a_dry_run_estimates_a_run_and_writes_nothing(options, tmp_path, capsys):
    assert main(["train", *options, "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["steps"], plan["epochs"], plan["processes"]) == (66, 3, 1)
    assert 0 <= plan["waiting_seconds"] < plan["step_seconds"] < 5
    assert plan["total_seconds"] == pytest.approx(
        66 * plan["step_seconds"] + 4 * plan["validation_seconds"])
    assert 0 < plan["memory"] < plan["memory_limit"]
    assert plan["exchange_seconds"] is None
    assert plan["scaling"][1]["seconds"] < plan["scaling"][0]["seconds"]
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_its_disk_space_is_that_of_a_run(options, tmp_path, capsys):
    assert main(["train", *options, "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert main(["train", *options, "--quiet"]) == 0
    newest = max((tmp_path / "run/checkpoints").iterdir())
    tensors = sum(p.stat().st_size for p in newest.glob("*.safetensors"))
    assert plan["checkpoint"] == pytest.approx(tensors, rel=0.1)  # headers besides
    run = sum(p.stat().st_size for p in (tmp_path / "run").rglob("*.safetensors"))
    assert 0.5 * plan["disk"] <= run <= 1.1 * plan["disk"]


def test_its_memory_includes_validation(options, capsys, monkeypatch):
    def hungry(model, setup):
        return len(b"x" * int(4e8)) / 4e8  # bytes; a second

    monkeypatch.setattr("cvt.train.plan._validation", hungry)
    before = psutil.Process().memory_info().rss
    assert main(["train", *options, "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["validation_seconds"] == 1
    if sys.platform == "linux":  # elsewhere the peak may be an earlier test's
        assert plan["memory"] > before + 350_000_000


def test_it_is_shown_as_a_table(options, capsys):
    assert main(["train", *options, "--dry_run"]) == 0
    out = capsys.readouterr().out
    assert "1,437 to train, 360 to validate" in out
    assert "--optim.grad_accum_steps 1" in out


@pytest.mark.slow
def test_several_processes_measure_the_all_reduce(options):
    code, out, error = launch(2, "train", *options, "--device=cpu", "--dry-run", "--json")
    assert code == 0, error
    plan = json.loads(out)
    assert plan["processes"] == 2
    assert plan["exchange_seconds"] > 0
    assert plan["micro_batch_size"] == 32


@pytest.mark.parametrize(("peak", "less", "limit", "fits"), [
    (2000, 1200, 2000, 16),  # 100 each on 400
    (2000, 1200, 1300, 8),
    (2000, 1200, 800, 4),
    (2000, 1200, 450, None),
    (2000, 1200, 99999, 64),
    (2000, 2000, 3000, 16),  # too small to be seen
])
def test_the_batch_that_fits_follows_from_two_peaks(peak, less, limit, fits):
    assert _max_micro_batch(64, 16, peak, less, limit) == fits
