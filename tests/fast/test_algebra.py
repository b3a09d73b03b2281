"""Each rewrite computes what stood there before."""

import torch
import torch.nn.functional as F
from torch import nn

from cvt.fast.algebra import (
    batchnorm_into_conv,
    norm_into_linear,
    quick_gelu_into_linears,
    scaled_output,
)
from cvt.model import QuickGELU


def projection(shaken, stride=2, bias=False):
    conv = nn.Conv2d(6, 6, 3, stride, 1, groups=6, bias=bias)
    return shaken(nn.Sequential(conv, nn.BatchNorm2d(6))).eval()


def test_batchnorm_goes_into_the_depthwise_kernel(shaken):
    for bias in (False, True):
        both = projection(shaken, bias=bias)
        x = torch.randn(2, 6, 9, 7)

        torch.testing.assert_close(batchnorm_into_conv(*both)(x), both(x))


def test_the_scale_goes_into_the_query(shaken):
    for bias in (True, False):
        query = shaken(nn.Linear(8, 8, bias=bias))
        x, k, v = torch.randn(3, 2, 5, 8)

        scaled = F.scaled_dot_product_attention(scaled_output(query, 0.3)(x), k, v, scale=1.0)

        torch.testing.assert_close(scaled, F.scaled_dot_product_attention(query(x), k, v,
                                                                          scale=0.3))


def test_the_norms_gain_and_bias_go_into_the_next_linear(shaken):
    for bias in (True, False):
        norm, linear = shaken(nn.LayerNorm(8)), shaken(nn.Linear(8, 5, bias=bias))
        x = torch.randn(2, 3, 8)

        folded = norm_into_linear(norm, linear)(F.layer_norm(x, (8,), eps=norm.eps))

        torch.testing.assert_close(folded, linear(norm(x)))


def test_quick_gelu_becomes_silu(shaken):
    fc1, fc2 = shaken(nn.Linear(4, 9)), shaken(nn.Linear(9, 4))
    x = torch.randn(5, 4)

    first, second = quick_gelu_into_linears(fc1, fc2)

    torch.testing.assert_close(second(F.silu(first(x))), fc2(QuickGELU()(fc1(x))))


def test_no_rewrite_changes_what_it_was_given(shaken):
    both, fc1, fc2 = projection(shaken), nn.Linear(4, 9), nn.Linear(9, 4)
    norm = nn.LayerNorm(4)
    modules = nn.ModuleList([both, fc1, fc2, norm])
    before = {name: t.clone() for name, t in modules.state_dict().items()}

    batchnorm_into_conv(*both)
    quick_gelu_into_linears(fc1, fc2)
    norm_into_linear(norm, fc1)
    scaled_output(fc1, 2.0)

    assert all(torch.equal(t, before[name]) for name, t in modules.state_dict().items())
