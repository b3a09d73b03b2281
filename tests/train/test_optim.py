import dataclasses
from itertools import pairwise

import pytest
import torch

from cvt.config import CvTConfig, StageConfig
from cvt.model import CvT
from cvt.train.config import OptimConfig
from cvt.train.optim import SCALE, build_optimizer, learning_rate


def model():
    stage = StageConfig(dim=8, num_heads=1, depth=1, cls_token=True, pos_embed=True)
    return CvT(CvTConfig(stages=(stage,), num_classes=3, image_size=8))


def test_norms_biases_class_token_and_positions_are_not_decayed():
    net = model()
    names = {id(p): name for name, p in net.named_parameters()}
    groups = build_optimizer(net, OptimConfig(weight_decay=0.1)).param_groups
    decayed = {names[id(p)] for g in groups if g["weight_decay"] == 0.1 for p in g["params"]}
    free = {names[id(p)] for g in groups if g["weight_decay"] == 0 for p in g["params"]}
    assert decayed | free == set(names.values())
    assert {"stages.0.cls_token", "stages.0.pos_embed", "norm.weight", "head.bias"} <= free
    assert all(name.endswith("weight") for name in decayed)
    assert "stages.0.blocks.0.attn.q.conv.weight" in decayed  # depthwise kernels are decayed
    assert "stages.0.blocks.0.attn.q.bn.weight" in free


def test_lower_layers_learn_more_slowly():
    stages = (StageConfig(dim=8, num_heads=1, depth=1),
              StageConfig(dim=16, num_heads=2, depth=2, cls_token=True))
    model = CvT(CvTConfig(stages=stages, num_classes=3, image_size=16))
    names = {id(p): name for name, p in model.named_parameters()}
    scale = {names[id(p)]: group[SCALE] for group in
             build_optimizer(model, OptimConfig(layer_decay=0.5)).param_groups
             for p in group["params"]}
    assert set(scale) == set(names.values())
    assert scale["head.weight"] == scale["norm.bias"] == 1
    assert scale["stages.1.blocks.1.mlp.fc1.weight"] == 0.5
    assert scale["stages.1.blocks.0.norm1.bias"] == scale["stages.1.cls_token"] == 0.25
    assert scale["stages.1.embed.conv.weight"] == 0.25
    assert scale["stages.0.blocks.0.attn.q.conv.weight"] == 0.125
    assert scale["stages.0.embed.conv.bias"] == 0.0625


def test_learning_rate_warms_up_then_falls_to_its_floor():
    config = OptimConfig(lr=1.0, warmup_epochs=2, warmup_lr=0.1, min_lr=0.01)
    rates = [learning_rate(config, step, 100, 10) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[10] == pytest.approx(0.55)
    assert rates[20] == pytest.approx(1.0)
    assert rates[99] == pytest.approx(0.01)
    assert all(a < b for a, b in pairwise(rates[:21]))
    assert all(a > b for a, b in pairwise(rates[20:]))


def test_learning_rate_without_warm_up_starts_at_the_top():
    assert learning_rate(OptimConfig(lr=0.5, warmup_epochs=0), 0, 10, 5) == pytest.approx(0.5)


def test_a_run_of_one_step_has_a_learning_rate():
    assert learning_rate(OptimConfig(lr=0.5, warmup_epochs=0), 0, 1, 1) == pytest.approx(0.5)


def test_betas_reach_the_optimiser():
    optimizer = build_optimizer(model(), OptimConfig(betas=(0.8, 0.95)))
    assert all(g["betas"] == (0.8, 0.95) for g in optimizer.param_groups)
    assert isinstance(optimizer, torch.optim.AdamW)


def test_muon_moves_the_matrices_of_linear_layers_and_adamw_all_else():
    net = model()
    optimizer = build_optimizer(net, OptimConfig(name="muon", lr=0.1, weight_decay=0.0))
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    for parameter in net.parameters():
        parameter.grad = torch.randn_like(parameter)

    optimizer.step()

    moved = {name: p.detach() - before[name] for name, p in net.named_parameters()}
    by_adamw = {name for name, step in moved.items() if torch.allclose(
        step.abs(), torch.tensor(0.1), atol=1e-3)}  # its first step is lr in every element
    assert by_adamw == {name for name in moved if not (
        name.startswith("stages.0.blocks") and moved[name].ndim == 2)}
    weight = moved["stages.0.blocks.0.mlp.fc1.weight"]
    values = torch.linalg.svdvals(weight)
    assert values.max() < 2.5 * values.min()  # nearly orthogonal


@pytest.mark.parametrize("values", [{"lr": -1.0}, {"betas": (0.9, 1.0)}, {"accumulate": 0},
                                    {"lr": float("nan")}])
def test_settings_that_make_no_sense_are_refused(values):
    with pytest.raises(ValueError, match=next(iter(values))):
        dataclasses.replace(OptimConfig(), **values)
