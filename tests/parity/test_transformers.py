"""Agreement with the port in transformers, which computes GELU where the official code does not."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    CvtConfig,
    CvtForImageClassification,
    CvtModel,
    pipeline,
)
from transformers.utils import logging

from cvt.config import CvTConfig, Preprocess, StageConfig
from cvt.data.images import read_image
from cvt.data.preprocess import prepare
from cvt.model import CvT, QuickGELU
from cvt.weights.convert import convert
from cvt.weights.models import load_model, save_model

pytestmark = pytest.mark.slow

CLASSES = ("cat", "dog", "cow")
logging.disable_progress_bar()


def port_config(**changes):
    return CvtConfig(embed_dim=[16, 32, 48], num_heads=[1, 2, 3], depth=[1, 2, 3],
                     id2label=dict(enumerate(CLASSES)), **changes)


@pytest.fixture
def port(shaken):
    """A small network of transformers; it needs three blocks in the last stage."""
    return shaken(CvtForImageClassification(port_config())).eval()


@pytest.fixture
def ours(shaken):
    """The same network, of ours."""
    embeds = ((7, 4, 2), (3, 2, 1), (3, 2, 1))
    return shaken(CvT(CvTConfig(num_classes=3, image_size=64, stages=tuple(
        StageConfig(dim=16 * (i + 1), num_heads=i + 1, depth=i + 1, embed_kernel=embed[0],
                    embed_stride=embed[1], embed_padding=embed[2], cls_token=i == 2)
        for i, embed in enumerate(embeds))))).eval()


def assert_close(logits, expected):
    """Within 2e-5 of the largest logit."""
    assert (logits - expected).abs().max() <= 2e-5 * expected.abs().max()


@pytest.mark.parametrize("size", [(64, 64), (75, 53)])
@pytest.mark.parametrize("changes", [
    {}, {"num_channels": 1}, {"kernel_qkv": [3, 5, 3], "padding_q": [1, 2, 1],
                              "padding_kv": [1, 2, 1]},
    {"stride_kv": [1, 2, 1]}, {"qkv_bias": [False, True, False]}, {"mlp_ratio": [2.0, 4.0, 3.0]}])
def test_a_saved_port_computes_here_what_it_computes_there(tmp_path, shaken, changes, size):
    port = shaken(CvtForImageClassification(port_config(**changes))).eval()
    port.save_pretrained(tmp_path)
    x = torch.randn(2, changes.get("num_channels", 3), *size)

    model, card = load_model(tmp_path)

    with torch.no_grad():
        assert_close(model(x), port(x).logits)
    assert card.classes == CLASSES
    assert model.config.act == "gelu"



@pytest.mark.parametrize("save", ["safetensors", "bin", "shards"])
def test_every_way_of_saving_is_read(tmp_path, port, save):
    port.save_pretrained(tmp_path, max_shard_size="200KB" if save == "shards" else "1GB")
    if save == "bin":
        (tmp_path / "model.safetensors").unlink()
        torch.save(port.state_dict(), tmp_path / "pytorch_model.bin")
    x = torch.randn(1, 3, 64, 64)

    model, _ = load_model(tmp_path)

    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (save == "shards")
    with torch.no_grad():
        assert_close(model(x), port(x).logits)


def test_a_port_without_a_classifier_is_a_model_without_one(tmp_path, shaken):
    port = shaken(CvtModel(port_config())).eval()
    port.save_pretrained(tmp_path)
    x = torch.randn(1, 3, 64, 64)

    model, card = load_model(tmp_path)

    with torch.no_grad():
        expected = nn.functional.layer_norm(port(x).cls_token_value[:, 0], (48,))
        assert_close(model(x), expected)
    assert card.classes == ()
    assert "no final norm" in str(model.load_report)


def test_official_weights_with_their_own_activation_differ_from_the_port(tmp_path, port):
    """As microsoft's repositories do, in the port's names."""
    port.save_pretrained(tmp_path)
    x = torch.randn(2, 3, 64, 64)

    gelu, quick = load_model(tmp_path)[0], load_model(tmp_path, act="quick_gelu")[0]

    with torch.no_grad():
        assert (quick(x) - gelu(x)).abs().max() > 1e-3
        for module in port.modules():
            if hasattr(module, "activation"):
                module.activation = QuickGELU()
        assert_close(quick(x), port(x).logits)


@pytest.mark.parametrize("act", ["gelu", "quick_gelu"])
def test_what_is_written_for_transformers_is_loaded_by_it(tmp_path, ours, act):
    model = CvT(dataclasses.replace(ours.config, act=act)).eval()
    model.load_state_dict(ours.state_dict())
    preprocess = Preprocess(size=64, crop=0.9)
    save_model(tmp_path / "ours", model, preprocess, CLASSES)

    done = convert(tmp_path / "ours", tmp_path / "theirs", "huggingface")

    port = AutoModelForImageClassification.from_pretrained(tmp_path / "theirs")
    assert port.config.id2label == dict(enumerate(CLASSES))
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        difference = (port(x).logits - model(x)).abs().max()
    if act == "gelu":
        assert_close(port(x).logits, model(x))
        assert done.notes == ()
    else:
        assert difference > 1e-3
        assert "transformers will compute GELU" in done.notes[0]
    for name, tensor in load_model(tmp_path / "theirs")[0].state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name])


@pytest.mark.parametrize("preprocess", [
    Preprocess(size=64, crop=0.875), Preprocess(size=64, crop=1.0, mode="squash"),
    Preprocess(size=384, crop=1.0, mode="squash"), Preprocess(size=400, crop=0.9),
    Preprocess(size=64, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), interpolation="bilinear")])
def test_images_reach_the_port_as_they_reach_us(tmp_path, ours, preprocess):
    save_model(tmp_path / "ours", ours, preprocess, CLASSES)
    convert(tmp_path / "ours", tmp_path / "theirs", "huggingface")
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)).resize((500, 430))

    processor = AutoImageProcessor.from_pretrained(tmp_path / "theirs")
    theirs = processor(smooth, return_tensors="pt")["pixel_values"][0]

    expected = prepare(preprocess, smooth)
    assert theirs.shape == expected.shape
    # The port resizes tensors, we resize images: both antialiased, rounded at another point.
    assert np.abs(theirs.numpy() - expected).mean() < 0.01


def test_the_pipeline_of_transformers_names_our_classes(tmp_path, ours):
    model = CvT(dataclasses.replace(ours.config, act="gelu")).eval()
    model.load_state_dict(ours.state_dict())
    preprocess = Preprocess(size=64)
    save_model(tmp_path / "ours", model, preprocess, CLASSES)
    convert(tmp_path / "ours", tmp_path / "theirs", "huggingface")
    Image.new("RGB", (90, 80), (200, 30, 90)).save(tmp_path / "x.png")

    classify = pipeline("image-classification", str(tmp_path / "theirs"))
    scores = {row["label"]: row["score"] for row in classify(str(tmp_path / "x.png"))}

    with torch.no_grad():
        x = torch.from_numpy(prepare(preprocess, read_image(tmp_path / "x.png")))[None]
        probabilities = nn.functional.softmax(model(x), 1)[0]
    expected = dict(zip(CLASSES, probabilities.tolist(), strict=True))
    assert scores == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("size", [(224, 224), (160, 256)])
def test_official_files_of_full_size_give_the_official_logits(tmp_path, shaken, size):
    """CvT-13; the port with QuickGELU is the reference, as it is equal to the official code."""
    port = shaken(CvtForImageClassification(CvtConfig(num_labels=1000))).eval()
    for module in port.modules():
        if hasattr(module, "activation"):
            module.activation = QuickGELU()
    port.save_pretrained(tmp_path / "port")
    convert(tmp_path / "port", tmp_path / "CvT-13-224x224-IN-1k.pth", "official", act="quick_gelu")
    x = torch.randn(1, 3, *size)

    model, card = load_model(tmp_path / "CvT-13-224x224-IN-1k.pth")

    with torch.no_grad():
        assert_close(model(x), port(x).logits)
    assert card.classes[207] == "golden retriever"
    assert card.preprocess == Preprocess(size=224, crop=0.875)
