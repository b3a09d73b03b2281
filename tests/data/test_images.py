import io
import os
import struct
import sys
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image, ImageOps, PngImagePlugin

from cvt.data.images import read_file, read_image
from cvt.data.listing import list_images
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


def test_dark_twelve_bit_gray_in_a_sixteen_bit_file_keeps_its_shades():
    deep = Image.fromarray(np.linspace(0, 4095, 15).round().astype(np.uint16).reshape(3, 5))
    out = np.asarray(read_image(encoded(deep)))[..., 0]
    assert (out.min(), out.max()) == (0, 255)
    wide = Image.fromarray(np.linspace(0, 4096, 15).round().astype(np.uint16).reshape(3, 5))
    assert np.asarray(read_image(encoded(wide))).max() == 4096 * 255 // 65535


def twelve_bit_tiff(samples):
    """A gray TIFF that says that its samples have 12 bits, two in three bytes."""
    height, width = samples.shape
    packed = b"".join(int(one << 12 | other).to_bytes(3, "big")
                      for one, other in samples.reshape(-1, 2).tolist())
    tags = [(256, width), (257, height), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1),
            (278, height), (279, len(packed))]
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return (b"II*\0" + struct.pack("<I", 8 + len(packed)) + packed
            + struct.pack("<H", len(tags)) + directory + bytes(4))


def test_a_twelve_bit_tiff_is_scaled_by_what_it_says():
    tiff = twelve_bit_tiff(np.array([[0, 2048], [100, 200]], np.uint16))
    assert np.asarray(read_image(tiff))[..., 0].tolist() == [[0, 127], [6, 12]]


@pytest.mark.parametrize("samples", [(-1, 9), (0, 70_000)])
def test_integers_beyond_sixteen_bits_are_named_and_not_clipped(samples):
    image = Image.fromarray(np.array([samples], np.int32))
    with pytest.raises(InputError, match="holds samples from"):
        read_image(encoded(image, "TIFF"))


def progressive(**options):
    return encoded(Image.fromarray(gradient(64, 64)), "JPEG", progressive=True, **options)


def test_a_jpeg_of_as_many_scans_as_none_needs_is_not_unpacked():
    data = progressive()
    last = data.rindex(b"\xff\xda")
    scan = data[last:-2]
    scans = data.count(b"\xff\xda")
    assert read_image(data[:-2] + scan * (50 - scans) + data[-2:]).size == (64, 64)
    for hidden in (b"", b"\xff", b"\xff\x02", b"\xff\xd0", b"\xff\xfe\0\2"):
        with pytest.raises(InputError, match="more than 50 scans"):
            read_image(data[:-2] + (hidden + scan) * 50 + data[-2:])
    with pytest.raises(InputError, match="more than 50 scans"):  # without an end
        read_image(data[:-2] + scan * 50)


def test_a_video_behind_a_jpeg_and_thumbnails_inside_of_it_are_no_scans():
    data = progressive()
    video = bytes.fromhex("0000001866747970") + b"mp42" + b"\xff\xda\x00\x08\xff" * 1000
    assert read_image(data + video).size == (64, 64)  # a Motion Photo
    assert read_image(progressive(exif=b"Exif\0\0" + data * 40)).size == (64, 64)
    small = Image.fromarray(gradient(64, 64))
    burst = encoded(small, "MPO", save_all=True, append_images=[small] * 10, progressive=True)
    assert burst.count(b"\xff\xda") > 50
    assert read_image(burst).size == (64, 64)


@pytest.mark.parametrize(("kind", "options", "read"), [
    ("JPEG", {}, True), ("JPEG", {"progressive": True}, False), ("PNG", {}, False)])
def test_a_large_photo_is_decoded_at_half_its_size_where_that_saves_memory(
        monkeypatch, kind, options, read):
    image = Image.fromarray(gradient(40, 30))
    data = encoded(image, kind, **options)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1199)
    if read:
        assert read_image(data).size == (20, 15)
    else:
        with pytest.raises(InputError, match="unpacks to more than 1,199 pixels"):
            read_image(data)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1200)
    assert read_image(data).size == (40, 30)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 599)
    with pytest.raises(InputError, match="may be a decompression bomb"):
        read_image(data)


@pytest.mark.parametrize("compressed", [True, False])
def test_long_texts_and_profiles_of_a_png_are_not_unpacked(compressed):
    info = PngImagePlugin.PngInfo()
    info.add_text("Raw profile", "x" * 2_000_000, zip=compressed)
    info.add_itxt("notes", "x" * 2_000_000, zip=compressed)
    data = encoded(Image.fromarray(gradient()), pnginfo=info, icc_profile=bytes(2_000_000))
    assert np.array_equal(np.asarray(read_image(data)), gradient())


def test_short_texts_of_a_png_stay_for_they_may_say_how_it_is_rotated():
    info = PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", '<x:xmpmeta tiff:Orientation="6"/>')
    assert read_image(encoded(Image.fromarray(gradient(5, 3)), pnginfo=info)).size == (3, 5)


def heic(image, **options):
    pytest.importorskip("pillow_heif").register_heif_opener()
    return encoded(image, "HEIF", **options)


# The first bytes of an iPhone's photo.
HEIC = bytes.fromhex("00000024667479706865696300000000") + b"mif1MiHBmiafMiHEheic"


@pytest.mark.parametrize("head", [HEIC, HEIC.replace(b"heic", b"mif1", 1)])
def test_without_its_package_a_heic_image_is_named_with_the_install_line(
        tmp_path, monkeypatch, head):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    (tmp_path / "IMG_0001.HEIC").write_bytes(head + bytes(100))
    [path] = list_images(tmp_path)
    with pytest.raises(InputError, match=r"IMG_0001\.HEIC is a HEIC image, for which pillow_heif "
                                         r"is not installed; pip install 'cvt-torch\[heic\]'"):
        read_image(path)
    assert read_image(encoded(Image.fromarray(gradient()), "AVIF")).size == (5, 3)


def test_a_heic_image_is_read_upright():
    image = Image.new("RGB", (80, 60))
    image.paste("red", (0, 0, 40, 30))
    exif = image.getexif()
    exif[0x0112] = 6
    out = read_image(heic(image, exif=exif.tobytes()))
    assert out.size == (60, 80)
    assert out.getpixel((55, 5))[0] > 240


def test_a_heic_image_that_is_cut_or_lies_about_its_size_is_rejected_in_one_line():
    data = heic(Image.new("RGB", (512, 512)))
    size = data.index(b"ispe") + 8
    bomb = data[:size] + struct.pack(">II", 50_000, 50_000) + data[size + 8:]
    small = data[:size] + struct.pack(">II", 16, 16) + data[size + 8:]
    for bad, word in ((data[:-9], "not an image|corrupt"), (HEIC, "not an image"), (bomb, "bomb"),
                      (small, "corrupt")):
        with pytest.raises(InputError, match=word) as caught:
            read_image(bad)
        assert "\n" not in str(caught.value)


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
