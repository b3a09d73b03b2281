import pytest
import torch

from cvt.fast.network import ClassAttention, Folded
from cvt.fast.verify import compare, samples, verify
from cvt.model import CvT
from cvt.system.errors import InputError


@pytest.mark.parametrize("changes", [
    {}, {"act": "gelu"}, {"in_chans": 1}, {"num_classes": 0}, {"every": {"cls_token": True}},
    {"last": {"cls_token": False}}, {"last": {"cls_token": False}, "num_classes": 0},
    {"every": {"qkv_bias": False}}, {"every": {"pos_embed": True}}, {"every": {"kernel": 5}},
    {"every": {"projection": "avg"}}, {"every": {"projection": "linear", "stride_kv": 1}},
    {"every": {"stride_kv": 1}}, {"last": {"stride_kv": (1, 2), "mlp_ratio": (2.0, 4.0)}},
    {"every": {"drop_rate": 0.1, "drop_path_rate": 0.1}},
    {"depths": (1, 1, 1)}])
@pytest.mark.parametrize("size", [(64, 64), (50, 90)])
def test_a_folded_network_is_the_same_function(tiny, shaken, changes, size):
    model = shaken(CvT(tiny(**changes))).eval()
    images = torch.randn(3, model.config.in_chans, *size)

    agreement = compare(model, Folded(model).eval(), images)

    assert agreement.difference < 2e-5
    assert agreement.top1 == 1


def test_a_folded_network_leaves_the_model_alone(tiny_model, shaken):
    before = {name: t.clone() for name, t in shaken(tiny_model).state_dict().items()}

    Folded(tiny_model)(torch.randn(1, 3, 64, 64))

    assert all(torch.equal(t, before[name]) for name, t in tiny_model.state_dict().items())


def test_a_folded_ablation_of_every_option_is_the_same_function(ablated, shaken):
    model = shaken(CvT(ablated)).eval()

    assert compare(model, Folded(model), torch.randn(2, 1, 48, 48)).difference < 2e-5


def test_only_the_class_token_is_computed_last(tiny, tiny_model):
    """And only where it is what is classified."""
    folded = Folded(tiny_model)
    assert isinstance(folded.stages[2].blocks[1].attn, ClassAttention)
    seen = []
    folded.stages[2].blocks[1].mlp.register_forward_hook(lambda _m, args, _o: seen.append(args[0]))
    folded(torch.randn(2, 3, 64, 64))
    assert seen[0].shape == (2, 1, 24)

    without = Folded(CvT(tiny(last={"cls_token": False})).eval())
    assert not any(isinstance(m, ClassAttention) for m in without.modules())


def test_a_network_in_training_is_not_folded(tiny_model):
    with pytest.raises(InputError, match=r"call model\.eval\(\) first"):
        Folded(tiny_model.train())


def test_a_difference_above_the_tolerance_is_rejected(tiny_model):
    images = samples(tiny_model.config)
    folded = Folded(tiny_model)
    with torch.no_grad():
        folded.head.bias[0] += 1e-3 * tiny_model(images).abs().max()

    with pytest.raises(InputError, match=r"differs by 0\.001 of the largest logit"):
        verify(tiny_model, folded, images)
    assert verify(tiny_model, folded, images, tolerance=0.01).n == 2


def test_logits_that_are_not_numbers_agree_with_nothing(tiny_model):
    images = samples(tiny_model.config)

    with pytest.raises(InputError, match="inf"):
        verify(tiny_model, lambda x: tiny_model(x) * float("nan"), images)


def test_samples_are_the_same_every_time_and_not_flat(tiny_model):
    one, two = samples(tiny_model.config, 3), samples(tiny_model.config, 3)

    assert torch.equal(one, two)
    assert one.shape == (3, 3, 64, 64)
    assert one.std() == pytest.approx(1, abs=0.5)
