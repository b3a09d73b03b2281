import pytest
import torch

from cvt.config import CvTConfig, StageConfig
from cvt.explain.gradcam import grad_cam
from cvt.model import CvT
from cvt.system.errors import InputError

IMAGES = torch.rand(2, 3, 28, 36, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def network(cls_token=True, seed=0):
    torch.manual_seed(seed)
    stages = (StageConfig(dim=8, num_heads=1, depth=1), StageConfig(dim=12, num_heads=2, depth=2),
              StageConfig(dim=16, num_heads=2, depth=2, cls_token=cls_token))
    model = CvT(CvTConfig(stages=stages, num_classes=4, image_size=28)).double().eval()
    for parameter in model.parameters():  # far from the nearly equal logits of a new network
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def shifted(model, images, stage, channel, by):
    """Logits with `by` added to one channel of the map that Grad-CAM reads."""
    def add(module, args):
        x, grid = args
        x = x.clone()
        start = 1 if model.config.stages[-1].cls_token else 0
        x[:, start:, channel] += by
        return x, grid

    def add_to_map(module, args):
        x = args[0].clone()
        x[:, channel] += by
        return (x,)

    def add_to_sequence(module, args):
        x = args[0].clone()
        x[:, :, channel] += by
        return (x,)

    if stage < 3:
        handle = model.stages[stage].embed.register_forward_pre_hook(add_to_map)
    elif model.config.stages[-1].cls_token:
        handle = model.stages[-1].blocks[-1].register_forward_pre_hook(add)
    else:
        handle = model.norm.register_forward_pre_hook(add_to_sequence)
    with torch.no_grad():
        logits = model(images)
    handle.remove()
    return logits


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("cls_token", [True, False])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_maps_are_weighted_as_finite_differences_say(stage, cls_token, batch):
    model, images = network(cls_token), IMAGES[:batch]
    classes = torch.tensor([2, 0])[:batch]
    _, cams = grad_cam(model, images, [stage], classes)
    maps = model.forward_intermediates(images, intermediates_only=True)
    fmap = maps[stage - 1].detach()
    if stage == 3 and cls_token:  # what the last block reads
        fmap = model.forward_intermediates(images, [-2], level="block",
                                           intermediates_only=True)[0].detach()
    step, height, width = 1e-5, *fmap.shape[2:]
    weights = torch.stack([
        (shifted(model, images, stage, c, step) - shifted(model, images, stage, c, -step)).gather(
            1, classes[:, None])[:, 0] / (2 * step * height * width)
        for c in range(fmap.shape[1])], 1)
    expected = (weights[:, :, None, None] * fmap).sum(1).relu()
    assert expected.max() > 0
    assert torch.allclose(cams[stage], expected, rtol=1e-5, atol=1e-8)


def test_all_stages_come_from_one_pass_and_are_those_of_each_alone():
    model = network()
    logits, together = grad_cam(model, IMAGES, [1, 2, 3])
    assert torch.allclose(logits, model(IMAGES))
    for stage in (1, 2, 3):
        assert torch.allclose(together[stage], grad_cam(model, IMAGES, [stage])[1][stage])
    assert all(p.grad is None for p in model.parameters())


def test_the_most_probable_class_is_the_default_and_another_has_another_map():
    model = network()
    top = model(IMAGES).argmax(1)
    default = grad_cam(model, IMAGES, [2])[1][2]
    assert torch.equal(default, grad_cam(model, IMAGES, [2], top)[1][2])
    assert not torch.allclose(default, grad_cam(model, IMAGES, [2], (top + 1) % 4)[1][2])


def test_other_weights_give_another_map():
    """A map that did not depend on the weights would say nothing of them (Adebayo et al., 2018)."""
    one, other = (grad_cam(network(seed=seed), IMAGES, [3], torch.tensor([1, 1]))[1][3]
                  for seed in (0, 1))
    assert torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1].abs() < 0.9


def test_an_unknown_stage_is_an_error():
    with pytest.raises(InputError, match="there is no stage 4; this network has stages 1 to 3"):
        grad_cam(network(), IMAGES, [1, 4])
