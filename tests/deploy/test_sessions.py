import os
import subprocess
import sys
from functools import partial

import numpy as np
import onnx
import openvino as ov
import pytest
import torch
from onnx import helper
from torch import nn

from cvt.deploy import sessions
from cvt.deploy.graphs import openvino_graph, save_openvino
from cvt.deploy.sessions import onnx_session, openvino_session
from cvt.system.errors import InputError

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def network():
    """A classifier of five classes that takes any size from 4 pixels."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 4, stride=4), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(8, 5)).eval()


@pytest.fixture(scope="module")
def graphs(network, tmp_path_factory):
    """model.xml and model.onnx of the network; torch's own exporter to ONNX takes many seconds."""
    home = tmp_path_factory.mktemp("graphs")
    save_openvino(openvino_graph(network, example=torch.randn(2, 3, 40, 44)), home / "model.xml")
    weights = [helper.make_tensor(name, onnx.TensorProto.FLOAT, p.shape, p.flatten().tolist())
               for name, p in network.named_parameters()]
    nodes = [helper.make_node("Conv", ["images", "0.weight", "0.bias"], ["a"], strides=[4, 4]),
             helper.make_node("GlobalAveragePool", ["a"], ["b"]),
             helper.make_node("Flatten", ["b"], ["c"]),
             helper.make_node("Gemm", ["c", "3.weight", "3.bias"], ["logits"], transB=1)]
    shapes = {"images": ["b", 3, "h", "w"], "logits": ["b", 5]}
    images, logits = (helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
                      for name, shape in shapes.items())
    graph = helper.make_graph(nodes, "classifier", [images], [logits], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8),
              home / "model.onnx")
    return home


SESSIONS = {
    "latency": lambda home: openvino_session(home / "model.xml", precision="fp32", latency=True),
    "streams": lambda home: openvino_session(home / "model.xml", precision="fp32", latency=False),
    "threads": lambda home: openvino_session(str(home / "model.xml"), precision="fp32", threads=1,
                                             latency=False),
    "onnx": lambda home: onnx_session(home / "model.onnx", threads=1),
}
OPENED = {".xml": partial(openvino_session, precision="fp32", latency=True), ".onnx": onnx_session}


@pytest.fixture(scope="module", params=SESSIONS)
def session(request, graphs):
    return SESSIONS[request.param](graphs)


def batch(n, *, size=48, seed=0):
    shape = (n, 3, size, size)
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def expected(network, images):
    with torch.inference_mode():
        return network(torch.from_numpy(images)).numpy()


@pytest.mark.parametrize("n", [1, 2, 3, 7, 17])
def test_a_batch_of_any_size_gives_the_networks_logits_in_order(session, network, n):
    images = batch(n)

    logits = session(images)

    assert logits.dtype == np.float32
    assert logits == pytest.approx(expected(network, images), abs=2e-5)
    assert n == 1 or not np.allclose(logits[0], logits[-1], atol=1e-3)  # the order would show


def test_another_size_that_the_graph_takes_is_computed(session, network):
    images = batch(2, size=64)
    assert session(images) == pytest.approx(expected(network, images), abs=2e-5)


def test_results_stay_as_they_are_when_the_next_batch_comes(session):
    first = session(batch(2))
    kept = first.copy()
    session(batch(2, seed=1))
    assert np.array_equal(first, kept)


def test_images_that_are_a_view_are_computed_as_they_look(session, network):
    images = batch(4)[::2].transpose(0, 1, 3, 2)
    assert session(images) == pytest.approx(expected(network, np.ascontiguousarray(images)),
                                            abs=2e-5)


@pytest.mark.parametrize("shape", [(2, 1, 48, 48), (3, 48, 48), (0, 3, 48, 48), (2, 3, 48, 0)])
def test_images_of_another_shape_are_rejected_in_one_line(session, shape):
    with pytest.raises(InputError, match="do not fit the graph, which takes") as error:
        session(np.zeros(shape, np.float32))
    assert "\n" not in str(error.value)
    session(batch(1))  # and the session still works


def test_a_graph_of_one_size_rejects_others(graphs, network):
    model = ov.Core().read_model(graphs / "model.xml")
    model.reshape([-1, 3, 48, 48])
    session = openvino_session(model, precision="fp32", latency=True)
    assert session(batch(2)) == pytest.approx(expected(network, batch(2)), abs=2e-5)
    with pytest.raises(InputError, match=r"which takes \(any, 3, 48, 48\)"):
        session(batch(2, size=64))


def test_shapes_that_come_once_and_those_beyond_a_few_share_one_graph(graphs, network, monkeypatch):
    compiled = []
    sessions.openvino_core()  # which compiles a graph of its own
    compile_model = ov.Core.compile_model

    def spy(core, model, *args):
        compiled.append(str(model.input(0).get_partial_shape()))
        return compile_model(core, model, *args)

    monkeypatch.setattr(ov.Core, "compile_model", spy)
    session = openvino_session(graphs / "model.xml", precision="fp32", latency=True)
    for size in (40, 44, 40, 48, 52, 56, 44, 48, 52, 56, 40, 56):
        images = batch(1, size=size)
        assert session(images) == pytest.approx(expected(network, images), abs=2e-5)
    assert compiled == ["[?,3,?,?]", *(f"[1,3,{n},{n}]" for n in (40, 44, 48, 52))]


def test_what_the_runtime_rejects_is_one_line():
    images = ov.opset13.parameter([-1, 3, -1, -1], np.float32)
    row = ov.opset13.reshape(images, np.array([-1, 3 * 48 * 48 * 2]), special_zero=False)
    model = ov.Model([row], [images], "two images of 48x48 a row")
    session = openvino_session(model, precision="fp32", latency=True)
    with pytest.raises(InputError, match="cannot compute images of 40x40 pixels") as error:
        session(batch(2, size=40))
    assert "\n" not in str(error.value)
    assert session(batch(2)).shape == (1, 13824)  # and the session still works


def options_of(monkeypatch, **how):
    """The options that OpenVINO compiles with, for the first batch."""
    given = {}
    sessions.openvino_core()  # which compiles a graph of its own
    compile_model = ov.Core.compile_model

    def spy(core, model, device, options):
        given.update(options)
        return compile_model(core, model, device, options)

    monkeypatch.setattr(ov.Core, "compile_model", spy)
    openvino_session(**how)(batch(1))
    return given


@pytest.mark.parametrize(("precision", "hint"), [("fp32", "f32"), ("bf16", "bf16"),
                                                 ("int8", "bf16"), ("old int8", "f32")])
def test_bfloat16_is_computed_in_where_asked_for_and_beside_8_bits(
        graphs, monkeypatch, precision, hint):
    """By itself OpenVINO takes it wherever the processor can, also where that emulates it."""
    monkeypatch.setattr(sessions, "native_bf16", lambda: not precision.startswith("old"))
    given = options_of(monkeypatch, model=graphs / "model.xml", precision=precision.split()[-1],
                       latency=True)
    assert given["INFERENCE_PRECISION_HINT"] == hint


def test_threads_and_the_kind_of_use_reach_openvino(graphs, monkeypatch):
    path = graphs / "model.xml"
    given = options_of(monkeypatch, model=path, precision="fp32", threads=1, latency=False)
    assert (given["PERFORMANCE_HINT"], given["INFERENCE_NUM_THREADS"]) == ("THROUGHPUT", 1)
    given = options_of(monkeypatch, model=path, precision="fp32", latency=True)
    assert given["PERFORMANCE_HINT"] == "LATENCY"


@pytest.mark.parametrize("name", ["cut.xml", "cut.onnx", "gone.xml", "gone.onnx"])
def test_a_graph_that_cannot_be_opened_is_named_in_one_line(graphs, tmp_path, name, capfd):
    path = tmp_path / name
    if name.startswith("cut"):
        path.write_bytes((graphs / f"model{path.suffix}").read_bytes()[:300])
    opened = OPENED[path.suffix]
    with pytest.raises(InputError, match=f"cannot open .*{name}: .") as error:
        opened(path)
    assert "\n" not in str(error.value)
    assert capfd.readouterr().err == ""


def test_sessions_need_no_torch(graphs):
    code = ("import sys; sys.modules['torch'] = None\n"
            "import numpy as np; from cvt.deploy.sessions import *\n"
            f"home = {str(graphs)!r}\n"
            "for s in (onnx_session(home + '/model.onnx'), openvino_session(home + '/model.xml', "
            "precision='fp32', latency=False)):\n"
            "    print(s(np.zeros((2, 3, 48, 48), np.float32)).shape)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("(2, 5)\n(2, 5)\n", "")


class Transpose(nn.Module):
    def forward(self, x):
        return x.transpose(1, 2)


def test_a_limit_of_onednn_for_pytorch_does_not_crash_openvino(tmp_path):
    """It heeds the limit in one half of its code and not in the other, which ended the process."""
    norm = nn.Sequential(nn.Conv2d(3, 7, 1), nn.Flatten(2), Transpose(), nn.LayerNorm(7)).eval()
    save_openvino(openvino_graph(norm, example=torch.randn(2, 3, 5, 6)), tmp_path / "norm.xml")
    code = ("import os, numpy as np; from cvt.deploy.sessions import openvino_session\n"
            f"session = openvino_session({str(tmp_path / 'norm.xml')!r}, precision='fp32', "
            "latency=True)\n"
            "print(session(np.ones((2, 3, 4, 5), np.float32)).shape)\n"
            "print(os.environ['ONEDNN_MAX_CPU_ISA'])")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False,
                          env={**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"})
    assert (done.returncode, done.stdout, done.stderr) == (0, "(2, 20, 7)\nAVX2\n", "")


def test_a_session_may_end_on_another_thread_than_it_began(graphs):
    """OpenVINO took the first thread's signal stack with it, and the next signal was the last."""
    code = ("import signal, subprocess, sys, threading\n"
            "import numpy as np; from cvt.deploy.sessions import openvino_session\n"
            "signal.signal(signal.SIGCHLD, lambda *_: seen.append(1)); seen = []\n"
            f"held = [openvino_session({str(graphs / 'model.xml')!r}, precision='fp32', "
            "latency=True)]\n"
            "held[0](np.zeros((2, 3, 48, 48), np.float32))\n"
            "thread = threading.Thread(target=held.clear); thread.start(); thread.join()\n"
            "subprocess.run([sys.executable, '-c', 'pass'], check=True); print(bool(seen))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")


@pytest.mark.parametrize(("module", "extra"), [("openvino", "openvino"), ("onnxruntime", "onnx")])
def test_a_missing_runtime_is_reported_with_its_install_line(monkeypatch, module, extra):
    monkeypatch.setitem(sys.modules, module, None)
    opened = OPENED[".onnx" if extra == "onnx" else ".xml"]
    with pytest.raises(InputError, match=rf"pip install 'cvt-torch\[{extra}\]'"):
        opened("model")
