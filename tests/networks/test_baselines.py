import dataclasses

import pytest
import torch
from timm.layers import DropPath

from cvt.config import VARIANTS, CvTConfig, StageConfig
from cvt.networks.baselines import VIT_SIZE, resnet, vit
from cvt.networks.complexity import parameters
from cvt.system.errors import InputError

pytestmark = pytest.mark.slow


def count(network):
    return sum(p.numel() for p in network.parameters())


def test_the_vit_of_cvt_13_is_deit_s():
    with torch.device("meta"):
        network = vit(VARIANTS["cvt_13"])
    # 22,050,664 is the count of DeiT-S (Touvron et al., 2021; 22 M in Table 3 of the CvT paper).
    assert (len(network.blocks), network.embed_dim, count(network)) == (12, 384, 22_050_664)


@pytest.mark.parametrize(("side", "patch"), [(16, 2), (28, 4), (32, 4), (64, 8)])
def test_a_vit_has_at_least_7_patches_a_side_where_the_cvt_has_so_many_tokens(side, patch):
    network = vit(dataclasses.replace(VARIANTS["cvt_nano"], image_size=side))
    assert network.patch_embed.patch_size == (patch, patch)
    assert network(torch.zeros(2, 3, side, side)).shape == (2, 10)


def test_without_position_a_vit_does_not_see_the_order_of_its_patches():
    torch.manual_seed(0)
    config = dataclasses.replace(VARIANTS["cvt_nano"], image_size=16)
    x = torch.rand(1, 3, 16, 16)
    swapped = torch.cat([x[..., 8:], x[..., :8]], -1)
    blind, seeing = vit(config, pos_embed=False).eval(), vit(config).eval()
    assert torch.allclose(blind(x), blind(swapped), atol=1e-5)
    assert not torch.allclose(seeing(x), seeing(swapped), atol=1e-5)


@pytest.mark.parametrize(("make", "least"), [(vit, VIT_SIZE), (resnet, 1.0)])
@pytest.mark.parametrize("variant", ["cvt_nano", "cvt_13", "cvt_21"])
def test_baselines_are_not_smaller_and_at_most_a_fourth_larger(make, least, variant):
    config = VARIANTS[variant]
    with torch.device("meta"):
        ratio = count(make(config)) / parameters(config)
    assert least <= ratio < 1.25


@pytest.mark.parametrize("stem", [2, 4])
def test_a_resnet_has_the_grids_of_the_cvt(stem):
    first = StageConfig(dim=16, num_heads=1, depth=1, embed_kernel=7, embed_stride=stem,
                        embed_padding=3)
    later = StageConfig(dim=16, num_heads=1, depth=1)
    config = CvTConfig(stages=(first, later, later), num_classes=3, in_chans=1, image_size=64)
    maps = resnet(config).forward_intermediates(torch.zeros(2, 1, 64, 64),
                                                intermediates_only=True)
    assert [tuple(m.shape[2:]) for m in maps[-3:]] == list(config.grids((64, 64)))


def test_what_no_baseline_can_be_built_for_is_rejected():
    config = VARIANTS["cvt_nano"]
    with pytest.raises(InputError, match=r"no patch size .* of 31 pixels: .* 2, 4, 8"):
        vit(dataclasses.replace(config, image_size=31))
    coarse = dataclasses.replace(config.stages[0], embed_stride=3)
    with pytest.raises(InputError, match=r"stem has stride 2 or 4 .* the CvT's are 3, 2, 2"):
        resnet(dataclasses.replace(config, stages=(coarse, *config.stages[1:])))


def test_checkpointing_computes_the_gradient_of_a_vit():
    config = VARIANTS["cvt_nano"]
    last = dataclasses.replace(config.stages[-1], drop_path_rate=0.5)
    network = vit(dataclasses.replace(config, stages=(*config.stages[:-1], last))).train()
    grads = []
    for enable in (False, True):
        network.set_grad_checkpointing(enable)
        torch.manual_seed(0)
        loss = network(torch.rand(2, 3, 32, 32)).square().sum()
        grads.append(torch.autograd.grad(loss, tuple(network.parameters())))
    torch.testing.assert_close(grads[1], grads[0])


@pytest.mark.parametrize("make", [vit, resnet])
def test_stochastic_depth_rises_over_the_whole_baseline(make):
    config = VARIANTS["cvt_nano"]
    last = dataclasses.replace(config.stages[-1], drop_path_rate=0.3)
    network = make(dataclasses.replace(config, stages=(*config.stages[:-1], last)))
    rates = [m.drop_prob for m in network.modules() if isinstance(m, DropPath)]
    assert rates == sorted(rates)
    assert rates[0] < 0.16
    assert rates[-1] == pytest.approx(0.3)
