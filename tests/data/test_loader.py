import dataclasses
import pickle
import random

import numpy as np
import pytest
import torch
from PIL import Image

from cvt.config import Preprocess
from cvt.data.augment import training_transform
from cvt.data.config import AugmentConfig
from cvt.data.dataset import LabeledImages
from cvt.data.loader import TrainLoader, evaluation_batches
from cvt.data.pipeline import pack
from cvt.data.randomness import seed_all
from cvt.data.sources.builtin import digits
from cvt.data.unreadable import UnreadableImages
from cvt.system.errors import InputError

PREPROCESS = Preprocess(size=8, crop=1.0, mean=(0.0,), std=(1.0,))


def images(n=10, broken=()):
    def read(i):
        if i in broken:
            raise InputError(f"image {i} is corrupt")
        return Image.new("RGB", (8, 8), (i, i, i))

    return LabeledImages(classes=("even", "odd"), labels=tuple(i % 2 for i in range(n)),
                    names=[str(i) for i in range(n)], fetch=read)


def seen(pipeline, data, index):
    """The network's input (channels, size, size)."""
    sample = pipeline.sample(data.fetch(index), data.names[index])
    return pack([sample]).normalize(pipeline.preprocess)[0]


def loader(workers=0, seed=0, augment=None, repeats=1, passes=1, balanced=False,
           max_unreadable=0.0, **kwargs):
    transform = training_transform(PREPROCESS, augment or AugmentConfig())
    return TrainLoader(images(**kwargs), transform, batch_size=4, seed=seed, workers=workers,
                       repeats=repeats, passes=passes, balanced=balanced,
                       max_unreadable=max_unreadable)


def which(batches):
    """The number of each image, from its shade."""
    return [round(v * 255) for images, _ in batches for v in images[:, 0, 0, 0].tolist()]


def test_an_epoch_shows_each_image_at_most_once_in_full_batches():
    batches = list(loader().epoch(0))
    assert len(batches) == len(loader()) == 2
    assert len(set(which(batches))) == 8
    for images, labels in batches:
        assert images.shape == (4, 1, 8, 8)
        assert labels.tolist() == [round(v * 255) % 2 for v in images[:, 0, 0, 0].tolist()]


def test_passes_make_an_epoch_longer_and_each_shows_every_image():
    some = loader(passes=3, n=8)
    seen = which(some.epoch(0))
    assert len(some) == 6
    passes = [seen[i:i + 8] for i in (0, 8, 16)]
    assert all(sorted(p) == list(range(8)) for p in passes)
    assert passes[0] != passes[1] != passes[2]


def test_an_image_is_augmented_anew_in_each_pass():
    noisy = AugmentConfig(erasing=1.0)
    by_shade = {}
    for images, _ in loader(passes=2, n=4, augment=noisy).epoch(0):
        for image in images:
            by_shade.setdefault(round(image.median().item() * 255), []).append(image)
    assert all(not torch.equal(*pair) for pair in by_shade.values() if len(pair) == 2)
    assert any(len(pair) == 2 for pair in by_shade.values())


def test_few_images_fill_a_batch_in_several_passes():
    assert [len(labels) for _, labels in loader(passes=2, n=3).epoch(0)] == [4]
    with pytest.raises(InputError, match=r"more than the 1 training images; .* or passes=2"):
        loader(passes=2, n=1)


def test_the_rest_of_an_epoch_is_drawn_anew_from_where_it_is_asked_to():
    some, augment = loader(n=40), AugmentConfig(erasing=1.0)
    whole = which(some.epoch(0))
    once = which(some.epoch(0, 0, [3]))
    assert once[:12] == whole[:12]
    assert once[12:] != whole[12:]
    assert sorted(once) == sorted(whole)
    twice = which(some.epoch(0, 0, [3, 5]))
    assert twice[:20] == once[:20]
    assert twice[20:] != once[20:]
    assert which(some.epoch(0, 5, [3, 5])) == twice[20:] == which(loader(n=40).epoch(0, 5, [3, 5]))
    assert which(some.epoch(0)) == whole
    # At the end there is nothing left, but what comes is augmented in another way.
    assert which(some.epoch(0, 0, [10])) == whole
    erased, other = (next(loader(n=40, augment=augment).epoch(0, 0, redraws))[0]
                     for redraws in ([], [10]))
    assert not torch.equal(erased, other)


def test_copies_of_an_image_stay_side_by_side_where_they_are_drawn_anew():
    redrawn = which(loader(n=36, repeats=3).epoch(0, 0, [3]))
    assert redrawn[:12] == which(loader(n=36, repeats=3).epoch(0))[:12]
    assert all(len(set(redrawn[i:i + 3])) == 1 for i in range(12, 36, 3))


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_copies_of_an_image_go_to_different_processes(world):
    """As DeiT's sampler does for repeated augmentation; and pairs to be mixed stay pairs."""
    transform = training_transform(PREPROCESS, AugmentConfig())
    shares = [which(TrainLoader(images(72), transform, batch_size=24, seed=0, rank=rank,
                                world=world, repeats=3).epoch(0)) for rank in range(world)]
    whole = loader(n=72, repeats=3)._order
    batch = [i for _, i, _, _ in next(iter(TrainLoader(
        images(72), transform, batch_size=24, seed=0, repeats=3)._order))]
    assert len(whole) == 18
    pairs = sorted(zip(batch, batch[::-1], strict=True))
    size = 24 // world
    mine = [share[:size] for share in shares]
    assert sorted(i for share in mine for i in share) == sorted(batch)
    assert sorted(pair for share in mine
                  for pair in zip(share, share[::-1], strict=True)) == pairs
    for image in set(batch):
        counts = [share.count(image) for share in mine]
        assert max(counts) - min(counts) <= (3 if world == 1 else 2 if world == 2 else 1)


def test_order_is_a_function_of_seed_and_epoch():
    first = loader()
    assert which(first.epoch(1)) == which(loader().epoch(1)) == which(first.epoch(1))
    assert which(first.epoch(0)) != which(first.epoch(1))
    assert which(first.epoch(0)) != which(loader(seed=1).epoch(0))


def test_augmentation_does_not_depend_on_the_number_of_workers():
    augment = AugmentConfig(crop="resized", erasing=0.5, rand_augment="rand-m9-mstd0.5-inc1")
    alone = [x for x, _ in loader(augment=augment).epoch(3)]
    helped = [x for x, _ in loader(augment=augment, workers=2).epoch(3)]
    assert all(torch.equal(a, b) for a, b in zip(alone, helped, strict=True))


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_of_files_do_not_depend_on_the_number_of_workers(tmp_path, workers):
    """Each is cut, decoded at a smaller size where possible, augmented, and partly erased."""
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{i}.jpg" for i in range(8)]
    for path in paths:
        coarse = Image.fromarray(rng.integers(0, 256, (6, 9, 3), dtype=np.uint8))
        coarse.resize((90, 60)).save(path)
    preprocess = Preprocess(size=16, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
    augment = AugmentConfig(crop="resized", hflip=0.5, erasing=0.5,
                            rand_augment="rand-m9-mstd0.5-inc1")
    pipeline = training_transform(preprocess, augment)

    def batches(workers):
        data = LabeledImages.from_files(("a", "b"), paths, [0, 1] * 4)
        some = TrainLoader(data, pipeline, batch_size=4, seed=0, workers=workers)
        return [x for epoch in range(2) for x, _ in some.epoch(epoch)]

    alone = batches(0)
    assert all(x.dtype == torch.float32 and x.is_contiguous() for x in alone)
    assert len({x.mean().item() for x in alone}) == 4
    assert all(torch.equal(a, b) for a, b in zip(alone, batches(workers), strict=True))


def test_a_batch_holds_what_the_pipeline_makes_of_each_image():
    data = digits().train
    augment = AugmentConfig(crop="resized", erasing=0.5)
    pipeline = training_transform(PREPROCESS, augment)
    some = TrainLoader(data, pipeline, batch_size=8, seed=3)
    images, _ = next(some.epoch(2))
    order = np.random.default_rng((3, 2)).permutation(len(data))[:8]
    for x, index in zip(images, order, strict=True):
        seed_all(3, 2, int(index))
        assert torch.equal(x, seen(pipeline, data, index))


def test_loading_leaves_global_randomness_alone():
    seed_all(7)
    expected = torch.rand(2), np.random.rand(2), random.random()
    seed_all(7)
    list(loader(augment=AugmentConfig(crop="shift")).epoch(0))
    assert torch.equal(torch.rand(2), expected[0])
    assert np.array_equal(np.random.rand(2), expected[1])
    assert random.random() == expected[2]


def test_keys_that_differ_in_length_draw_differently():
    seed_all(1, 2)
    first = torch.rand(1)
    seed_all(1, 2, 0)
    assert not torch.equal(first, torch.rand(1))


def test_evaluation_shows_every_image_once_in_order():
    batches = list(evaluation_batches(images(), PREPROCESS, batch_size=4))
    assert which(batches) == list(range(10))
    assert [len(labels) for _, labels in batches] == [4, 4, 2]


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_raises_its_own_one_line(workers):
    with pytest.raises(InputError) as caught:
        list(loader(broken=range(10), workers=workers).epoch(0))
    assert str(caught.value).endswith("is corrupt")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("workers", [0, 1])
def test_another_image_takes_the_place_of_one_that_cannot_be_read(workers):
    some = loader(n=40, broken={3, 17}, max_unreadable=0.05, workers=workers)
    batches = list(some.epoch(0))
    assert all(len(images) == 4 for images, _ in batches)
    seen = which(batches)
    assert {3, 17}.isdisjoint(seen)
    for shade, label in zip(seen, torch.cat([labels for _, labels in batches]), strict=True):
        assert label == shade % 2
    whole = which(loader(n=40).epoch(0))
    assert [i for i, j in zip(whole, seen, strict=True) if i != j] == [
        i for i in whole if i in (3, 17)]
    assert some.unreadable.rows() == [(i, f"image {i} is corrupt") for i in ("3", "17")]


def test_more_of_them_than_allowed_end_the_run():
    with pytest.raises(InputError, match=r"3 of 40 images cannot be read, more than "
                                         r"data\.max_unreadable=0\.05 allows; the last: image"):
        list(loader(n=40, broken={3, 17, 20}, max_unreadable=0.05).epoch(0))


def test_evaluation_leaves_them_out_and_names_them():
    some = images(broken={0, 1, 2, 3, 9})
    unreadable = UnreadableImages(some, 0.5)
    batches = evaluation_batches(some, PREPROCESS, batch_size=4, unreadable=unreadable)
    assert which(batches) == [4, 5, 6, 7, 8]
    assert [name for name, _ in unreadable.rows()] == ["0", "1", "2", "3", "9"]


def test_balanced_draws_show_each_class_as_often():
    rare = dataclasses.replace(images(n=400), labels=(1,) * 20 + (0,) * 380)
    transform = training_transform(PREPROCESS, AugmentConfig())
    some = TrainLoader(rare, transform, batch_size=400, seed=0, balanced=True)
    (_, labels), = some.epoch(0)
    assert 160 < labels.sum() < 240


def test_an_unreadable_image_of_a_balanced_draw_is_replaced_by_a_balanced_draw():
    broken = images(n=400, broken=range(10))
    rare = dataclasses.replace(broken, labels=(1,) * 20 + (0,) * 380)
    transform = training_transform(PREPROCESS, AugmentConfig())
    some = TrainLoader(rare, transform, batch_size=400, seed=0, balanced=True, max_unreadable=0.1)
    (_, labels), = some.epoch(0)
    assert 118 < labels.sum() < 150  # a third, for half of the rare class cannot be read


def test_repeats_augment_an_image_anew_and_keep_the_length_of_an_epoch():
    augment = AugmentConfig(crop="shift")
    images = torch.cat([images for images, _ in loader(n=36, repeats=3, augment=augment).epoch(0)])
    assert len(images) == 36
    shades = images.amax((1, 2, 3)).view(12, 3)
    assert torch.equal(shades, shades[:, :1].expand(12, 3))
    assert len(shades[:, 0].unique()) == 12
    erased = AugmentConfig(erasing=1.0)
    one, other, _ = next(loader(n=36, repeats=3, augment=erased).epoch(0))[0][:3]
    assert not torch.equal(one, other)


def test_a_file_that_has_gone_is_named(tmp_path):
    gone = LabeledImages.from_files(("a", "b"), [tmp_path / "gone.png"], [0])
    with pytest.raises(InputError, match=r"gone\.png: No such file"):
        list(evaluation_batches(gone, PREPROCESS, batch_size=4))


@pytest.mark.parametrize("crop", ["shift", "resized"])
def test_what_workers_need_can_be_sent_to_them(crop):
    """Where processes are spawned, not forked, they receive it pickled."""
    augment = AugmentConfig(crop=crop, hflip=0.5, erasing=0.5,
                            rand_augment="rand-m9-mstd0.5-inc1")
    transform = training_transform(PREPROCESS, augment)
    data = digits()
    sent, sent_data = pickle.loads(pickle.dumps((transform, data)))
    seed_all(5)
    expected = seen(transform, data.all, 1500)
    seed_all(5)
    assert torch.equal(seen(sent, sent_data.all, 1500), expected)


def test_a_batch_larger_than_the_dataset_is_rejected():
    with pytest.raises(InputError, match="batch_size=4 is more than the 3"):
        loader(n=3)
