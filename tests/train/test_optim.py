import dataclasses
from itertools import pairwise

import pytest
import torch
from torch import nn

from cvt.config import CvTConfig, StageConfig
from cvt.model import CvT
from cvt.train import loop
from cvt.train.checkpoints import CheckpointStore
from cvt.train.config import OptimConfig
from cvt.train.directory import CHECKPOINTS, LAST
from cvt.train.optim import SCALE, build_optimizer, learning_rate, set_learning_rate
from cvt.train.recipe import Recipe
from cvt.weights.tensors import read_tensors


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


def test_the_average_of_the_weights_is_that_of_its_formula(tiny_file, tmp_path):
    """a <- d a + (1 - d) w at step n, where d is 0.5 or 1 - (n - 1)^(-2/3), whichever is less."""
    recipe = Recipe(model=str(tiny_file), image_size=8, steps=6, batch_size=128, ema=0.5,
                    keep_checkpoints=9, save_every=1, device="cpu",
                    optim=OptimConfig(lr=0.01, schedule="constant", warmup_steps=0))
    loop.train(recipe, tmp_path, quiet=True)
    saved = [CheckpointStore(tmp_path / CHECKPOINTS).read(n).tensors for n in range(1, 7)]

    average = {name: tensor.double() for name, tensor in saved[0]["model"].items()}
    for n, tensors in enumerate(saved, 1):
        d = min(0.5, 1 - (n - 1) ** (-2 / 3)) if n > 1 else 0.0
        for name, w in tensors["model"].items():
            average[name] = d * average[name] + (1 - d) * w.double() if (
                w.is_floating_point()) else w.double()
            torch.testing.assert_close(tensors["ema"][name].double(), average[name], rtol=1e-6,
                                       atol=1e-7)
    assert (average["head.weight"] - saved[-1]["model"]["head.weight"]).abs().max() > 1e-3
    last = read_tensors(tmp_path / LAST)  # the average is what is saved
    torch.testing.assert_close(last["head.weight"].double(), average["head.weight"])


@pytest.mark.parametrize("values", [{"lr": -1.0}, {"betas": (0.9, 1.0)}, {"grad_accum_steps": 0},
                                    {"lr": float("nan")}])
def test_invalid_values_are_rejected(values):
    with pytest.raises(ValueError, match=next(iter(values))):
        dataclasses.replace(OptimConfig(), **values)


def after_two_steps(config, rates):
    """Parameters before and after two steps, and the gradients of each, in double precision."""
    stages = (StageConfig(dim=8, num_heads=1, depth=1),
              StageConfig(dim=8, num_heads=1, depth=1, cls_token=True))
    net = CvT(CvTConfig(stages=stages, num_classes=3, image_size=16)).double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_()
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    grads = [{name: torch.randn_like(p) for name, p in before.items()} for _ in rates]
    optimizer = build_optimizer(net, config)
    for rate, grad in zip(rates, grads, strict=True):
        for name, parameter in net.named_parameters():
            parameter.grad = grad[name]
        set_learning_rate(optimizer, rate)
        optimizer.step()
    return before, {name: p.detach() for name, p in net.named_parameters()}, grads


MATRIX = "stages.0.blocks.0.mlp.fc1.weight"
# Of a parameter, whether it is decayed, and with layer_decay=0.5 its part of the learning rate.
PARTS = {"stages.0.embed.conv.weight": (1, 0.125), MATRIX: (1, 0.25),
         "stages.1.embed.conv.bias": (0, 0.5), "stages.1.cls_token": (0, 0.5),
         "stages.1.blocks.0.attn.q.conv.weight": (1, 0.5),
         "stages.1.blocks.0.attn.q.bn.weight": (0, 0.5), "norm.weight": (0, 1),
         "head.weight": (1, 1)}
RATES = (0.1, 0.05)


@pytest.mark.parametrize(("name", "eps"), [("adamw", 1e-8), ("muon", 1e-7)])
def test_adamw_decays_the_weight_beside_the_gradient_at_its_layers_rate(name, eps):
    """w <- w (1 - r d) - r m' / (sqrt(v') + eps), with m' and v' corrected for starting at 0."""
    before, after, grads = after_two_steps(OptimConfig(
        name=name, weight_decay=0.2, layer_decay=0.5, betas=(0.8, 0.9)), RATES)
    for part, (decayed, scale) in PARTS.items():
        if name == "muon" and part == MATRIX:
            continue
        w, m, v = before[part], 0.0, 0.0
        for n, grad in enumerate(grads, 1):
            g, r = grad[part], RATES[n - 1] * scale
            m, v = 0.8 * m + 0.2 * g, 0.9 * v + 0.1 * g * g
            w = w * (1 - r * 0.2 * decayed) - r * (m / (1 - 0.8**n)) / (
                (v / (1 - 0.9**n)).sqrt() + eps)
        torch.testing.assert_close(after[part], w, rtol=1e-9, atol=1e-9)


def test_sgd_adds_the_decay_to_the_gradient_and_so_to_the_momentum():
    """b <- 0.7 b + g + d w; w <- w - r b."""
    before, after, grads = after_two_steps(OptimConfig(
        name="sgd", weight_decay=0.2, layer_decay=0.5, momentum=0.7), RATES)
    for part, (decayed, scale) in PARTS.items():
        w, b = before[part], 0.0
        for grad, rate in zip(grads, RATES, strict=True):
            b = 0.7 * b + grad[part] + 0.2 * decayed * w
            w = w - rate * scale * b
        torch.testing.assert_close(after[part], w, rtol=1e-9, atol=1e-9)


def test_muon_makes_the_momentum_of_a_matrix_orthogonal_and_decays_beside_it():
    """b <- 0.7 b + 0.3 g; w <- w (1 - r d) - r 0.2 sqrt(longer side) orthogonal(0.3 g + 0.7 b).

    orthogonal() brings the singular values near 1, by five polynomials; timm computes them in
    bfloat16.
    """
    before, after, grads = after_two_steps(OptimConfig(
        name="muon", weight_decay=0.2, layer_decay=0.5, momentum=0.7), RATES)
    w, b, steps = before[MATRIX], 0.0, 0.0
    for grad, rate in zip(grads, RATES, strict=True):
        r = rate * PARTS[MATRIX][1]
        b = 0.7 * b + 0.3 * grad[MATRIX]
        u, s, v = torch.linalg.svd(0.3 * grad[MATRIX] + 0.7 * b, full_matrices=False)
        s = s / s.square().sum().sqrt()
        for x, y, z in ((4.0848, -6.8946, 2.9270), (3.9505, -6.3029, 2.6377),
                        (3.7418, -5.5913, 2.3037), (2.8769, -3.1427, 1.2046),
                        (2.8366, -3.0525, 1.2012)):
            s = x * s + y * s**3 + z * s**5
        step = r * 0.2 * 32**0.5 * u @ s.diag() @ v
        w, steps = w * (1 - r * 0.2) - step, steps + step
    assert (after[MATRIX] - w).norm() < 0.02 * steps.norm()
    assert 0.2 * 0.0375 * before[MATRIX].norm() > 0.3 * steps.norm()  # so the decay is seen


def test_muon_takes_narrow_matrices_too():
    net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    net.get_classifier = lambda: net[1]
    optimizer = build_optimizer(net, OptimConfig(name="muon", lr=0.1, weight_decay=0.0))
    for parameter in net.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    assert "momentum_buffer" in optimizer.state[net[0].weight]
    assert all("exp_avg" in optimizer.state[p] for p in (net[0].bias, *net[1].parameters()))
