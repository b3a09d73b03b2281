import io
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import onnx
import pytest
import torch
from onnx import helper
from PIL import Image

from cvt.cli import main
from cvt.config import CvTConfig, Preprocess, StageConfig
from cvt.data.images import read_image
from cvt.data.listing import LeftOut
from cvt.data.preprocess import prepare
from cvt.deploy.export import export
from cvt.deploy.manifest import Manifest, hash_files
from cvt.model import CvT
from cvt.predict.predictor import Predictor, find_images, softmax
from cvt.system.errors import InputError
from cvt.weights.card import ModelCard
from cvt.weights.models import load_model, save_model

pytestmark = pytest.mark.slow

CLASSES = ("ant", "bee", "cat", "dog")


@pytest.fixture(scope="module")
def home(tmp_path_factory, telling):
    """trained/ and its openvino/, another network's onnx/, and ten images in images/."""
    home = tmp_path_factory.mktemp("predict")
    torch.manual_seed(0)
    stage = StageConfig(dim=8, num_heads=1, depth=1, embed_kernel=7, embed_stride=4,
                        embed_padding=2, cls_token=True)
    model = telling(CvT(CvTConfig(stages=(stage,), num_classes=4, image_size=24)))
    save_model(home / "trained", model, Preprocess(size=24), CLASSES)
    export(home / "trained", home / "openvino", "openvino")
    write_onnx(home / "onnx", ModelCard.load(home / "trained"))
    rng = np.random.default_rng(0)
    (home / "images").mkdir()
    for i in range(10):
        coarse = Image.fromarray(rng.integers(0, 256, (3, 3, 3), dtype=np.uint8))
        coarse.resize((50 + 3 * i, 40)).save(home / "images" / f"{i}.png")
    return home


def write_onnx(directory, card):
    """An exported model whose logits are the means of the channels; torch's exporter is slow."""
    directory.mkdir()
    weight = helper.make_tensor("weight", onnx.TensorProto.FLOAT, (3, 4), range(12))
    nodes = [helper.make_node("GlobalAveragePool", ["images"], ["a"]),
             helper.make_node("Flatten", ["a"], ["b"]),
             helper.make_node("MatMul", ["b", "weight"], ["logits"])]
    images = helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT, ["b", 3, "h", "w"])
    logits = helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["b", 4])
    graph = helper.make_graph(nodes, "means", [images], [logits], [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8),
              directory / "model.onnx")
    Manifest(format="onnx", precision="fp32", graph="model.onnx", hashes=hash_files(directory),
             card=card, parity={}, versions={}).save(directory)


@pytest.fixture(scope="module")
def predictor(home):
    return Predictor(home / "openvino", batch_size=4)


@pytest.fixture
def images(home):
    return sorted((home / "images").iterdir())


def reading_threads():
    return [t for t in threading.enumerate() if t.name.startswith("cvt-")]


def by_torch(home, images):
    """Probabilities (B, K) of the trained model, one image after the other."""
    model, card = load_model(home / "trained")
    with torch.inference_mode():
        return torch.cat([model(torch.from_numpy(prepare(card.preprocess, read_image(p)))[None])
                          .softmax(1) for p in images])


@pytest.mark.parametrize(("source", "tolerance"), [("trained", 1e-6), ("openvino", 1e-5)])
@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_every_image_gets_the_models_probabilities_in_order(home, images, source, tolerance,
                                                              batch_size):
    predictor = Predictor(home / source, batch_size=batch_size)

    result = list(predictor(images, top_k=4))

    probs = by_torch(home, images)
    assert [p.image for p in result] == [str(p) for p in images]
    assert len(set(probs.argmax(1).tolist())) > 1  # the order would show
    for prediction, expected in zip(result, probs, strict=True):
        values, indices = expected.topk(4)
        assert [name for name, _ in prediction.classes] == [CLASSES[i] for i in indices]
        assert [p for _, p in prediction.classes] == pytest.approx(values.tolist(), abs=tolerance)


def test_softmax_and_ranking_are_those_of_torch():
    logits = torch.randn(50, 1000) * 20
    probs = softmax(logits.numpy())
    assert np.allclose(probs, logits.softmax(1).numpy(), atol=1e-6)
    assert np.allclose(probs.sum(1), 1)
    assert np.isfinite(softmax(np.float32([[3e38, -3e38, 0]]))).all()


@pytest.mark.parametrize(("source", "backend"), [("trained", "eager"), ("openvino", "openvino"),
                                                 ("onnx", "onnxruntime")])
def test_a_predictor_has_its_backend_precision_and_card(home, source, backend):
    predictor = Predictor(home / source)
    assert (predictor.backend, predictor.precision) == (backend, "fp32")
    assert predictor.card == ModelCard.load(home / "trained")
    assert predictor.logits(np.zeros((3, 3, 24, 24), np.float32)).shape == (3, 4)


@pytest.mark.parametrize(("backend", "precision", "tolerance"), [
    ("openvino", "fp32", 1e-5), ("eager", "bf16", 0.1)])
def test_a_trained_model_runs_on_the_given_backend(home, images, backend, precision,
                                                               tolerance):
    predictor = Predictor(home / "trained", backend=backend, precision=precision)
    assert (predictor.backend, predictor.precision) == (backend, precision)
    probs = [dict(p.classes) for p in predictor(images)]
    expected = by_torch(home, images).tolist()
    result = [[row[name] for name in CLASSES] for row in probs]
    assert np.allclose(result, expected, atol=tolerance)
    assert (tolerance < 0.01) or not np.allclose(result, expected, atol=1e-6)  # it is bf16


def test_paths_bytes_and_images_of_pillow_are_the_same_image(predictor, images):
    path = images[3]
    opened = Image.open(path)
    result = list(predictor([path, str(path), path.read_bytes(), opened, read_image(path)]))
    assert len({p.classes for p in result}) == 1
    assert [p.image for p in result] == [str(path), str(path), "#2", "#3", "#4"]


@pytest.mark.parametrize("batch_size", [1, 2, 3, 64])
def test_an_unreadable_image_is_reported_in_its_place(home, images, tmp_path, batch_size):
    predictor = Predictor(home / "openvino", batch_size=batch_size)
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"not an image")
    cut = images[0].read_bytes()[:60]
    mixed = [broken, images[0], tmp_path / "gone.png", cut, *images[1:3], broken]

    result = list(predictor(mixed))

    assert [p.error is None for p in result] == [False, True, False, False, True, True, False]
    assert [bool(p.classes) for p in result] == [p.error is None for p in result]
    assert "broken.png is not an image" in result[0].error
    assert "gone.png: No such file" in result[2].error
    assert result[3].error.startswith("#3 is ")
    whole = list(Predictor(home / "openvino", batch_size=64)(images[:3]))
    assert [p.classes[0][0] for p in result if not p.error] == [p.classes[0][0] for p in whole]


def test_no_images_give_no_predictions(predictor):
    assert list(predictor([])) == []
    assert reading_threads() == []


def test_an_endless_iterator_is_read_a_few_batches_ahead(predictor, images):
    asked = []

    def endless():
        for image in itertools.cycle(images):
            asked.append(image)
            yield image

    results = predictor(endless())
    for n in range(1, 41):
        next(results)
        # The batch of the current results, the next one, computed, and two that are being read.
        assert len(asked) <= n + 4 * predictor.batch_size
    results.close()

    assert reading_threads() == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, GeneratorExit, ValueError])
def test_threads_end_with_an_exception_in_the_iterator(predictor, images, error):
    results = predictor(itertools.cycle(images))
    next(results)
    assert reading_threads()
    with pytest.raises(error):
        results.throw(error)
    assert reading_threads() == []


def test_threads_end_when_the_iterator_is_deleted(predictor, images):
    for prediction in predictor(itertools.cycle(images)):
        assert prediction.classes
        break
    assert reading_threads() == []


def test_an_error_of_the_callers_iterator_is_raised(predictor, images):
    def faulty():
        yield from images[:2]
        raise LookupError("no more")

    with pytest.raises(LookupError, match="no more"):
        list(predictor(faulty()))
    assert reading_threads() == []


def test_images_are_read_while_the_network_computes(home, images, monkeypatch):
    predictor = Predictor(home / "openvino", batch_size=2)
    real, ready, waited = predictor._session, threading.Semaphore(0), []
    read = predictor._input

    def counted(*args):
        ready.release()
        return read(*args)

    def slow(images):
        """Goes on once all images of the first two batches were asked for."""
        if not waited:
            waited.append(all(ready.acquire(timeout=10) for _ in range(4)))
        return real(images)

    monkeypatch.setattr(predictor, "_input", counted)
    monkeypatch.setattr(predictor, "_session", slow)
    assert len(list(predictor(images))) == 10
    assert waited == [True]


def test_the_network_computes_while_the_caller_uses_results(home, images, monkeypatch):
    predictor = Predictor(home / "openvino", batch_size=2)
    real, batches = predictor._session, threading.Semaphore(0)

    def counted(images):
        batches.release()
        return real(images)

    monkeypatch.setattr(predictor, "_session", counted)
    results = predictor(images)
    next(results)
    assert all(batches.acquire(timeout=10) for _ in range(2))  # the second, before it is asked for
    results.close()


def test_a_predictor_is_thread_safe(predictor, images):
    list(predictor(images))  # OpenVINO compiles a shape as it comes again, and rounds otherwise
    list(predictor(images))
    alone = [p.classes for p in predictor(images)]
    result = {}

    def work(i):
        result[i] = [p.classes for p in predictor(images)]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [result[i] for i in range(3)] == [alone] * 3


def test_logits_that_are_not_finite_are_an_error_of_the_image(predictor, images, monkeypatch):
    def session(images):
        logits = np.zeros((len(images), 4), np.float32)
        logits[0, 1] = np.nan
        return logits

    monkeypatch.setattr(predictor, "_session", session)
    first, second = predictor(images[:2])
    assert "logits are not finite" in first.error
    assert second.classes[0][1] == 0.25


def test_an_image_from_stdin_is_named_so(predictor, images):
    path = images[0]
    result = list(predictor(["-", path], stdin=io.BytesIO(path.read_bytes())))
    assert result[0].classes == result[1].classes
    assert result[0].image == "-"
    (empty,) = predictor(["-"], stdin=io.BytesIO())
    assert empty.error.startswith("the standard input is empty")
    (file,) = predictor(["-"])
    assert "No such file" in file.error


@pytest.mark.parametrize(("source", "options", "message"), [
    ("openvino", {"backend": "onnxruntime"}, "was exported for openvino"),
    ("openvino", {"backend": "eager"}, "backend='eager' cannot change"),
    ("openvino", {"precision": "bf16"}, "precision='bf16' cannot change"),
    ("openvino", {"device": "cuda"}, "device='cuda' cannot change"),
    ("openvino", {"act": "gelu"}, "act='gelu' cannot change"),
    ("trained", {"precision": "int8"}, "cvt export --precision int8"),
    ("trained", {"backend": "onnxruntime", "device": "meta"}, "runs on the CPU only"),
    ("trained", {"backend": "openvin"}, "did you mean openvino"),
    ("trained", {"precision": "fp64"}, "choose from fp32"),
    ("trained", {"device": "abacus"}, "abacus"),
    ("openvino", {"batch_size": 0}, "batch_size=0 must be at least 1"),
    ("onnx", {"threads": 0}, "threads=0 must be at least 1"),
    ("nowhere", {}, "nowhere"),
])
def test_invalid_arguments_are_an_error_before_any_image(home, source, options, message):
    with pytest.raises(InputError, match=message):
        Predictor(home / source, **options)


def test_a_wrong_call_is_an_error_at_once(predictor, images):
    with pytest.raises(InputError, match="top_k=0"):
        predictor(images, top_k=0)
    with pytest.raises(InputError, match="one image; give a list"):
        predictor(str(images[0]))


@pytest.mark.parametrize("source", ["trained", "openvino", "onnx"])
@pytest.mark.parametrize(("shape", "message"), [
    ((3, 24, 24), "not a batch for this network"), ((0, 3, 24, 24), "not a batch"),
    ((2, 1, 24, 24), r"takes \(B, 3, H, W\)"), ((2, 3, 24, 2), "at least 3 pixels")])
def test_a_batch_of_another_shape_is_an_error(home, source, shape, message):
    with pytest.raises(InputError, match=message):
        Predictor(home / source).logits(np.zeros(shape, np.float32))


@pytest.mark.parametrize("source", ["trained", "openvino", "onnx"])
def test_a_batch_may_be_of_float64_a_view_and_read_only(home, source):
    batch = np.random.default_rng(0).standard_normal((4, 24, 24, 3)).transpose(0, 3, 1, 2)[::2]
    batch.flags.writeable = False
    predictor = Predictor(home / source)
    plain = np.ascontiguousarray(batch, np.float32)
    assert np.allclose(predictor.logits(batch), predictor.logits(plain), atol=1e-6)


@pytest.mark.parametrize("content", [b"", b"<?xml?>"])
def test_a_corrupt_export_is_detected_by_its_checksum(home, tmp_path, content):
    for file in (home / "openvino").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "model.xml").write_bytes(content)
    with pytest.raises(InputError, match=r"model\.xml is corrupt or was edited"):
        Predictor(tmp_path)


NO_TORCH = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchvision", "timm", "sklearn"):
            raise ImportError(name + " was asked for")
sys.meta_path.insert(0, Blocker())
from cvt.cli import main
code = main(sys.argv[1:])
assert "torch" not in sys.modules
sys.exit(code)
"""


@pytest.mark.parametrize("source", ["openvino", "onnx"])
def test_an_exported_model_classifies_without_torch(home, source):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", NO_TORCH, "predict", str(home / "images"),
         "--model", str(home / source), "--json"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 10
    assert done.stderr.startswith("10 images, ")
    assert done.stderr.count("\n") == 1


def test_the_throughput_is_printed_only_after_several_images(home, images, capsys):
    model = ["--model", str(home / "onnx")]
    assert main(["predict", str(home / "images"), *model]) == 0
    out, err = capsys.readouterr()
    assert "probability" in out
    assert err.startswith("10 images, ")
    assert err.endswith(" img/s\n")
    assert main(["predict", str(images[0]), *model, "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["image"] == str(images[0])
    assert err == ""


def test_names_cannot_control_the_terminal(home, images, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    hostile = tmp_path / "\x1b[2J[bold].png"
    shutil.copy(images[0], hostile)
    (tmp_path / "\x1b]0;owned\x07.jpg").write_bytes(b"no image")
    assert main(["predict", ".", "--model", str(home / "onnx")]) == 1
    out, err = capsys.readouterr()
    assert "\x1b" not in out + err
    assert "\\x1b[2J[bold].png" in out
    assert "\\x1b]0;owned\\x07.jpg is not an image" in err


def test_progress_is_printed_only_on_terminals(home, monkeypatch, capsys):
    monkeypatch.setattr("cvt.cli.predict._EVERY", 0)
    args = ["predict", str(home / "images"), "--model", str(home / "onnx"), "--batch_size", "2"]
    assert main([*args, "--json"]) == 0
    assert "of 10 images" not in capsys.readouterr().err
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert main([*args, "--json"]) == 0
    out, err = capsys.readouterr()
    assert "\r\x1b[K3 of 10 images, " in err
    assert err.split("\r\x1b[K")[-1].startswith("10 images, ")
    assert len([json.loads(line) for line in out.splitlines()]) == 10


@pytest.mark.parametrize(("options", "code", "message"), [
    (["--backend", "onnxruntime"], 1, "was exported for openvino"),
    (["--precision", "int8"], 1, "precision='int8' cannot change"),
    (["--act", "gelu"], 1, "act='gelu' cannot change"),
    (["--backend", "tflite"], 2, "tflite"),
])
def test_options_that_an_exported_model_does_not_support_are_an_error(
        home, images, options, code, message, capsys):
    assert main(["predict", str(images[0]), "--model", str(home / "openvino"), *options]) == code
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.skipif(os.name == "nt", reason="no SIGINT to send")
def test_ctrl_c_ends_a_long_run_quickly(home, images):
    # What runs in the background of a shell inherits that SIGINT is ignored.
    code = ("import itertools, signal, sys, cvt.cli, cvt.predict.predictor\n"
            "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
            "cvt.predict.predictor.find_images = lambda names, **_: names * 1_000_000\n"
            "sys.exit(cvt.cli.main(sys.argv[1:]))")
    process = subprocess.Popen(
        [sys.executable, "-c", code, "predict", str(images[0]), "--model", str(home / "onnx"),
         "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.readline()
    start = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=90)
    assert process.returncode == 130
    assert error == "cvt predict: interrupted\n"
    assert time.monotonic() - start < 10


def test_names_are_files_folders_and_patterns(home, images, tmp_path):
    folder = home / "images"
    assert find_images([str(folder)]) == [str(p) for p in images]
    assert find_images([f"{folder}/[0-2].png", "-", "gone.png"]) == [
        *(str(p) for p in images[:3]), "-", "gone.png"]
    with pytest.raises(InputError, match="has no images"):
        find_images([str(tmp_path)])
    with pytest.raises(InputError, match="no file matches"):
        find_images([str(folder / "*.gif")])


def test_what_is_no_image_is_left_out_and_counted(images, tmp_path):
    for name in ("day/1.png", "day/1.svg", "day/.DS_Store", "day/sub/2.png", "a.png", "Thumbs.db"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(images[0].read_bytes())
    expected = [str(tmp_path / name) for name in ("a.png", "day/1.png", "day/sub/2.png")]
    for pattern in ("", "*"):
        left_out = LeftOut()
        assert find_images([str(tmp_path / pattern)], left_out=left_out) == expected
        assert ".svg" in str(left_out)
        assert "hidden or system files" in str(left_out)
    (tmp_path / "a.zip").touch()
    with pytest.raises(InputError, match=r"a\.zip is a compressed archive; unpack it"):
        find_images([str(tmp_path / "a.zip")])
    (tmp_path / "only").mkdir()
    (tmp_path / "only/1.svg").touch()
    with pytest.raises(InputError, match=r"has no images or \.tar archives .* left out: 1 \.svg"):
        find_images([str(tmp_path / "only")])


def test_an_export_in_the_format_torch_is_opened_only_if_trusted(
        home, tmp_path, capsys):
    export(home / "trained", tmp_path / "torch", "torch")
    image = str(home / "images" / "0.png")
    with pytest.raises(InputError, match="can run code"):
        Predictor(tmp_path / "torch")
    assert main(["predict", image, "--model", str(tmp_path / "torch")]) == 1
    assert "can run code" in capsys.readouterr().err

    (got,), (expected,) = (list(Predictor(tmp_path / "torch", trusted=True)([image])),
                           list(Predictor(home / "trained")([image])))
    assert [name for name, _ in got.classes] == [name for name, _ in expected.classes]
    assert main(["predict", image, "--model", str(tmp_path / "torch"), "--trusted"]) == 0
