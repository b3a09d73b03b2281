import pytest
import torch
from torchvision.ops import FeaturePyramidNetwork

from cvt.model import CvT
from cvt.networks.backbone import Backbone, backbone
from cvt.networks.surgery import freeze_batchnorm
from cvt.system.errors import InputError


def test_maps_come_by_name_at_their_strides(tiny_model):
    trunk = Backbone(tiny_model, ("stride8", "stride16"))

    maps = trunk(torch.randn(2, 3, 64, 96))

    assert {name: tuple(m.shape) for name, m in maps.items()} == {
        "stride8": (2, 16, 8, 12), "stride16": (2, 24, 4, 6)}
    assert trunk.channels == {"stride8": 16, "stride16": 24}


def test_maps_are_the_networks_own(tiny, shaken):
    model = shaken(CvT(tiny())).eval()
    x = torch.randn(1, 3, 64, 64)
    _, expected = model.forward_intermediates(x)

    maps = Backbone(model, ("stride4", "stride8", "stride16"))(x)

    assert all(torch.equal(a, b) for a, b in zip(maps.values(), expected, strict=True))


def test_stages_that_no_map_needs_are_not_run(tiny_model):
    ran = []
    for i, stage in enumerate(tiny_model.stages):
        stage.embed.register_forward_hook(lambda *_, i=i: ran.append(i))

    Backbone(tiny_model, ("stride8",))(torch.randn(1, 3, 64, 64))

    assert ran == [0, 1]


def test_a_feature_pyramid_is_trained_on_it():
    """As detectors and segmenters do: frozen BatchNorm, every map used."""
    trunk = freeze_batchnorm(backbone("cvt_nano", ("stride2", "stride4", "stride8"))).train()
    pyramid = FeaturePyramidNetwork(list(trunk.channels.values()), 16)

    out = pyramid(trunk(torch.randn(2, 3, 40, 56)))
    sum(m.mean() for m in out.values()).backward()

    assert [tuple(m.shape) for m in out.values()] == [(2, 16, 20, 28), (2, 16, 10, 14),
                                                      (2, 16, 5, 7)]
    without = {name for name, p in trunk.named_parameters() if p.grad is None}
    assert without == {"model.norm.weight", "model.norm.bias"}


@pytest.mark.parametrize(("out", "message"), [
    (("stride32",), "no map 'stride32'; did you mean stride"), ((), "must have at least one map"),
    (("stride4", "stride4"), "no map twice")])
def test_maps_that_are_not_there_are_rejected(tiny_model, out, message):
    with pytest.raises(InputError, match=message):
        Backbone(tiny_model, out)


@pytest.mark.slow
def test_a_trunk_exports_and_compiles(tiny_model):
    trunk = Backbone(tiny_model, ("stride4", "stride16"))
    x = torch.randn(2, 3, 64, 64)

    exported = torch.export.export(trunk, (x,)).module()

    for name, expected in trunk(x).items():
        torch.testing.assert_close(exported(x)[name], expected)
