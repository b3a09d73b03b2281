"""benchmarks/gpu.py works before it meets a GPU."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parents[2] / "benchmarks/gpu.py"


@pytest.fixture
def run(monkeypatch, tmp_path):
    """run(*options): the script on a small network, in this process; its code and its JSON."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    spec = importlib.util.spec_from_file_location("gpu_script", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "gpu_script", script)
    spec.loader.exec_module(script)
    precision, tf32 = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    out = tmp_path / "gpu.json"

    def call(*options):
        monkeypatch.setattr(sys, "argv", [
            "gpu.py", "--device", "cpu", "--quick", "--models", "cvt_nano", "--sizes", "32",
            "--no-peers", "--out", str(out), *options])
        return script.main(), json.loads(out.read_text())

    call.script = script
    yield call
    torch.set_float32_matmul_precision(precision)
    torch.backends.cudnn.allow_tf32 = tf32


def test_without_a_gpu_it_says_so():
    done = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True,
                          check=False, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""})
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "no CUDA device" in done.stderr


def test_every_part_runs_on_a_cpu(run, capfd):
    code, result = run()
    out = capfd.readouterr().out

    assert code == 0
    assert result["skipped"] == []
    assert len(result["checks"]) == 8
    assert all(check["passed"] for check in result["checks"])
    assert [p["train"] for p in result["profiles"]] == [False, True]
    assert all(p["operators"][0]["share"] > 0.01 for p in result["profiles"])
    assert {row["train"] for row in result["rows"]} == {False, True}
    for row in result["rows"]:
        assert row["median_s"] > 0
        assert row["label"] in out
    assert result["rows"][0]["speedup"]["median"] == 1


def test_when_the_time_is_spent_it_lists_what_is_left(run, monkeypatch, capfd):
    monkeypatch.setattr(run.script, "checks", lambda *_: [])
    monkeypatch.setattr(run.script, "profile", lambda *_: {})

    code, result = run("--minutes", "0")

    assert code == 0
    assert result["rows"] == []
    assert len(result["skipped"]) == 8
    assert "skipped:\n  inference, 32 pixels, batch 2: cvt_nano eager bf16: no time" in (
        capfd.readouterr().out)


def test_a_row_that_fails_costs_no_other(run, monkeypatch, capfd):
    def prepare(spec, *rest):
        if spec.layout == "channels_last":
            raise RuntimeError("out of memory\nand more")
        return sound(spec, *rest)

    sound = run.script.prepare
    monkeypatch.setattr(run.script, "prepare", prepare)
    monkeypatch.setattr(run.script, "profile", lambda *_: {})
    monkeypatch.setattr(run.script, "checks", lambda *_: [{"passed": False}])

    code, result = run()

    assert code == 1
    assert "1 of 1 checks" in capfd.readouterr().err
    assert len(result["rows"]) == 6
    assert [line.split(": ", 1)[1] for line in result["skipped"]] == 2 * [
        "cvt_nano channels_last eager bf16: RuntimeError: out of memory"]
