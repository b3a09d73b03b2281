import copy

import pytest
import torch
from torch import nn

from cvt.networks.supernet import Supernet
from cvt.studies.search.run import recompute_statistics, scorer

CHOICE = ((2, 2.0), (1, 4.0), (1, 2.0), (2, 4.0))


@pytest.fixture
def supernet(tiny, shaken):
    return shaken(Supernet(tiny(last={"drop_rate": 0.1, "drop_path_rate": 0.5}, num_classes=3)))


def batches(n):
    return [(torch.randn(6, 3, 32, 32), torch.arange(6) % 3) for _ in range(n)]


def test_statistics_are_the_mean_over_the_batches_without_what_training_draws(supernet):
    network = supernet.extract(CHOICE)
    first = network.stages[0].blocks[0].attn
    images = [x for x, _ in batches(3)]
    seen = []
    first.q.conv.register_forward_hook(lambda _m, _a, out: seen.append(out))

    recompute_statistics(network, images)
    means = torch.stack([out.mean((0, 2, 3)) for out in seen]).mean(0)

    torch.testing.assert_close(first.q.bn.running_mean, means)
    assert not any(module.training for module in network.modules())
    assert {m.momentum for m in network.modules() if isinstance(m, nn.BatchNorm2d)} == {0.1}
    once = copy.deepcopy(network.state_dict())
    recompute_statistics(network, images)
    assert all(torch.equal(t, once[name]) for name, t in network.state_dict().items())


def test_a_score_is_the_fraction_of_held_out_images_that_are_right(supernet):
    calibration, held_out = batches(2), batches(3)
    network = supernet.extract(CHOICE)
    recompute_statistics(network, [x for x, _ in calibration])
    with torch.no_grad():
        right = sum((network(x).argmax(1) == labels).sum().item() for x, labels in held_out)
    before = copy.deepcopy(supernet.state_dict())

    score = scorer(supernet, calibration, held_out)

    assert score(CHOICE) == right / 18
    assert score(((1, 4.0),) * 4) == score(((1, 4.0),) * 4)
    assert score(CHOICE) == right / 18
    assert all(torch.equal(t, before[name]) for name, t in supernet.state_dict().items())
