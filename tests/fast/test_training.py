"""The training form against the model itself, in float64 where rounding cannot hide an error."""

import copy

import pytest
import torch
import torch.nn.functional as F

from cvt.fast.training import TrainingForm
from cvt.model import CvT
from cvt.train.config import OptimConfig
from cvt.train.optim import build_optimizer


def step(network, model, images, labels):
    torch.manual_seed(3)  # of stochastic depth
    loss = F.cross_entropy(network(images), labels)
    loss.backward()
    return loss, {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("changes", [
    {}, {"act": "gelu"}, {"last": {"cls_token": False}}, {"every": {"cls_token": True}},
    {"every": {"projection": "avg"}}, {"every": {"projection": "linear", "stride_kv": 1}},
    {"every": {"drop_path_rate": 0.5}}, {"every": {"pos_embed": True}}, {"depths": (1, 1, 1)},
    {"last": {"stride_kv": (1, 2), "mlp_ratio": (2.0, 4.0)}}])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_loss_gradients_and_statistics_are_the_models(tiny, shaken, changes, checkpointing):
    model = shaken(CvT(tiny(**changes))).double().train()
    twin = copy.deepcopy(model)
    twin.set_grad_checkpointing(checkpointing)
    images, labels = torch.randn(4, 3, 64, 64).double(), torch.tensor([0, 3, 9, 1])

    loss, gradients = step(model, model, images, labels)
    other_loss, other = step(TrainingForm(twin), twin, images, labels)

    torch.testing.assert_close(other_loss, loss)
    torch.testing.assert_close(other, gradients, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(dict(twin.named_buffers()), dict(model.named_buffers()),
                               check_dtype=False, rtol=1e-6, atol=1e-6)


def test_weights_without_use_decay_as_in_the_model(tiny_model):
    """The last query's convolution has a gradient of zero, and decays; it would not with none."""
    twin = copy.deepcopy(tiny_model.train())
    images, labels = torch.randn(2, 3, 64, 64), torch.tensor([1, 2])
    for network, model in ((tiny_model, tiny_model), (TrainingForm(twin), twin)):
        optimizer = build_optimizer(model, OptimConfig(lr=0.1, weight_decay=0.5))
        step(network, model, images, labels)
        optimizer.step()

    for model in (tiny_model, twin):
        conv = model.stages[2].blocks[-1].attn.q.conv
        assert (conv.weight.grad == 0).all()
    assert torch.equal(tiny_model.stages[2].blocks[-1].attn.q.conv.weight,
                       twin.stages[2].blocks[-1].attn.q.conv.weight)


def test_depthwise_convolutions_stay_in_float32_under_autocast(tiny_model):
    dtypes = []
    for stage in tiny_model.train().stages:
        for block in stage.blocks:
            for projection in (block.attn.q, block.attn.k, block.attn.v):
                projection.conv.register_forward_hook(lambda *a: dtypes.append(a[2].dtype))

    with torch.autocast("cpu", torch.bfloat16):
        TrainingForm(tiny_model)(torch.randn(2, 3, 64, 64))

    assert set(dtypes) == {torch.float32}
    assert len(dtypes) == 12
