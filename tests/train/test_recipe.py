from itertools import combinations, product
from pathlib import Path

import pytest
import yaml

from cvt.config import VARIANTS, Preprocess
from cvt.data.sources.builtin import digits
from cvt.system.errors import InputError
from cvt.train.config import OptimConfig
from cvt.train.recipe import Recipe
from cvt.train.setup import resolve_model
from cvt.zoo import ZOO, imagenet_classes

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
    config = Recipe(in_chans=1, image_size=48, drop_path_rate=0.3).card(tuple("1234567")).model
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
    config = Recipe(model=str(tmp_path / "mine.yaml")).card(
        imagenet_classes(), Preprocess(size=224)).model
    assert config == VARIANTS["cvt_21"]


def test_one_channel_averages_the_statistics():
    preprocess = Recipe(in_chans=1).card(
        ("a",), Preprocess(mean=(0.1, 0.2, 0.3))).preprocess
    assert preprocess.mean == pytest.approx((0.2,))
    assert preprocess.channels == 1


@pytest.mark.parametrize(("values", "message"), [
    ({"model": "cvt_1"}, "did you mean cvt_"),
    ({"model": "absent.yaml"}, "absent.yaml does not exist"),
    ({"image_size": 0}, "image"),
    ({"batch_size": 10, "optim": OptimConfig(grad_accum_steps=3)}, "divisor"),
    ({"epochs": 0}, "epochs=0"),
    ({"ema": 1.0}, "ema"),
    ({"epochs": 2}, "warmup_epochs=2.0 leaves nothing of epochs=2"),
    ({"passes_per_epoch": 0}, "passes_per_epoch=0"),
    ({"network": "vit", "weights": "runs/a"}, "network=vit starts from random weights"),
    ({"network": "resnet", "sync_batchnorm": True}, "leave out weights, freeze, sync_batchnorm"),
    ({"network": "vit", "optim": OptimConfig(layer_decay=0.5)}, "and optim.layer_decay"),
    ({"network": "supernet", "compile": True}, "network=supernet .* leave out compile"),
    ({"compile": True, "grad_checkpointing": True}, "exclude each other"),
])
def test_recipes_that_cannot_be_carried_out_are_rejected(values, message):
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


# One option at a time, as a part of a recipe; `weights` are what freezing needs.
OPTIONS = {
    "sgd": {"optim": {"name": "sgd"}}, "muon": {"optim": {"name": "muon"}},
    "momentum": {"optim": {"momentum": 0.95}}, "betas": {"optim": {"betas": (0.8, 0.9)}},
    "weight_decay": {"optim": {"weight_decay": 0.3}}, "clip_grad": {"optim": {"clip_grad": 1.0}},
    "layer_decay": {"optim": {"layer_decay": 0.7}},
    "grad_accum_steps": {"optim": {"grad_accum_steps": 4}},
    "constant": {"optim": {"schedule": "constant"}}, "min_lr": {"optim": {"min_lr": 1e-4}},
    "warmup_steps": {"optim": {"warmup_steps": 9}}, "warmup_lr": {"optim": {"warmup_lr": 1e-4}},
    "teacher": {"distill": {"teacher": "runs/a"}},
    "hard": {"distill": {"teacher": "runs/a", "hard": True}},
    "temperature": {"distill": {"temperature": 2.0}}, "share": {"distill": {"alpha": 1.0}},
    "mixup": {"augment": {"mixup": 0.8}}, "cutmix": {"augment": {"cutmix": 1.0}},
    "mix_prob": {"augment": {"mix_prob": 0.5}}, "repeats": {"augment": {"repeats": 3}},
    "smoothing": {"augment": {"label_smoothing": 0.1}}, "hflip": {"augment": {"hflip": 0.5}},
    "resized": {"augment": {"crop": "resized"}}, "scale": {"augment": {"scale": (0.5, 1.0)}},
    "color_jitter": {"augment": {"color_jitter": 0.4}}, "erasing": {"augment": {"erasing": 0.25}},
    "rand_augment": {"augment": {"rand_augment": "rand-m9-mstd0.5-inc1"}},
    "class_weights": {"class_weights": "balanced"}, "sampling": {"sampling": "balanced"},
    "max_train_samples": {"max_train_samples": 100},
    "passes_per_epoch": {"passes_per_epoch": 2}, "ema": {"ema": 0.99},
    "patience": {"patience": 3}, "best_by": {"best_by": "val_recall"}, "steps": {"steps": 50},
    "weights": {"weights": "runs/b"},
    "backbone": {"weights": "runs/b", "freeze": {"backbone": True}},
    "stages": {"weights": "runs/b", "freeze": {"stages": 1}},
    "batchnorm": {"weights": "runs/b", "freeze": {"batchnorm": True}},
    "drop_path_rate": {"drop_path_rate": 0.2}, "checkpointing": {"grad_checkpointing": True},
    "compile": {"compile": True}, "sync_batchnorm": {"sync_batchnorm": True},
    "bf16": {"precision": "bf16"}, "gray": {"in_chans": 1},
    "vit": {"network": "vit"}, "resnet": {"network": "resnet"}, "supernet": {"network": "supernet"},
}
# What has no effect without another option, and by which it has.
NEEDS = {"momentum": {"sgd", "muon"}, "temperature": {"teacher"}, "share": {"teacher", "hard"},
         "mix_prob": {"mixup", "cutmix"}, "scale": {"resized"},
         "repeats": {"mixup", "cutmix", "hflip", "resized", "color_jitter", "erasing",
                     "rand_augment"}}
# Pairs of options that each can be given alone.
REJECTED = {frozenset(pair) for pair in [
    ("sampling", "class_weights"), ("sgd", "betas"), ("constant", "min_lr"),
    ("rand_augment", "color_jitter"), ("compile", "checkpointing"), ("compile", "supernet"),
    ("resnet", "muon"), ("resnet", "checkpointing"), ("batchnorm", "sync_batchnorm"),
    *product(["backbone"], ["layer_decay", "muon", "drop_path_rate", "checkpointing",
                         "sync_batchnorm"]),
    *product(["vit", "resnet", "supernet"], ["weights", "backbone", "stages", "batchnorm",
                                             "layer_decay", "sync_batchnorm"])]}


def joined(*names):
    """The recipe of some options; of two values of one option the later holds."""
    plain = {}
    for name in names:
        for key, value in OPTIONS[name].items():
            plain[key] = {**plain.get(key, {}), **value} if isinstance(value, dict) else value
    return Recipe.from_dict(plain)


def test_any_two_options_build_or_are_rejected_in_one_line():
    rejected = {}
    for names in combinations(OPTIONS, 2):
        try:
            joined(*names)
        except InputError as error:
            rejected[frozenset(names)] = str(error)
    without = {frozenset((name, other)) for name, by in NEEDS.items()
               for other in OPTIONS.keys() - by - {name}}
    assert rejected.keys() == REJECTED | without
    assert not any("\n" in line for line in rejected.values())


@pytest.mark.parametrize("name", NEEDS)
def test_an_option_that_needs_another_is_rejected_alone(name):
    with pytest.raises(InputError, match=r"has no effect|is for crop='resized' alone"):
        joined(name)
    for other in NEEDS[name]:
        joined(name, other)


@pytest.mark.parametrize(("values", "message"), [
    ({"sampling": "balanced", "class_weights": "balanced"}, "rare classes twice; choose one"),
    ({"optim": {"momentum": 0.95}}, r"momentum=0\.95 has no effect, .* betas .* default, 0\.9"),
    ({"optim": {"name": "sgd", "betas": (0.8, 0.9)}}, r"betas=\(0\.8, 0\.9\) has no effect"),
    ({"optim": {"schedule": "constant", "min_lr": 1e-4}}, "min_lr=0.0001 has no effect"),
    ({"distill": {"hard": True}}, r"hard=True has no effect, because there is no distill\.teacher"),
    ({"distill": {"teacher": "a", "hard": True, "temperature": 2.0}}, "any temperature the same"),
    ({"distill": {"teacher": "a", "alpha": 1.0}, "augment": {"label_smoothing": 0.1}},
     r"removes the labels from the loss, so augment\.label_smoothing=0\.1 has no effect"),
    ({"augment": {"mix_prob": 0.5}}, "augment.mixup and augment.cutmix are both 0"),
    ({"augment": {"repeats": 3}}, "repeats of an image are equal"),
    ({"weights": "a", "freeze": {"backbone": True}, "drop_path_rate": 0.1},
     r"freeze\.backbone trains no stage, so drop_path_rate=0\.1 has no effect"),
    ({"weights": "a", "freeze": {"batchnorm": True}, "sync_batchnorm": True},
     "so sync_batchnorm has no effect"),
    ({"network": "resnet", "grad_checkpointing": True}, "count every batch twice"),
    ({"network": "resnet", "optim": {"name": "muon"}}, "would train nothing by Muon"),
])
def test_two_options_that_mean_something_else_together_are_rejected(values, message):
    with pytest.raises(InputError, match=message):
        Recipe.from_dict(values)


def test_stochastic_depth_needs_a_second_block(tmp_path, tiny):
    tiny(depths=(1, 1, 1)).save(tmp_path / "flat.json")
    flat = {"model": str(tmp_path / "flat.json"), "drop_path_rate": 0.2}
    with pytest.raises(InputError, match=r"drop_path_rate=0\.2 increases from 0 in the first"):
        Recipe(**flat)
    assert Recipe(**flat, network="vit").drop_path_rate == 0.2
    Recipe(model=flat["model"], drop_path_rate=0.0)


def test_a_rate_that_stays_needs_no_floor_below_it():
    assert OptimConfig(lr=1e-6, schedule="constant").min_lr == 1e-5


@pytest.mark.parametrize("values", [{"grad_checkpointing": True}, {"optim": {"layer_decay": 0.7}}])
def test_frozen_stages_are_all_of_them_where_the_weights_have_no_more(teacher, values):
    plain = {"weights": str(teacher), **values}
    resolve_model(Recipe.from_dict({**plain, "freeze": {"stages": 1}}), digits())
    with pytest.raises(InputError, match=r"freeze\.stages=2 trains no stage, so .* no effect"):
        resolve_model(Recipe.from_dict({**plain, "freeze": {"stages": 2}}), digits())
