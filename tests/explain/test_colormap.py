import numpy as np
from PIL import Image

from cvt.explain.colormap import heatmap, overlay, token_colors


def test_heatmap_goes_from_dark_to_light_with_the_value():
    values = np.linspace(-3, 5, 40, dtype=np.float32)[None]
    light = np.asarray(heatmap(values).convert("L"), int)[0]
    assert (np.diff(light) >= 0).all()
    assert (light[0], light[-1]) == (11, 234)


def test_a_constant_map_is_dark_and_its_overlay_transparent():
    assert heatmap(np.full((3, 4), 7.0, np.float32)).getcolors() == [(12, (10, 8, 30))]
    image = Image.new("RGB", (9, 6), (10, 200, 30))
    assert overlay(image, np.zeros((2, 3), np.float32)).tobytes() == image.tobytes()


def test_an_overlay_is_transparent_at_the_minimum_of_the_map():
    image = Image.new("RGB", (40, 20), (10, 200, 30))
    shown = np.asarray(overlay(image, np.array([[0, 0, 0, 1]], np.float32)), int)
    assert shown.shape == (20, 40, 3)
    assert (shown[:, :10] == (10, 200, 30)).all()
    assert (shown[:, -2:] != (10, 200, 30)).all()


def test_similar_tokens_have_similar_colors():
    rng = np.random.default_rng(0)
    tokens = np.zeros((16, 6, 8), np.float32)
    tokens[:, :, 4:] = rng.normal(size=(16, 1, 1))
    tokens += 0.01 * rng.normal(size=tokens.shape)
    colors = np.asarray(token_colors(tokens), int)[..., 0]  # the first component
    assert abs(colors[:, :4].mean() - colors[:, 4:].mean()) > 200
    assert np.asarray(token_colors(tokens)).tobytes() == np.asarray(
        token_colors(tokens)).tobytes()


def test_tokens_of_two_channels_and_of_one_value_have_colors_too():
    assert token_colors(np.ones((2, 3, 4), np.float32)).size == (4, 3)
    assert token_colors(np.zeros((5, 1, 1), np.float32)).size == (1, 1)
