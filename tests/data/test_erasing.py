import random

import pytest
import torch
from timm.data.random_erasing import RandomErasing

from cvt.data.erasing import Erasing
from cvt.data.randomness import seed_all


@pytest.mark.parametrize("shape", [(3, 64, 48), (1, 8, 8)])
def test_patches_are_those_of_timm(shape):
    erase, theirs = Erasing(0.5), RandomErasing(0.5, mode="pixel", device="cpu")
    found = 0
    for seed in range(60):
        seed_all(seed)
        patch = erase(*shape)
        x = torch.full(shape, 7.0)
        if patch is not None:
            found += 1
            _, high, wide = patch.shape
            x[:, patch.top:patch.top + high, patch.left:patch.left + wide] = (
                patch.noise.view(patch.shape))
        drawn = random.random()
        seed_all(seed)
        assert torch.equal(x, theirs(torch.full(shape, 7.0)))
        assert drawn == random.random()
    assert 15 < found < 45
