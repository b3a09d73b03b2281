import random

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform, random_erasing
from torchvision.transforms import v2

from cvt.config import Preprocess
from cvt.data.augment import RandomErasing, training_transform
from cvt.data.config import AugmentConfig
from cvt.data.pipeline import pack
from cvt.data.preprocess import prepare
from cvt.data.randomness import seed_all
from cvt.system.errors import InputError


def image(width=90, height=60):
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def seen(pipeline, image):
    """The network's input (channels, size, size)."""
    return pack([pipeline.sample(image, "the image")]).normalize(pipeline.preprocess)[0]


def test_training_without_augmentation_is_evaluation():
    preprocess = Preprocess(size=32)
    augmented = training_transform(preprocess, AugmentConfig())
    assert np.array_equal(seen(augmented, image()), prepare(preprocess, image()))


@pytest.mark.parametrize("augment", [
    AugmentConfig(crop="shift"), AugmentConfig(crop="resized"), AugmentConfig(hflip=0.5),
    AugmentConfig(color_jitter=0.4), AugmentConfig(erasing=0.9),
    AugmentConfig(rand_augment="rand-m9-mstd0.5-inc1"),
])
@pytest.mark.parametrize("mean", [(0.4,), (0.4, 0.5, 0.6)])
def test_each_augmentation_changes_the_image_and_repeats_with_its_seed(augment, mean):
    preprocess = Preprocess(size=32, mean=mean, std=(0.2,) * len(mean))
    transform = training_transform(preprocess, augment)

    def draw(seed):
        seed_all(seed)
        return seen(transform, image())

    drawn = [draw(seed) for seed in range(8)]
    assert all(x.shape == (len(mean), 32, 32) for x in drawn)
    assert any(not torch.equal(x, drawn[0]) for x in drawn)
    assert torch.equal(draw(3), drawn[3])


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "nearest"])
def test_rand_augment_is_timms_with_the_resize_filter(interpolation):
    preprocess = Preprocess(size=32, crop=1.0, mean=(0.4,) * 3, interpolation=interpolation)
    ours = training_transform(preprocess, AugmentConfig(rand_augment="rand-m9-mstd0.5-inc1"))
    theirs = create_transform(32, is_training=True, scale=(1.0, 1.0), ratio=(1.0, 1.0), hflip=0.0,
                              auto_augment="rand-m9-mstd0.5-inc1", mean=(0.4,) * 3,
                              std=preprocess.std, interpolation=interpolation)
    for seed in range(40):
        seed_all(seed)
        expected = theirs.transforms[1:]
        x = image(32, 32)
        for step in expected:
            x = step(x)
        seed_all(seed)
        assert torch.allclose(seen(ours, image(32, 32)), x, atol=1e-5)


def test_rand_augment_works_with_every_filter():
    transform = training_transform(Preprocess(size=32, interpolation="lanczos"),
                                   AugmentConfig(rand_augment="rand-m9-mstd0.5-inc1"))
    for seed in range(40):
        seed_all(seed)
        assert seen(transform, image()).shape == (3, 32, 32)


def test_the_strongest_rand_augment_never_fails():
    transform = training_transform(Preprocess(size=32),
                                   AugmentConfig(rand_augment="rand-m10-n4-mstd3-inc1"))
    for seed in range(150):
        seed_all(seed)
        assert seen(transform, image()).isfinite().all()


def test_shifting_moves_by_at_most_an_eighth():
    image = Image.new("RGB", (32, 32))
    image.putpixel((16, 16), (255, 255, 255))
    transform = training_transform(Preprocess(size=32, crop=1.0, mean=(0.0,), std=(1.0,)),
                                   AugmentConfig(crop="shift"))
    places = set()
    for seed in range(60):
        seed_all(seed)
        places.add(tuple(seen(transform, image)[0].nonzero()[0].tolist()))
    assert len(places) > 20
    assert all(abs(y - 16) <= 4 and abs(x - 16) <= 4 for y, x in places)


def test_shifting_is_torchvisions_random_crop_with_repeated_edges():
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (28, 28, 3), dtype=np.uint8))
    theirs = v2.RandomCrop(28, padding=3, padding_mode="edge")
    (ours,) = (step for step in training_transform(
        Preprocess(size=28, crop=1.0), AugmentConfig(crop="shift")).steps[1:])
    for seed in range(40):
        seed_all(seed)
        expected = theirs(image).tobytes()
        seed_all(seed)
        assert ours(image).tobytes() == expected


def test_an_unknown_rand_augment_is_explained():
    with pytest.raises(InputError, match=r"try rand-m9-mstd0\.5-inc1"):
        training_transform(Preprocess(), AugmentConfig(rand_augment="rand-q9"))


@pytest.mark.parametrize("values", [
    {"hflip": 1.5}, {"mixup": -1.0}, {"label_smoothing": 1.0}, {"rand_augment": "augmix"},
    {"crop": "centre"}, {"rand_augment": "rand-m9", "color_jitter": 0.4},
    {"crop": "resized", "scale": (0.5, 0.2)}, {"crop": "resized", "scale": (0.0, 1.0)},
    {"crop": "shift", "scale": (0.5, 1.0)},
])
def test_augmentation_that_makes_no_sense_is_rejected(values):
    with pytest.raises(InputError):
        AugmentConfig(**values)


@pytest.mark.parametrize("shape", [(3, 64, 48), (1, 8, 8)])
def test_patches_are_those_of_timm(shape):
    erase, theirs = RandomErasing(0.5), random_erasing.RandomErasing(
        0.5, mode="pixel", device="cpu")
    erased = 0
    for seed in range(60):
        seed_all(seed)
        patch = erase(*shape)
        x = torch.full(shape, 7.0)
        if patch is not None:
            erased += 1
            _, high, wide = patch.shape
            x[:, patch.top:patch.top + high, patch.left:patch.left + wide] = (
                patch.noise.view(patch.shape))
        drawn = random.random()
        seed_all(seed)
        assert torch.equal(x, theirs(torch.full(shape, 7.0)))
        assert drawn == random.random()
    assert 15 < erased < 45
