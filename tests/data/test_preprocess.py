"""The preparation without torch gives the numbers of torchvision, and of training, bit for bit."""

import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from timm.data import create_transform
from torchvision.transforms import InterpolationMode
from torchvision.transforms import v2 as T

from cvt.config import Preprocess
from cvt.data.augment import training_transform
from cvt.data.config import AugmentConfig
from cvt.data.images import read_image
from cvt.data.pipeline import pack
from cvt.data.preprocess import prepare
from cvt.system.errors import InputError
from cvt.zoo import ZOO

SHIPPED = sorted({row.preprocess for row in ZOO.values()}, key=repr)
PREPROCESSES = [
    *SHIPPED,
    Preprocess(size=28, crop=1.0, mean=(0.2860,), std=(0.3530,)),
    Preprocess(size=33, crop=0.9, interpolation="bilinear"),
    Preprocess(size=32, mode="squash", crop=1.0, interpolation="nearest", mean=(0.5,) * 3,
               std=(0.5,) * 3),
    Preprocess(size=32, interpolation="lanczos", mean=(0.4,), std=(0.2,)),
]


def photo(width, height, seed=0):
    """Smooth shapes with grain on them, as uint8 (height, width, 3)."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.int16)
    return (smooth + rng.integers(-12, 13, smooth.shape)).clip(0, 255).astype(np.uint8)


def saved(image, suffix, **options):
    file = io.BytesIO()
    image.save(file, suffix, **options)
    return file.getvalue()


def turned():
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    return saved(Image.fromarray(photo(310, 205)), "jpeg", exif=exif)


IMAGES = {
    "landscape.jpg": lambda: saved(Image.fromarray(photo(500, 375)), "jpeg", quality=90),
    "portrait.jpg": lambda: saved(Image.fromarray(photo(301, 523)), "jpeg"),
    "small.png": lambda: saved(Image.fromarray(photo(41, 37)), "png"),
    "exact.png": lambda: saved(Image.fromarray(photo(256, 256)), "png"),
    "gray.jpg": lambda: saved(Image.fromarray(photo(260, 197)).convert("L"), "jpeg"),
    "cmyk.jpg": lambda: saved(Image.fromarray(photo(233, 300)).convert("CMYK"), "jpeg"),
    "palette.png": lambda: saved(Image.fromarray(photo(120, 90)).convert("P"), "png"),
    "16-bit.png": lambda: saved(Image.fromarray(photo(99, 140)[..., 0].astype(np.uint16) * 257),
                                "png"),
    "turned.jpg": turned,
    "clear.png": lambda: saved(Image.fromarray(np.dstack([photo(150, 90), photo(150, 90)[..., :1]]),
                                               "RGBA"), "png"),
}


def by_torchvision(preprocess, image):
    """Written down anew from torchvision's own parts."""
    mode = InterpolationMode(preprocess.interpolation)
    side = preprocess.resize
    resize = T.Resize([side, side] if preprocess.mode == "squash" else side, mode)
    steps = [resize, T.CenterCrop(preprocess.size)]
    if len(preprocess.mean) == 1:
        steps.append(T.Grayscale())
    x = T.functional.pil_to_tensor(T.Compose(steps)(image)).float() / 255
    return T.functional.normalize(x, list(preprocess.mean), list(preprocess.std))


def by_hand(name, data):
    """The pixels that a viewer shows, by another way than `read_image`."""
    image = Image.open(io.BytesIO(data))
    image.load()
    if name == "16-bit.png":
        return Image.fromarray((np.asarray(image) // 257).astype(np.uint8)).convert("RGB")
    if name == "clear.png":
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return ImageOps.exif_transpose(image).convert("RGB")


@pytest.mark.parametrize("preprocess", PREPROCESSES, ids=lambda p: f"{p.size}-{p.mode}"
                         f"-{p.interpolation}-{len(p.mean)}")
@pytest.mark.parametrize("name", IMAGES)
def test_every_kind_of_image_is_prepared_as_torchvision_and_training_do(preprocess, name):
    data = IMAGES[name]()

    got = prepare(preprocess, read_image(data))

    assert got.dtype == np.float32
    assert got.shape == (len(preprocess.mean), preprocess.size, preprocess.size)
    assert got.flags.c_contiguous
    assert np.array_equal(got, by_torchvision(preprocess, by_hand(name, data)).numpy())
    plain = training_transform(preprocess, AugmentConfig())
    trained = pack([plain.sample(data, name)]).normalize(preprocess)[0]
    assert np.array_equal(got, trained.numpy())


def test_a_turned_image_is_prepared_upright():
    data = turned()
    exif_lost = Image.open(io.BytesIO(data))
    assert exif_lost.size == (310, 205)
    assert read_image(data).size == (205, 310)


def test_the_reference_notices_a_wrong_filter():
    """It can fail: one step of another kind is another result."""
    preprocess, image = SHIPPED[0], Image.fromarray(photo(500, 375))
    other = Preprocess(size=preprocess.size, interpolation="bilinear")
    assert not torch.equal(by_torchvision(preprocess, image), by_torchvision(other, image))


def noise(width=90, height=60):
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("size", [(90, 60), (60, 90), (20, 20), (300, 31)])
def test_evaluation_matches_timm_on_centre_crops(size):
    ours = prepare(Preprocess(size=32, crop=0.875), noise(*size))
    theirs = create_transform(32, interpolation="bicubic", crop_pct=0.875)
    assert np.allclose(ours, theirs(noise(*size)), atol=1e-6)


def test_evaluation_matches_timm_on_squashed_images():
    ours = prepare(Preprocess(size=32, crop=1.0, mode="squash"), noise())
    theirs = create_transform((32, 32), interpolation="bicubic", crop_pct=1.0, crop_mode="squash")
    assert np.allclose(ours, theirs(noise()), atol=1e-6)


def test_an_image_of_the_right_size_is_only_normalised():
    preprocess = Preprocess(size=32, crop=1.0, mean=(0.5,) * 3, std=(0.25,) * 3)
    x = prepare(preprocess, noise(32, 32))
    pixels = np.asarray(noise(32, 32)).transpose(2, 0, 1)
    assert np.allclose(x, (pixels / 255 - 0.5) / 0.25, atol=1e-6)


@pytest.mark.parametrize("mean", [(0.4,), (0.485, 0.456, 0.406)])
def test_normalising_is_division_subtraction_and_division_in_float32(mean):
    """To the bit, for published accuracies were measured so."""
    preprocess = Preprocess(size=32, crop=1.0, mean=mean, std=(0.229,) * len(mean))
    pixels = np.asarray(noise(32, 32).convert("L" if len(mean) == 1 else "RGB"))
    x = pixels.reshape(32, 32, -1).transpose(2, 0, 1).astype(np.float32) / np.float32(255)
    x = (x - np.float32(mean).reshape(-1, 1, 1)) / np.float32(0.229)
    assert np.array_equal(prepare(preprocess, noise(32, 32)), x)


def test_an_image_too_thin_to_resize_is_rejected():
    """Of 5 million pixels, but 2,300 million once its short side is resized."""
    with pytest.raises(InputError, match="1x5000000 pixels is too thin"):
        prepare(Preprocess(size=32), Image.new("RGB", (1, 5_000_000)))


def test_one_channel_is_luminance():
    x = prepare(Preprocess(size=8, crop=1.0, mean=(0.0,), std=(1.0,)),
                Image.new("RGB", (8, 8), (255, 0, 0)))
    assert x.shape == (1, 8, 8)
    assert np.unique(x) == pytest.approx(76 / 255)
