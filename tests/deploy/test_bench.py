"""`cvt bench`: the figures hang together, and what cannot be measured is reported."""

import json
import statistics
import sys
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from cvt.cli import main
from cvt.deploy import bench, timing
from cvt.model import CvT
from cvt.networks.complexity import multiply_adds, network_multiply_adds
from cvt.system.errors import InputError

pytestmark = pytest.mark.slow

QUICK = ["--size", "32", "--rounds", "3", "--batch", "2"]


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    monkeypatch.setattr(bench, "steady_clock", timing.wall_clock)
    monkeypatch.setattr(bench, "matmul_flops", lambda _: 1e11)


@pytest.fixture
def config_file(tiny, tmp_path):
    path = tmp_path / "tiny.json"
    tiny(image_size=32).save(path)
    return str(path)


@pytest.fixture
def no_openvino(monkeypatch):
    """A machine on which every backend but openvino is the model itself."""
    def optimize(model, backend, precision, **_):
        if backend == "openvino":
            raise InputError("openvino is not installed; pip install 'cvt-torch[openvino]'")
        run = torch.inference_mode()(model)
        return type("Fast", (), {"agreement": SimpleNamespace(difference=0.0),
                                 "__call__": lambda _, images: run(images)})()

    monkeypatch.setitem(sys.modules, "cvt.deploy.backends", SimpleNamespace(optimize=optimize))


def test_candidates_take_turns_after_a_call_that_does_not_count():
    seen = []
    calls = {name: (lambda name=name: seen.append(name)) for name in "abc"}

    seconds = timing.interleaved(calls, rounds=3, warmup=1)

    assert "".join(seen) == "abc" + "aabbcc" + "bbccaa" + "ccaabb"
    assert {name: len(s) for name, s in seconds.items()} == {"a": 3, "b": 3, "c": 3}


def test_ratio_pairs_the_rounds():
    assert timing.ratio([2.0, 4.0, 8.0], [1.0, 2.0, 4.0]) == {
        "median": 2, "quartile1": 2, "quartile3": 2}


def test_ceiling_is_a_rate_this_machine_can_reach(monkeypatch):
    monkeypatch.undo()
    assert 1e8 < timing.matmul_flops(torch.float32, seconds=0.05) < 1e14


def test_json_figures_follow_from_the_times(config_file, capsys):
    assert main(["bench", "cvt_nano", config_file, "--backends", "plain", "--peers",
                 "transformers:cvt_nano", "timm:resnet10t", *QUICK, "1", "--base",
                 "timm:resnet10t", "--json"]) == 0
    out, err = capsys.readouterr()
    result = json.loads(out)

    assert err == ""
    assert result["base"] == "timm:resnet10t fp32"
    assert [(row["label"], row["batch"]) for row in result["rows"]] == [
        (label, batch) for batch in (2, 1) for label in
        ("cvt_nano plain fp32", f"{config_file} plain fp32", "transformers:cvt_nano fp32",
         "timm:resnet10t fp32")]
    for row in result["rows"]:
        base = next(r for r in result["rows"]
                    if r["label"] == result["base"] and r["batch"] == row["batch"])
        median = statistics.median(row["seconds"])
        assert row["median_s"] == pytest.approx(median)
        assert row["images_per_s"] == pytest.approx(row["batch"] / median)
        assert row["gflops"] == pytest.approx(row["flops"] / median / 1e9)
        assert row["utilization"] == pytest.approx(row["gflops"] / 100)
        assert row["speedup"]["median"] == pytest.approx(statistics.median(
            b / s for b, s in zip(base["seconds"], row["seconds"], strict=True)))
    assert base["speedup"]["median"] == 1


def test_peers_are_counted_as_ours_are():
    model = bench.build_peer("transformers:cvt_nano", 48)
    config = bench.config_of("cvt_nano")
    counted = network_multiply_adds(model, torch.zeros(1, 3, 48, 48))
    assert counted == multiply_adds(config, (48, 48))
    assert sum(p.numel() for p in model.parameters()) == sum(
        p.numel() for p in CvT(config).parameters())


@pytest.mark.parametrize("name", ["vit_small_patch16_224", "swin_tiny_patch4_window7_224"])
def test_peers_are_built_for_the_size(name):
    with torch.inference_mode():
        assert bench.build_peer(f"timm:{name}", 64)(torch.zeros(1, 3, 64, 64)).shape == (1, 1000)


def test_table_and_chart(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["bench", "cvt_nano", "--backends", "plain", "--peers", "transformers:cvt", *QUICK,
                 "--precision", "fp32", "bf16", "--chart", str(tmp_path / "a.png")]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()

    assert max(map(len, lines)) <= 80
    assert sum("plain fp32" in line for line in lines) == 2  # its row, and as base in the caption
    assert any("transformers bf16" in line for line in lines)
    assert "batch 2" in out
    assert f"wrote {tmp_path / 'a.png'}" in err
    with Image.open(tmp_path / "a.png") as image:
        assert image.format == "PNG"
        assert 800 < image.width < 2000
        assert 300 < image.height < 2000
        assert len(image.convert("RGB").getcolors(1 << 20)) > 10


def test_training_steps_count_three_forward_passes(capsys):
    threads = torch.get_num_threads()
    assert main(["bench", "cvt_nano", "--train", "--peers", "--threads", "1", *QUICK,
                 "--json"]) == 0
    result = json.loads(capsys.readouterr().out)

    assert result["train"]
    assert result["threads"] == 1
    assert torch.get_num_threads() == threads
    assert [row["backend"] for row in result["rows"]] == ["plain", "eager"]
    cost = multiply_adds(bench.config_of("cvt_nano"), (32, 32))
    assert {row["flops"] for row in result["rows"]} == {3 * 2 * 2 * cost}


def test_the_folded_network_gives_the_same_logits():
    result = bench.compare(["cvt_nano"], backends=["plain", "eager"], peers=[], batches=[1],
                          size=32, rounds=3)
    assert result.rows[0].difference is None
    assert result.rows[1].difference < 2e-5


def test_what_is_missing_is_skipped_with_a_line(no_openvino, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.setattr(bench, "PEERS", ("transformers:cvt",))
    assert main(["bench", "cvt_nano", *QUICK]) == 0
    out, err = capsys.readouterr()

    assert "onnxruntime" in out
    assert err.splitlines() == [
        "cvt bench: skipped cvt_nano openvino fp32: openvino is not installed; "
        "pip install 'cvt-torch[openvino]'",
        "cvt bench: skipped transformers:cvt_nano fp32: transformers is not installed; "
        "pip install 'cvt-torch[dev]'"]


def test_what_one_backend_lacks_is_skipped(no_openvino):
    result = bench.compare(["cvt_nano"], backends=["plain", "eager"], precisions=["fp32", "int8"],
                          peers=[], batches=[1], size=32, rounds=3)
    assert [row.label for row in result.rows] == [
        "cvt_nano plain fp32", "cvt_nano eager fp32", "cvt_nano eager int8"]
    assert result.rows[2].utilization is None
    assert result.skipped[0].startswith("cvt_nano plain int8: ")


@pytest.mark.parametrize(("args", "message"), [
    (["--backends", "openvino"], "openvino is not installed"),
    (["--backends", "plain", "openvino"], "openvino is not installed"),
    (["--peers", "transformers:cvt"], "transformers is not installed"),
    (["cvt_nan"], "did you mean cvt_nano?"),
    (["--backends", "open_vino"], "did you mean openvino?"),
    (["--precision", "bf1"], "did you mean bf16?"),
    (["--peers", "convnext_tiny"], "timm:convnext_tiny"),
    (["--peers", "timm:convnext_tin"], "did you mean convnext_tiny?"),
    (["--peers", "transformers:cvt_99"], "did you mean cvt_"),
    (["--peers", "--base", "cvt_nano plan"], "did you mean cvt_nano plain fp32?"),
    (["--peers", "--train", "--backends", "onnxruntime"], "onnxruntime does not train"),
    (["--peers", "--backends", "plain", "plain"], "twice"),
    (["--peers", "--backends"], "nothing to measure"),
    (["cvt_13", "--peers", "--size", "2"], "pixels"),
])
def test_what_is_asked_for_by_name_must_be_there(args, message, no_openvino, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "transformers", None)
    model, *rest = args if args[0].startswith("cvt") else ["cvt_nano", *args]
    assert main(["bench", model, *QUICK, *rest]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(("args", "message"), [
    (["--rounds", "2"], "at least 3"),
    (["--batch", "1", "0"], "--batch 0 must be at least 1"),
    (["--threads", "0"], "--threads 0 must be at least 1"),
    (["--chart", "x.svg"], "must end in .png"),
    (["--bakends", "plain"], "did you mean --backends?"),
])
def test_a_wrong_call_leaves_with_2(args, message, capsys):
    assert main(["bench", *args]) == 2
    assert message in capsys.readouterr().err
