import json

import pytest
import yaml

from cvt.config import VARIANTS, Preprocess
from cvt.system.errors import InputError
from cvt.weights.card import ModelCard, find_config

CLASSES = tuple("abcdefghij")


def write_card(directory, **changes):
    """A card's config.json with some of its keys changed, or taken away where they are None."""
    data = json.loads((directory / "config.json").read_text()) | changes
    data = {k: v for k, v in data.items() if v is not None}
    (directory / "config.json").write_text(json.dumps(data))


@pytest.fixture
def card(tiny):
    return ModelCard(model=tiny(), preprocess=Preprocess(size=64, crop=0.9), classes=CLASSES)


def test_a_card_comes_back_from_its_directory(tmp_path, card):
    card.save(tmp_path)

    assert ModelCard.load(tmp_path) == card


def test_a_card_in_gray_comes_back_from_its_directory(tmp_path, ablated):
    preprocess = Preprocess(size=48, crop=1, mode="squash", interpolation="nearest", mean=(0.1,),
                            std=(0.3,))
    card = ModelCard(model=ablated, preprocess=preprocess, classes=("a", "b", "c", "\N{SNOWMAN}"))

    card.save(tmp_path)

    assert ModelCard.load(tmp_path) == card


@pytest.mark.parametrize(("changes", "message"), [
    ({"classes": CLASSES[:9]}, "9 class names for a classifier of 10"),
    ({"classes": "abcdefghij"}, "classes='abcdefghij' must be of type"),
    ({"classes": tuple(range(10))}, "classes="),
    ({"preprocess": Preprocess(size=64, mean=(0.5,), std=(0.5,))}, "1 channels.*in_chans=3"),
    ({"preprocess": Preprocess(size=2)}, "2x2 pixels leaves stage 1 without tokens"),
    ({"preprocess": None}, "preprocess=None"),
])
def test_parts_that_do_not_fit_together_are_rejected(tiny, changes, message):
    with pytest.raises(InputError, match=message):
        ModelCard(**{"model": tiny(), "preprocess": Preprocess(size=64), "classes": CLASSES,
                     **changes})


@pytest.mark.parametrize(("changes", "message"), [
    ({"weights": "x"}, "unknown key 'weights'"),
    ({"clases": ["a"]}, "unknown key 'clases'; did you mean classes"),
    ({"model": {"stages": [], "depth": 3}}, "unknown key 'depth'"),
    ({"preprocess": {"sise": 64}}, "unknown key 'sise'; did you mean size"),
    ({"model": []}, "is not a list of stages"),
    ({"preprocess": 3}, "preprocess is 3, not a mapping"),
    ({"model": None}, "stages=None is not a list of stages"),
    ({"preprocess": None}, "lacks the key 'preprocess'"),
    ({"classes": None}, "lacks the key 'classes'"),
    ({"classes": 3}, "classes=3"),
])
def test_a_corrupt_card_is_rejected_with_its_file(tmp_path, card, changes, message):
    card.save(tmp_path)
    write_card(tmp_path, **changes)

    with pytest.raises(InputError, match=message) as error:
        ModelCard.load(tmp_path)

    assert str(error.value).startswith(str(tmp_path / "config.json"))
    assert "\n" not in str(error.value)


def test_a_directory_without_a_card_is_no_model(tmp_path):
    with pytest.raises(InputError, match=r"has no config\.json; give a directory written by"):
        ModelCard.load(tmp_path)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_is_found_by_its_name(name):
    assert find_config(name) is VARIANTS[name]


@pytest.mark.parametrize("suffix", [".json", ".yaml", ".yml"])
def test_a_config_is_found_by_its_file(tmp_path, ablated, suffix):
    ablated.save(tmp_path / f"model{suffix}")

    assert find_config(str(tmp_path / f"model{suffix}")) == ablated


def test_a_config_is_found_in_an_official_file(tmp_path):
    spec = {"NUM_STAGES": 1, "DIM_EMBED": [8], "NUM_HEADS": [2], "DEPTH": [3]}
    (tmp_path / "cvt.yaml").write_text(yaml.safe_dump({"MODEL": {"SPEC": spec}}))

    (stage,) = find_config(str(tmp_path / "cvt.yaml")).stages

    assert (stage.dim, stage.num_heads, stage.depth) == (8, 2, 3)


def test_a_config_is_found_in_the_directory_of_a_model(tmp_path, card):
    card.save(tmp_path)

    assert find_config(str(tmp_path)) == card.model


@pytest.mark.parametrize(("name", "message"), [
    ("cvt13", "did you mean cvt_13"), ("resnet", "choose from cvt_13, cvt_21, cvt_w24, cvt_nano"),
    ("absent.yaml", "absent.yaml does not exist"),
])
def test_a_name_that_stands_for_no_config_is_rejected(name, message):
    with pytest.raises(InputError, match=message):
        find_config(name)
