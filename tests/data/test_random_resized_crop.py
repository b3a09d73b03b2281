import io

import numpy as np
import pytest
from PIL import Image

from cvt.config import Preprocess
from cvt.data.augment import RandomResizedCrop, decode_crop, resize
from cvt.data.images import read_image
from cvt.data.randomness import seed_all
from cvt.system.errors import InputError


def encoded(image, kind="JPEG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def photo(width=640, height=400):
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (20, 32, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


def exif_bytes(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


def everything(size):
    return (0, 0, *size)


def far(one, other):
    """Mean difference of two images, of 255."""
    assert one.size == other.size
    return np.abs(np.asarray(one, np.int16) - np.asarray(other, np.int16)).mean()


@pytest.mark.parametrize(("box", "shrink"), [
    ((10, 20, 330, 340), 8), ((10, 20, 329, 339), 4), ((51, 23, 213, 399), 4),
    ((300, 0, 639, 159), 2), ((0, 300, 640, 380), 2), ((0, 300, 640, 379), 1), ((7, 9, 30, 30), 1),
])
def test_a_jpeg_is_decoded_no_larger_than_the_part_needs(box, shrink):
    side = 40
    data = encoded(photo(), quality=90)
    part = decode_crop(data, "x", lambda _: box, side)
    left, top, right, bottom = box
    assert part.size == (round((right - left) / shrink), round((bottom - top) / shrink))
    assert shrink == 1 or min(part.size) >= side
    on_the_grid = tuple(round(edge / shrink) * shrink for edge in box)
    full = resize(read_image(data).crop(on_the_grid), side, "bicubic")
    assert far(resize(part, side, "bicubic"), full) < (2 if shrink > 1 else 1e-9)


def test_a_box_at_the_edge_stays_inside_when_it_shrinks():
    """401 pixels shrink to 51, the last of which is an eighth full."""
    part = decode_crop(encoded(photo(401, 401)), "x", lambda _: (81, 81, 401, 401), 40)
    assert part.size == (40, 40)
    assert np.asarray(part)[-1, -1].sum() > 0


@pytest.mark.parametrize("data", [
    encoded(photo()), encoded(photo().convert("L")), encoded(photo().convert("CMYK")),
    encoded(photo(), exif=exif_bytes(6)), encoded(photo(), exif=exif_bytes(3)),
    encoded(photo(), exif=exif_bytes(7)), encoded(photo(), progressive=True),
    encoded(photo(), exif=b"Exif\x00\x00II*\x00\x08\x00\x00\x00\x01\x00\x12\x01\x03\x00\xff\xff"),
    encoded(photo(), "PNG"), encoded(photo(), "PNG", exif=exif_bytes(6)), encoded(photo(), "WEBP"),
    encoded(photo().quantize(16), "PNG"), encoded(photo().convert("RGBA"), "PNG"),
    encoded(photo().convert("LA"), "PNG"), encoded(photo().convert("1"), "PNG"),
    encoded(Image.fromarray(np.asarray(photo().convert("L"), np.uint16) * 257), "PNG"),
    encoded(photo(), "TIFF"),
], ids=["rgb", "gray", "cmyk", "quarter turn", "half turn", "transverse", "progressive",
        "broken exif", "png", "rotated png", "webp", "palette", "rgba", "la", "one bit",
        "sixteen bit", "tiff"])
def test_any_file_is_read_as_it_is_everywhere(data):
    whole = read_image(data)
    assert far(decode_crop(data, "x", everything, 1000), whole) == 0
    small = resize(decode_crop(data, "x", everything, 100), 100, "bicubic")
    assert far(small, resize(whole, 100, "bicubic")) < 1.5


def test_deep_images_keep_the_range_of_the_whole():
    """A part without bright pixels is not mistaken for one of 8 bits."""
    shades = np.full((50, 50), 40_000, np.uint32).astype(np.int32)
    shades[:20, :20] = 100
    data = encoded(Image.fromarray(shades), "TIFF")
    part = decode_crop(data, "x", lambda _: (0, 0, 20, 20), 20)
    assert np.asarray(part).max() == 0


@pytest.mark.parametrize("side", [40, 1000])
@pytest.mark.parametrize("data", [
    b"", b"this is a text", encoded(photo())[:6000], encoded(photo(), "PNG")[:6000],
    encoded(Image.fromarray(np.ones((9, 9), np.float32)), "TIFF"),
], ids=["empty", "text", "cut jpeg", "cut png", "floats"])
def test_what_cannot_be_read_is_rejected_in_the_same_words(data, side):
    with pytest.raises(InputError) as expected:
        read_image(data, "x")
    with pytest.raises(InputError) as caught:
        decode_crop(data, "x", lambda _: (0, 0, 320, 320), side)
    assert str(caught.value) == str(expected.value)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [(500, 375), (31, 90), (100, 100), (1, 1), (2000, 1)])
def test_resizing_is_pillows_but_for_rounding(size, interpolation):
    filters = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
    ours = resize(photo(*size), 64, interpolation)
    assert ours.mode == "RGB"
    assert far(ours, photo(*size).resize((64, 64), filters[interpolation])) < 0.6


@pytest.mark.parametrize("interpolation", ["nearest", "lanczos"])
def test_other_filters_are_pillows(interpolation):
    crop = RandomResizedCrop(preprocess=Preprocess(size=32, interpolation=interpolation),
                             scale=(1, 1))
    image = photo(60, 60)
    expected = image.resize((32, 32), Image.Resampling[interpolation.upper()])
    assert all(far(crop(image, "x"), expected) == 0 for _ in range(3) if crop.draw((60, 60)))


def test_parts_have_the_area_and_shape_asked_for():
    seed_all(0)
    crop = RandomResizedCrop(preprocess=Preprocess(size=32), scale=(0.2, 0.5))
    boxes = [crop.draw((400, 300)) for _ in range(300)]
    areas = [(r - x) * (b - y) / 120_000 for x, y, r, b in boxes]
    shapes = [(r - x) / (b - y) for x, y, r, b in boxes]
    assert all(0 <= x < r <= 400 and 0 <= y < b <= 300 for x, y, r, b in boxes)
    assert 0.19 < min(areas) < 0.22
    assert 0.48 < max(areas) < 0.51
    assert 0.73 < min(shapes) < 0.8
    assert 1.25 < max(shapes) < 1.36


@pytest.mark.parametrize(("size", "box"), [
    ((1000, 30), (480, 0, 520, 30)), ((30, 1000), (0, 480, 30, 520)), ((1, 1), (0, 0, 1, 1))])
def test_of_a_thin_image_the_middle_is_taken(size, box):
    seed_all(0)
    crop = RandomResizedCrop(preprocess=Preprocess(size=32), scale=(1.0, 1.0))
    assert crop.draw(size) == box
