import numpy as np
import pytest
import torch
from PIL import Image

from cvt.config import CvTConfig, Preprocess, StageConfig
from cvt.data.config import DataConfig
from cvt.data.preprocess import prepare
from cvt.deploy.export import export
from cvt.deploy.graphs import open_graph
from cvt.deploy.manifest import Manifest
from cvt.model import CvT
from cvt.system.errors import InputError
from cvt.weights.models import load_model, save_model

pytestmark = pytest.mark.slow

CLASSES = ("ant", "bee", "cat")
STAGE = {"dim": 8, "num_heads": 2, "depth": 1, "embed_kernel": 7, "embed_stride": 4,
         "embed_padding": 2, "cls_token": True}


@pytest.fixture
def source(tmp_path, shaken):
    """A model of one stage, in a directory of its own."""
    return saved(tmp_path / "source", shaken)


def saved(directory, shaken, classes=CLASSES, **fields):
    stage = StageConfig(**{**STAGE, **fields})
    model = shaken(CvT(CvTConfig(stages=(stage,), num_classes=len(classes), image_size=64)))
    save_model(directory, model, Preprocess(size=64), classes)
    return directory


@pytest.fixture
def images(tmp_path):
    """A folder of ten images."""
    (tmp_path / "images").mkdir()
    rng = np.random.default_rng(0)
    for i in range(10):
        pixels = rng.integers(0, 256, (70, 80, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{i}.png")
    return tmp_path / "images"


@pytest.fixture
def labelled(tmp_path, source, images):
    """The same, sorted by what the model calls them, and one of each other class beside."""
    for half in ("train", "val"):
        for name in CLASSES:
            (tmp_path / "sorted" / half / name).mkdir(parents=True)
    network, card = load_model(source)
    for path in images.iterdir():
        image = Image.open(path)
        pixels = prepare(card.preprocess, image)
        name = CLASSES[int(network(torch.from_numpy(pixels)[None]).argmax())]
        image.save(tmp_path / "sorted/val" / name / path.name)
        for other in CLASSES:
            image.save(tmp_path / "sorted/train" / other / path.name)
    return DataConfig(name="folder", root=str(tmp_path / "sorted"))


def contents(directory):
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))


def graph_is(monkeypatch, source, change):
    """Let every graph that is written compute `change` of the logits."""
    network, _ = load_model(source)
    monkeypatch.setattr("cvt.deploy.export._write_graph", lambda path, *_: path.write_text("graph"))
    monkeypatch.setattr("cvt.deploy.export.open_graph",
                        lambda *_: lambda images: change(network(images)))


@pytest.mark.parametrize(("to", "files"), [
    ("onnx", {"model.onnx"}), ("openvino", {"model.xml", "model.bin"}), ("torch", {"model.pt2"})])
def test_what_is_written_is_the_model_and_says_how_near(tmp_path, source, to, files):
    manifest = export(source, tmp_path / "out" / "x", to)

    network, card = load_model(source)
    assert manifest == Manifest.load(tmp_path / "out/x")
    assert (manifest.format, manifest.precision, manifest.card) == (to, "fp32", card)
    assert set(manifest.hashes) == files
    assert contents(tmp_path / "out" / "x") == sorted(["manifest.json", *files])
    assert contents(tmp_path / "out")[0] == "x"  # no temporary directory beside it
    assert manifest.parity["difference"] < 2e-6
    assert manifest.parity["agreement"] == 1
    assert (manifest.parity["images"], manifest.parity["noise"]) == (0, 8)
    assert {"cvt-torch", "torch"} <= set(manifest.versions)
    images = torch.randn(5, 3, 96, 64)
    with torch.inference_mode():
        want = network(images)
    got = open_graph(tmp_path / "out/x" / manifest.graph, to, "fp32")(images)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def test_an_edited_graph_is_rejected(tmp_path, source):
    export(source, tmp_path / "x", "openvino")
    path = tmp_path / "x/model.bin"
    path.write_bytes(path.read_bytes()[:-4] + bytes(4))

    with pytest.raises(InputError, match=r"model\.bin is corrupt or was edited"):
        Manifest.load(tmp_path / "x")


@pytest.mark.parametrize("to", ["onnx", "openvino"])
def test_int8_is_calibrated_on_images_and_stays_near(tmp_path, source, images, to):
    manifest = export(source, tmp_path / "x", to, "int8", images=[images / "0.png", images])

    assert (manifest.parity["images"], manifest.parity["calibrated"]) == (11, 11)
    assert 1e-4 < manifest.parity["difference"] < 0.2
    assert manifest.parity["agreement"] >= 0.7
    graph = (tmp_path / "x" / manifest.graph).read_bytes()
    assert b"QuantizeLinear" in graph or b"FakeQuantize" in graph
    assert contents(tmp_path / "x") == sorted([*manifest.hashes, "manifest.json"])


def test_accuracy_is_measured_before_and_after(tmp_path, source, labelled):
    manifest = export(source, tmp_path / "x", "openvino", "int8", data=labelled, max_drop=100)

    assert manifest.parity["accuracy_before"] == 100
    assert manifest.parity["accuracy_after"] == pytest.approx(100 * manifest.parity["agreement"])
    assert (manifest.parity["labelled"], manifest.parity["calibrated"]) == (10, 30)


def test_a_graph_that_loses_too_much_is_rejected_and_leaves_nothing(tmp_path, source, labelled,
                                                                   monkeypatch):
    graph_is(monkeypatch, source, lambda logits: -logits)
    before = contents(tmp_path)

    with pytest.raises(InputError, match=r"bf16 loses 100\.00 points .*max_drop=1\.0"):
        export(source, tmp_path / "x", "openvino", "bf16", data=labelled)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(("change", "message"), [
    (lambda logits: logits * 1.001, "differ from the PyTorch model's by 1"),
    (lambda logits: logits / 0, "not finite"), (lambda logits: logits * torch.nan, "not finite")])
def test_a_wrong_graph_is_rejected_and_leaves_nothing(tmp_path, source, monkeypatch, change,
                                                     message):
    graph_is(monkeypatch, source, change)
    before = contents(tmp_path)

    with pytest.raises(InputError, match=message):
        export(source, tmp_path / "x", "openvino")
    assert contents(tmp_path) == before


def test_weights_that_are_no_numbers_are_rejected(tmp_path, source):
    network, card = load_model(source)
    with torch.no_grad():
        network.head.weight[0] = torch.nan
    save_model(tmp_path / "broken", network, card.preprocess, CLASSES)

    with pytest.raises(InputError, match="not finite"):
        export(tmp_path / "broken", tmp_path / "x", "openvino")
    assert not (tmp_path / "x").exists()


def test_average_pooling_that_openvino_computes_otherwise_is_not_written(tmp_path, shaken):
    """It divides by the whole window where the window leaves the padded map."""
    saved(tmp_path / "pooled", shaken, projection="avg")

    with pytest.raises(InputError, match="differ from the PyTorch model's"):
        export(tmp_path / "pooled", tmp_path / "x", "openvino")
    assert contents(tmp_path)[:1] == ["pooled"]


def test_an_exported_model_is_replaced_only_when_asked(tmp_path, source, images):
    export(source, tmp_path / "x", "openvino", images=[images])

    with pytest.raises(InputError, match="exists already; give another directory, or --overwrite"):
        export(source, tmp_path / "x", "openvino")
    assert Manifest.load(tmp_path / "x").parity["images"] == 10
    export(source, tmp_path / "x", "openvino", "bf16", overwrite=True)

    assert Manifest.load(tmp_path / "x").precision == "bf16"
    assert contents(tmp_path / "x") == ["manifest.json", "model.bin", "model.xml"]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_another_directory_is_never_replaced(tmp_path, source):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(source)
    before = contents(tmp_path)

    with pytest.raises(InputError, match=r"has no manifest\.json, so it is not an exported model"):
        export(source, source, "openvino", overwrite=True)
    for name in ("file", "link"):
        with pytest.raises(InputError, match="is not a directory"):
            export(source, tmp_path / name, "openvino", overwrite=True)
    assert contents(tmp_path) == before


def test_what_cannot_be_calibrated_on_is_rejected(tmp_path, source, images):
    (tmp_path / "empty").mkdir()
    broken = tmp_path / "broken.png"
    broken.write_bytes((images / "0.png").read_bytes()[:100])
    few = [images / f"{i}.png" for i in range(7)]
    before = contents(tmp_path)

    for calibration, message in [
            (None, "int8 needs calibration images"),
            (few, "int8 needs at least 8 images for calibration, got 7"),
            ([tmp_path / "empty"], "empty has no images in it or below it"),
            ([images, broken], r"broken\.png is corrupt or truncated"),
            ([images, tmp_path / "nowhere.png"], r"nowhere\.png: No such file")]:
        with pytest.raises(InputError, match=message):
            export(source, tmp_path / "x", "openvino", "int8", images=calibration)
    assert contents(tmp_path) == before


def test_other_bad_input_is_rejected(tmp_path, source, labelled, shaken):
    saved(tmp_path / "headless", shaken, classes=())
    saved(tmp_path / "others", shaken, classes=("ant", "bee"))
    before = contents(tmp_path)

    for model, to, precision, fields, message in [
            (source, "onnx", "bf16", {}, "--to onnx has no bf16; it has fp32, int8"),
            (source, "openvino", "fp32", {"max_drop": -1.0}, r"max_drop=-1\.0 must be in"),
            (tmp_path / "headless", "openvino", "fp32", {}, "has no classifier"),
            (tmp_path / "others", "openvino", "fp32", {"data": labelled}, "the class 'cat'"),
            (tmp_path / "nowhere", "openvino", "fp32", {}, "no model at")]:
        with pytest.raises(InputError, match=message):
            export(model, tmp_path / "x", to, precision, **fields)
    assert contents(tmp_path) == before
