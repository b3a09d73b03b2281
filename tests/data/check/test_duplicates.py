import io
import time

import numpy as np
import pytest
from PIL import Image, ImageEnhance
from sklearn.datasets import load_sample_images

from cvt.data.check.duplicates import (
    MAX_DISTANCE,
    MIN_CORRELATION,
    is_blank,
    near_pairs,
    perceptual_hash,
)


@pytest.fixture(scope="module")
def photos():
    """Parts of two photographs, no two of them alike."""
    whole = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    return [image.crop((x, y, x + 300, y + 200)) for image in whole
            for x in range(0, 340, 80) for y in range(0, 220, 80)]


def jpeg(image, quality):
    file = io.BytesIO()
    image.save(file, format="JPEG", quality=quality)
    return Image.open(file).convert("RGB")


def pairs(images):
    hashes = [perceptual_hash(image) for image in images]
    near = near_pairs(np.array([h.bits for h in hashes], np.uint64),
                       np.stack([h.thumbnail for h in hashes]))
    return sorted((min(a, b), max(a, b)) for i, j in near for a, b in zip(i, j, strict=True))


@pytest.mark.parametrize("change", [
    lambda image: image.resize((97, 65), Image.Resampling.BILINEAR),
    lambda image: image.resize((640, 427), Image.Resampling.BICUBIC),
    lambda image: jpeg(image.resize((150, 100), Image.Resampling.LANCZOS), 50),
    lambda image: ImageEnhance.Contrast(image).enhance(0.8),
], ids=["smaller", "larger", "recompressed", "contrast"])
def test_each_copy_is_paired_with_its_original_alone(photos, change):
    n = len(photos)
    assert pairs([*photos, *map(change, photos)]) == [(i, n + i) for i in range(n)]


@pytest.mark.slow
def test_hashes_within_the_distance_are_all_found_once_and_no_others():
    rng = np.random.default_rng(0)
    n = 1500
    # Centres with neighbours at up to ten bits, so that pairs lie on both sides of the bound.
    centres = rng.integers(0, 2**64, 30, dtype=np.uint64)
    hashes = centres[rng.integers(0, 30, n)]
    for k in range(n):
        for bit in rng.choice(64, rng.integers(0, 6), replace=False):
            hashes[k] ^= np.uint64(1 << int(bit))
    thumbnails = np.tile(rng.integers(0, 256, (1, 16, 16), dtype=np.uint8), (n, 1, 1))

    near = [(int(a), int(b)) for i, j in near_pairs(hashes, thumbnails)
             for a, b in zip(i, j, strict=True)]

    apart = np.unpackbits((hashes[:, None] ^ hashes).view(np.uint8).reshape(n, n, 8), axis=2).sum(2)
    wanted = {(a, b) for a, b in np.argwhere(apart <= MAX_DISTANCE).tolist() if a < b}
    assert len(near) == len(wanted) > 1000
    assert {(min(p), max(p)) for p in near} == wanted


def test_equal_hashes_of_images_that_differ_are_no_pair():
    rng = np.random.default_rng(0)
    thumbnails = rng.integers(0, 256, (2, 16, 16), dtype=np.uint8)
    assert np.corrcoef(thumbnails.reshape(2, -1))[0, 1] < MIN_CORRELATION
    assert list(near_pairs(np.zeros(2, np.uint64), thumbnails)) == []


def test_a_hundred_thousand_images_are_compared_in_seconds():
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**64, 100_000, dtype=np.uint64)
    thumbnails = rng.integers(0, 256, (100_000, 16, 16), dtype=np.uint8)
    hashes[70_000], thumbnails[70_000] = hashes[123], thumbnails[123]
    start = time.monotonic()
    (i, j), = near_pairs(hashes, thumbnails)
    assert {int(i[0]), int(j[0])} == {123, 70_000}
    assert time.monotonic() - start < 10


def test_one_colour_with_noise_is_blank_and_a_faint_drawing_is_not():
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(120, 130, (200, 300, 3), dtype=np.uint8))
    drawing = Image.new("RGB", (300, 200), (200, 200, 200))
    drawing.paste((180, 180, 180), (50, 50, 150, 150))
    images = [Image.new("RGB", (5, 5), "red"), jpeg(noise, 50), drawing]
    thumbnails = np.stack([perceptual_hash(image).thumbnail for image in images])
    assert is_blank(thumbnails).tolist() == [True, True, False]
