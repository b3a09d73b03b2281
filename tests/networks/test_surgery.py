import pytest
import torch
from torch import nn

from cvt.networks.surgery import freeze_batchnorm, swap
from cvt.system.errors import InputError


def test_every_module_of_the_type_is_swapped(tiny_model):
    seen = []

    def make(norm):
        seen.append(norm)
        return nn.Identity()

    assert swap(tiny_model, nn.LayerNorm, make) is tiny_model
    assert len(seen) == 3 + 2 * 4 + 1  # embeddings, blocks, the last
    assert not any(isinstance(m, nn.LayerNorm) for m in tiny_model.modules())


def test_a_module_in_two_places_stays_one(tiny_model):
    swap(tiny_model, type(tiny_model.stages[0].blocks[0].mlp.act), lambda _: nn.GELU())

    acts = {id(block.mlp.act) for stage in tiny_model.stages for block in stage.blocks}
    assert len(acts) == 1


def test_nothing_to_swap_is_an_error(tiny_model):
    with pytest.raises(InputError, match="CvT has no ReLU to swap"):
        swap(tiny_model, nn.ReLU, lambda _: nn.GELU())


def test_frozen_batchnorm_computes_what_evaluation_did(tiny_model, shaken):
    x = torch.randn(2, 3, 64, 64)
    shaken(tiny_model)
    expected = tiny_model(x)

    frozen = freeze_batchnorm(tiny_model).train()

    torch.testing.assert_close(frozen(x), expected, rtol=1e-4, atol=1e-5)


def test_frozen_batchnorm_is_changed_by_nothing(tiny_model, shaken):
    model = freeze_batchnorm(shaken(tiny_model)).train()
    before = {n: t.clone() for n, t in model.state_dict().items() if ".bn." in n}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    model(torch.randn(2, 3, 64, 64)).sum().backward()
    optimizer.step()

    assert {name.rsplit(".", 1)[1] for name in before} == {"weight", "bias", "running_mean",
                                                           "running_var"}
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())
    assert not any(".bn." in name for name, _ in model.named_parameters())
