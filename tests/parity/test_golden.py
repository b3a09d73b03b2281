"""Agreement with the official code, from tensors that it produced.

`tests/golden/` holds, for nine small configurations, the official weights, an input, what every
stage and the network made of it and, for two of them, one training step.
"""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml
from safetensors.torch import load_file, save_file

from cvt.config import CvTConfig, StageConfig
from cvt.model import CvT
from cvt.weights.load import load_weights
from cvt.weights.names import TO_NATIVE, detect_naming, rename
from cvt.weights.official import from_official_yaml

GOLDEN = Path(__file__).parent.parent / "golden"
CASES = json.loads((GOLDEN / "cases.json").read_text())
EMBEDS = ((7, 4, 2), (3, 2, 1), (3, 2, 1))  # kernel, stride, padding
EXACT = {"rtol": 0, "atol": 1e-5}
STEP = {"rtol": 1e-4, "atol": 1e-6}


def golden(name):
    """The case's official weights, and all its other tensors."""
    tensors = load_file(GOLDEN / f"{name}.safetensors")
    weights = under("weights/", tensors)
    return weights, {k: t for k, t in tensors.items() if not k.startswith("weights/")}


def under(prefix, tensors):
    return {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}


def renamed(tensors):
    """`tensors` under our names."""
    return {rename(name, TO_NATIVE["official"]): tensor for name, tensor in tensors.items()}


def official_config(name, directory):
    """The case's configuration, read from an official experiment file."""
    path = directory / "experiment.yaml"
    path.write_text(yaml.safe_dump({"MODEL": {"SPEC": CASES[name]["spec"], "NUM_CLASSES": 10}}))
    return from_official_yaml(path)


def official_model(config, weights, directory, suffix=".safetensors"):
    """A model of `config` with official weights, read from an official checkpoint."""
    path = directory / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file(weights, path)
    else:
        torch.save(weights, path)
    model = CvT(config)
    assert load_weights(model, path).format == "official"
    return model


def hand_made(depths=(1, 1, 2), every=None, last=None):
    dims, last = (16, 32, 48), {"cls_token": True, "drop_path_rate": 0.1, **(last or {})}
    return CvTConfig(num_classes=10, stages=tuple(
        StageConfig(**{"dim": dims[i], "num_heads": i + 1, "depth": depth,
                       "embed_kernel": EMBEDS[i][0], "embed_stride": EMBEDS[i][1],
                       "embed_padding": EMBEDS[i][2],
                       **(last if i == len(depths) - 1 else {}), **(every or {})})
        for i, depth in enumerate(depths)))


HAND_MADE = {
    "base": hand_made(),
    "odd_size": hand_made(),
    "no_cls": hand_made(last={"cls_token": False}),
    "cls_every_stage": hand_made(every={"cls_token": True}),
    "kv_stride_1": hand_made(every={"stride_kv": 1}),
    "avg_projection": hand_made(every={"projection": "avg"}),
    "no_qkv_bias": hand_made(every={"qkv_bias": False}),
    "kernel_5": hand_made(every={"kernel": 5, "padding_kv": 2}),
    "two_stages": hand_made(depths=(1, 2), last={"mlp_ratio": 2.0, "drop_path_rate": 0.0}),
}


@pytest.mark.parametrize("name", CASES)
def test_the_official_file_and_a_hand_made_config_are_equal(tmp_path, name):
    assert official_config(name, tmp_path) == HAND_MADE[name]


@pytest.mark.parametrize(("name", "suffix"), [
    *((name, ".safetensors") for name in CASES), ("base", ".pth")])
def test_logits_and_stage_maps_are_those_of_the_official_code(tmp_path, name, suffix):
    weights, expected = golden(name)
    model = official_model(official_config(name, tmp_path), weights, tmp_path, suffix).eval()

    with torch.no_grad():
        logits = model(expected["input"])
        _, pairs = model.forward_intermediates(expected["input"], return_prefix_tokens=True)

    torch.testing.assert_close(logits, expected["logits"], **EXACT)
    for i, (fmap, cls) in enumerate(pairs):
        torch.testing.assert_close(fmap, expected[f"stage{i}"], **EXACT)
        assert (cls is None) == (f"stage{i}_cls" not in expected)
        if cls is not None:
            torch.testing.assert_close(cls, expected[f"stage{i}_cls"], **EXACT)


@pytest.mark.parametrize("name", ["base", "no_cls"])
def test_a_training_step_is_that_of_the_official_code(tmp_path, name):
    weights, expected = golden(name)
    config = official_config(name, tmp_path)
    config = dataclasses.replace(config, stages=tuple(
        dataclasses.replace(stage, drop_path_rate=0.0) for stage in config.stages))
    model = official_model(config, weights, tmp_path).train()

    logits = model(expected["input"])
    loss = F.cross_entropy(logits, expected["train/target"])
    loss.backward()

    torch.testing.assert_close(logits, expected["train/logits"], **STEP)
    torch.testing.assert_close(loss, expected["train/loss"].squeeze(), **STEP)
    gradients = {n: p.grad for n, p in model.named_parameters()}
    torch.testing.assert_close(gradients, renamed(under("train/grad/", expected)), **STEP)
    buffers = dict(model.named_buffers())
    torch.testing.assert_close(buffers, renamed(under("train/buffers/", expected)), **STEP)


def gelu(model):
    for block in (b for stage in model.stages for b in stage.blocks):
        block.mlp.act = torch.nn.GELU()


def head_scale(model):
    for block in (b for stage in model.stages for b in stage.blocks):
        block.attn.scale *= block.attn.num_heads**0.5


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("spoil", [gelu, head_scale])
def test_the_wrong_activation_or_scale_would_be_noticed(tmp_path, name, spoil):
    weights, expected = golden(name)
    model = official_model(official_config(name, tmp_path), weights, tmp_path).eval()
    spoil(model)

    with torch.no_grad():
        difference = (model(expected["input"]) - expected["logits"]).abs().max()

    assert difference > 1e-3


@pytest.mark.parametrize("name", CASES)
def test_official_names_and_ours_map_one_to_one(name):
    weights, _ = golden(name)
    own = CvT(HAND_MADE[name]).state_dict()

    assert renamed(weights).keys() == own.keys()
    assert len(weights) == len(own)
    assert detect_naming(weights) == "official"
    assert detect_naming(own) == "native"
