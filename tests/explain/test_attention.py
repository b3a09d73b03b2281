import dataclasses

import pytest
import torch

from cvt.config import CvTConfig, StageConfig
from cvt.explain.attention import Attention, attention_weights, forward_attention, rollout
from cvt.model import CvT, split

LAST = StageConfig(dim=12, num_heads=3, depth=3, cls_token=True)
KINDS = {
    "stride 2": {}, "stride 1": {"stride_kv": 1}, "stride 3, kernel 5": {
        "kernel": 5, "stride_kv": 3, "padding_kv": 2},
    "averages": {"projection": "avg"}, "linear": {"projection": "linear", "stride_kv": 1},
    "strides differ": {"stride_kv": (1, 2, 1)}}


def network(**last):
    torch.manual_seed(0)
    first = StageConfig(dim=8, num_heads=1, depth=1)
    return CvT(CvTConfig(stages=(first, dataclasses.replace(LAST, **last)), num_classes=4,
                         image_size=28)).eval()


IMAGES = torch.rand(2, 3, 28, 36, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_those_of_the_fused_operator(kind):
    model = network(**KINDS[kind])
    attn = model.stages[-1].blocks[1].attn
    x, grid = torch.randn(2, 1 + 7 * 9, 12), (7, 9)
    weights = attention_weights(attn, x, grid)
    v = attn.v(*split(x, grid, True)).unflatten(2, (3, -1)).transpose(1, 2)
    assert torch.allclose(attn.proj((weights @ v).transpose(1, 2).flatten(2)), attn(x, grid),
                          atol=1e-6)
    assert torch.allclose(weights.sum(-1), torch.ones(2, 3, 64), atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_one_pass_gives_logits_maps_and_the_attention_of_each_block(kind):
    model = network(**KINDS[kind])
    logits, maps, attention = forward_attention(model, IMAGES)
    with torch.no_grad():
        assert torch.equal(logits, model(IMAGES))
    assert [tuple(m.shape) for m in maps] == [(2, 8, 14, 18), (2, 12, 7, 9)]
    assert attention.grid == (7, 9)
    maps_of_keys = attention.cls_token_maps()
    grids = [model.config.stages[-1].block(i).grids_kv((7, 9))[0] for i in range(3)]
    assert [tuple(m.shape) for m in maps_of_keys] == [(2, 3, *grid) for grid in grids]
    assert all(torch.equal(m.flatten(2), w[:, :, 0, 1:])
               for m, w in zip(maps_of_keys, attention.weights, strict=True))
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_without_a_class_token_there_is_no_attention():
    logits, maps, attention = forward_attention(network(cls_token=False), IMAGES)
    assert (tuple(logits.shape), len(maps), attention) == ((2, 4), 2, None)


@pytest.mark.parametrize("kind", KINDS)
def test_rollout_shares_the_attention_to_a_key_among_the_tokens_under_its_kernel(kind):
    """One block that attends to a single key: only tokens under its kernel have a share."""
    config = dataclasses.replace(LAST, **KINDS[kind]).block(1)
    grid = (6, 5)
    (keys,) = config.grids_kv(grid)
    count = keys[0] * keys[1]
    key = count // 2
    weights = torch.zeros(1, 1, 31, 1 + count)
    weights[..., 1 + key] = 1
    got = rollout(Attention(weights=(weights,), grid=grid, key_grids=(keys,)), config)[0]
    block = network(**KINDS[kind]).stages[-1].blocks[1].attn.k.eval()
    seen = torch.zeros(grid, dtype=torch.bool)
    base = torch.zeros(1, 12, *grid)
    with torch.no_grad():
        quiet = block(None, base)[0, key]
        for i in range(grid[0]):
            for j in range(grid[1]):
                base[0, :, i, j] = 1
                seen[i, j] = not torch.allclose(block(None, base)[0, key], quiet)
                base[0, :, i, j] = 0
    assert torch.equal(got > 0, seen)
    assert got.sum().item() == pytest.approx(0.5)  # the other half is the class token's own


def test_rollout_is_the_product_of_all_blocks():
    """Where a key is a token, it is the formula of Abnar and Zuidema."""
    model = network(projection="linear", stride_kv=1)
    _, _, attention = forward_attention(model, IMAGES)
    total = torch.eye(64)
    for weights in attention.weights:
        total = 0.5 * (weights.mean(1) + torch.eye(64)) @ total
    got = rollout(attention, model.config.stages[-1])
    assert torch.allclose(got.flatten(1), total[:, 0, 1:], atol=1e-6)
    assert torch.allclose(got.sum((1, 2)), 1 - total[:, 0, 0], atol=1e-6)
