import io
import os
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image, ImageOps

from cvt.data.images import read_file, read_image
from cvt.system.errors import InputError


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def gradient(width=5, height=3):
    x = np.linspace(0, 255, width * height).reshape(height, width).round().astype(np.uint8)
    return np.stack([x, x[::-1], 255 - x], axis=2)


def test_rgb_is_read_as_it_is():
    pixels = gradient()
    assert np.array_equal(np.asarray(read_image(encoded(Image.fromarray(pixels)))), pixels)


def test_gray_becomes_three_equal_channels():
    gray = gradient()[..., 0]
    out = np.asarray(read_image(encoded(Image.fromarray(gray))))
    assert np.array_equal(out, np.repeat(gray[..., None], 3, axis=2))


def test_sixteen_bit_gray_keeps_its_shades():
    gray = gradient()[..., 0]
    deep = Image.fromarray(gray.astype(np.uint16) * 257)
    assert np.array_equal(np.asarray(read_image(encoded(deep)))[..., 0], gray)


def test_sixteen_bit_tiff_keeps_its_shades():
    gray = gradient()[..., 0]
    deep = Image.fromarray(gray.astype(np.uint16) * 257)
    assert np.array_equal(np.asarray(read_image(encoded(deep, "TIFF")))[..., 0], gray)


def test_dark_sixteen_bit_gray_stays_dark():
    deep = Image.fromarray(np.full((2, 2), 200, np.uint16))
    assert np.asarray(read_image(encoded(deep))).max() == 0


def test_a_jpeg_of_as_many_scans_as_none_needs_is_not_unpacked():
    data = encoded(Image.fromarray(gradient(64, 64)), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    assert read_image(data).size == (64, 64)
    with pytest.raises(InputError, match="more than 50 scans"):
        read_image(data[:-2] + data[last:-2] * 50 + data[-2:])


def test_an_icon_which_is_unpacked_as_it_is_opened_is_not_read():
    with pytest.raises(InputError, match="not an image that Pillow can read"):
        read_image(encoded(Image.fromarray(gradient(16, 16)), "ICO"))


def test_palette_gives_its_colours():
    image = Image.fromarray(gradient()).quantize(16)
    expected = np.asarray(image.convert("RGB"))
    assert np.array_equal(np.asarray(read_image(encoded(image))), expected)


def test_palette_with_a_transparent_colour_lies_on_white():
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    out = np.asarray(read_image(encoded(image, transparency=0)))
    assert out.tolist() == [[[255, 255, 255], [40, 50, 60]]]


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_lies_on_white(mode):
    image = Image.new(mode, (2, 2), (0,) * len(mode))
    assert np.asarray(read_image(encoded(image))).min() == 255


def test_cmyk_gives_its_colours():
    image = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    red = np.asarray(read_image(encoded(image, "JPEG", quality=100))).reshape(-1, 3).mean(0)
    assert red[0] > 240
    assert red[1:].max() < 15


def test_exif_rotation_is_applied():
    pixels = gradient()
    image = Image.fromarray(pixels)
    exif = image.getexif()
    exif[0x0112] = 6  # the camera was held a quarter turn to the left
    out = np.asarray(read_image(encoded(image, exif=exif.tobytes())))
    assert np.array_equal(out, np.rot90(pixels, -1))


def test_broken_exif_data_does_not_cost_the_image():
    pixels = gradient()
    broken = b"Exif\x00\x00II*\x00\x08\x00\x00\x00\x01\x00\x12\x01\x03\x00\xff\xff"
    data = encoded(Image.fromarray(pixels), exif=broken)
    with pytest.raises(Exception, match=r".") as caught:  # of Pillow's own
        ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert not isinstance(caught.value, InputError)
    assert np.array_equal(np.asarray(read_image(data)), pixels)


def test_one_bit_images_are_black_and_white():
    image = Image.fromarray(np.array([[True, False]]))
    assert np.asarray(read_image(encoded(image)))[0, :, 0].tolist() == [255, 0]


def test_floating_point_samples_are_rejected():
    image = Image.fromarray(np.ones((2, 2), np.float32))
    with pytest.raises(InputError, match="floating-point"):
        read_image(encoded(image, "TIFF"))


@pytest.mark.parametrize(("data", "word"), [
    (b"", "empty"),
    (b"this is a text", "not an image"),
    (encoded(Image.fromarray(gradient(64, 64)))[:200], "corrupt or truncated"),
    (encoded(Image.fromarray(gradient(64, 64)), "JPEG")[:700], "corrupt or truncated"),
])
def test_a_file_that_is_no_image_is_named_in_one_line(tmp_path, data, word):
    path = tmp_path / "x.png"
    path.write_bytes(data)
    with pytest.raises(InputError, match=word) as caught:
        read_image(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_decompression_bomb_is_rejected_before_it_unpacks():
    def chunk(kind, body):
        return (struct.pack(">I", len(body)) + kind + body
                + struct.pack(">I", zlib.crc32(kind + body)))

    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    bomb = (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
            + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b""))
    with pytest.raises(InputError, match="bomb"):
        read_image(bomb)


def test_a_pipe_or_a_directory_is_an_error_that_does_not_wait(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path / "pipe.png", tmp_path, tmp_path / "absent.png"):
        with pytest.raises(OSError, match=r"is not a file|No such file"):
            read_file(path)


def test_threads_that_read_leave_the_warnings_as_they_were():
    before = list(warnings.filters)
    file = encoded(Image.effect_noise((300, 200), 50), "JPEG")
    with ThreadPoolExecutor(8) as pool:
        assert len(list(pool.map(read_image, [file] * 400))) == 400
    assert warnings.filters == before
