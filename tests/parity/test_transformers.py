"""Agreement with the port in transformers, which computes GELU where the official code does not."""

import re

import pytest
import torch
from transformers import CvtConfig, CvtForImageClassification

from cvt.config import CvTConfig, StageConfig
from cvt.model import CvT

# Names in transformers -> ours.
RENAME = [
    (r"^cvt\.encoder\.stages\.", "stages."),
    (r"\.embedding\.convolution_embeddings\.projection\.", ".embed.conv."),
    (r"\.embedding\.convolution_embeddings\.normalization\.", ".embed.norm."),
    (r"\.layers\.(\d+)\.", r".blocks.\1."),
    (r"\.attention\.attention\.convolution_projection_([qkv])\w+\.convolution_projection\.convolution",
     r".attn.\1.conv"),
    (r"\.attention\.attention\.convolution_projection_([qkv])\w+\.convolution_projection\.normaliz\w+",
     r".attn.\1.bn"),
    (r"\.attention\.attention\.projection_([qkv])\w+\.", r".attn.\1.linear."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"^layernorm\.", "norm."),
    (r"^classifier\.", "head."),
]


def ours(name):
    for pattern, replacement in RENAME:
        name = re.sub(pattern, replacement, name)
    return name


@pytest.fixture
def port(shaken):
    """A small network of transformers; it needs three blocks in the last stage."""
    return shaken(CvtForImageClassification(CvtConfig(
        embed_dim=[16, 32, 48], num_heads=[1, 2, 3], depth=[1, 2, 3], num_labels=10))).eval()


def config(act):
    embeds = ((7, 4, 2), (3, 2, 1), (3, 2, 1))
    return CvTConfig(num_classes=10, act=act, stages=tuple(
        StageConfig(dim=16 * (i + 1), num_heads=i + 1, depth=i + 1, embed_kernel=embed[0],
                    embed_stride=embed[1], embed_padding=embed[2], cls_token=i == 2)
        for i, embed in enumerate(embeds)))


def model_of(port, act):
    model = CvT(config(act)).eval()
    model.load_state_dict({ours(name): tensor for name, tensor in port.state_dict().items()})
    return model


@pytest.mark.parametrize("size", [(64, 64), (75, 53)])
def test_logits_with_gelu_are_those_of_transformers(port, size):
    x = torch.randn(2, 3, *size)

    with torch.no_grad():
        expected = port(x).logits
        logits = model_of(port, "gelu")(x)

    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)


def test_the_activation_of_the_official_code_would_be_noticed(port):
    x = torch.randn(2, 3, 64, 64)

    with torch.no_grad():
        difference = (model_of(port, "quick_gelu")(x) - port(x).logits).abs().max()

    assert difference > 1e-3
