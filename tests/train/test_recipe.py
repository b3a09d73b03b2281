from pathlib import Path

import pytest
import yaml

from cvt.config import VARIANTS, Preprocess
from cvt.errors import InputError
from cvt.train.config import OptimConfig
from cvt.train.recipe import Recipe
from cvt.zoo import ZOO

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))


def test_a_recipe_survives_its_yaml_file(tmp_path):
    recipe = Recipe(model="cvt_13", optim=OptimConfig(lr=1e-5, betas=(0.8, 0.9)), image_size=96)
    recipe.save(tmp_path / "recipe.yaml")
    assert Recipe.load(tmp_path / "recipe.yaml") == recipe


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_shipped_recipes_say_where_they_come_from(path):
    top = [line for line in path.read_text().splitlines() if line.startswith("#")]
    for word in ("command", "cost", "expected"):
        assert any(word in line for line in top)
    assert f"recipes/{path.name}" in path.read_text()
    plain = yaml.safe_load(path.read_text())
    assert plain.get("model") in VARIANTS or plain["weights"] in ZOO or (
        plain["weights"] == "runs/cvt_w24_shards")  # of the recipe for ImageNet-22k
    Recipe.from_dict(plain)


def test_the_model_takes_classes_channels_size_and_stochastic_depth_from_the_recipe():
    config = Recipe(in_chans=1, image_size=48, drop_path_rate=0.3).config(num_classes=7)
    assert (config.num_classes, config.in_chans, config.image_size) == (7, 1, 48)
    assert [s.drop_path_rate for s in config.stages] == [0, 0, 0.3]


def test_a_baseline_has_a_directory_of_its_own(tmp_path):
    VARIANTS["cvt_nano"].save(tmp_path / "mine.yaml")
    model = str(tmp_path / "mine.yaml")
    assert Recipe(model=model).label == "mine"
    assert Recipe(model=model, network="vit").label == "mine_vit"
    assert Recipe(network="resnet").label == "cvt_nano_resnet"


def test_a_configuration_file_can_stand_for_the_model(tmp_path):
    VARIANTS["cvt_21"].save(tmp_path / "mine.yaml")
    config = Recipe(model=str(tmp_path / "mine.yaml")).config(num_classes=1000, size=224)
    assert config == VARIANTS["cvt_21"]


def test_one_channel_averages_the_statistics():
    preprocess = Recipe(in_chans=1).preprocess(Preprocess(mean=(0.1, 0.2, 0.3)))
    assert preprocess.mean == pytest.approx((0.2,))
    assert preprocess.channels == 1


@pytest.mark.parametrize(("values", "message"), [
    ({"model": "cvt_1"}, "did you mean cvt_"),
    ({"model": "absent.yaml"}, "absent.yaml is not there"),
    ({"image_size": 0}, "image"),
    ({"batch_size": 10, "optim": OptimConfig(accumulate=3)}, "divisor"),
    ({"epochs": 0}, "epochs=0"),
    ({"ema": 1.0}, "ema"),
    ({"epochs": 2}, "warmup_epochs=2.0 leaves nothing of epochs=2"),
    ({"passes": 0}, "passes=0"),
    ({"network": "vit", "weights": "runs/a"}, "network=vit starts from random weights"),
    ({"network": "resnet", "sync_batchnorm": True}, "leave out weights, freeze, sync_batchnorm"),
    ({"network": "vit", "optim": OptimConfig(layer_decay=0.5)}, "and optim.layer_decay"),
    ({"network": "supernet", "compile": True}, "network=supernet .* leave out compile"),
    ({"compile": True, "grad_checkpointing": True}, "do not go together"),
])
def test_recipes_that_cannot_be_carried_out_are_refused(values, message):
    with pytest.raises(InputError, match=message):
        Recipe(**values)


def test_an_unknown_key_names_the_nearest():
    with pytest.raises(InputError, match="did you mean epochs"):
        Recipe.from_dict({"epoch": 3})
    with pytest.raises(InputError, match="did you mean lr"):
        Recipe.from_dict({"optim": {"lrr": 3}})


@pytest.mark.parametrize("name", ["warmup_lr", "min_lr"])
def test_a_schedule_does_not_climb_above_its_peak(name):
    with pytest.raises(InputError, match=f"{name}=0.1 is above lr=0.01"):
        OptimConfig(lr=0.01, **{name: 0.1})
