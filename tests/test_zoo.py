import dataclasses

import pytest
import torch

from cvt.config import VARIANTS, Preprocess
from cvt.model import CvT, QuickGELU
from cvt.system.errors import InputError
from cvt.weights.models import create_model, load_model, save_model
from cvt.weights.names import FROM_NATIVE, rename
from cvt.zoo import ZOO, imagenet_classes, list_models, shipped

MICROSOFTS = {tag: row for tag, row in ZOO.items() if row.repo}


def with_stages(config, **changes):
    return dataclasses.replace(config, stages=tuple(
        dataclasses.replace(stage, **changes) for stage in config.stages))


@pytest.fixture
def nano(tmp_path, shaken):
    """The directory of a cvt_nano of two classes."""
    model = shaken(CvT(VARIANTS["cvt_nano"]))
    model.reset_classifier(2)
    save_model(tmp_path / "nano", model, Preprocess(size=32, crop=1.0), ("cat", "dog"))
    return tmp_path / "nano"


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    """An untrained CvT-13 as the official release would hold it."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("official") / "CvT-13-384x384-IN-1k.pth"
    torch.save({rename(n, FROM_NATIVE["official"]): t
                for n, t in CvT(VARIANTS["cvt_13"]).state_dict().items()}, path)
    return path


def test_every_row_names_a_variant_and_its_tag():
    for tag, row in ZOO.items():
        assert tag.split(".")[0] == row.variant
        assert (row.repo is None) == (shipped(tag) is not None) == (row.variant == "cvt_nano")
    for tag, row in MICROSOFTS.items():
        assert row.repo.startswith("microsoft/cvt-")
        assert tag.endswith("_384") == (row.size == 384) == ("384" in row.repo)
        assert ("22k" in row.repo) == ("22k" in tag) == ("22k" in row.file)
        assert ("imagenet-21k" in row.trained_on) == ("22k" in tag)
        assert abs(row.paper_top1 - row.measured_top1) < 0.2
        assert row.act == "quick_gelu"


def test_preprocessing_is_the_papers():
    assert ZOO["cvt_13.msft_in1k"].preprocess == Preprocess(size=224, crop=0.875)
    assert ZOO["cvt_21.msft_in1k_384"].preprocess == Preprocess(size=384, crop=1.0, mode="squash")


def test_models_are_listed_by_pattern():
    assert set(list_models()) == set(VARIANTS) | set(ZOO)
    assert list_models("cvt_w24*") == ["cvt_w24", "cvt_w24.msft_in22k_ft_in1k_384"]
    assert list_models("vit*") == []


def test_a_variant_is_created_untrained():
    model = create_model("cvt_nano", num_classes=3, in_chans=4, act="gelu")

    assert model(torch.randn(1, 4, 32, 32)).shape == (1, 3)
    assert (model.config.act, model.training, model.load_report) == ("gelu", False, None)


def test_a_configuration_file_is_created(tmp_path, tiny):
    tiny().save(tmp_path / "mine.yaml")

    assert create_model(str(tmp_path / "mine.yaml")).config == tiny()


def test_a_configuration_file_decides_the_network_of_the_weights(tmp_path, nano):
    changed = with_stages(VARIANTS["cvt_nano"], stride_kv=1, drop_path_rate=0.2)
    changed.save(tmp_path / "mine.yaml")

    model = create_model(str(tmp_path / "mine.yaml"), weights=nano)

    assert model.config == dataclasses.replace(changed, num_classes=2)
    torch.testing.assert_close(model.state_dict(), load_model(nano)[0].state_dict(), rtol=0, atol=0)
    with_stages(changed, projection="avg").save(tmp_path / "other.yaml")
    with pytest.raises(InputError, match=r"126 unexpected \(stages\.0\.blocks\.0\.attn\.k\.bn"):
        create_model(str(tmp_path / "other.yaml"), weights=nano)


@pytest.mark.parametrize(("name", "message"), [
    ("cvt13", "did you mean cvt_13"), ("cvt_13.msft_in22k", "did you mean cvt_13.msft_in"),
    ("resnet50", "there is no model 'resnet50'; choose from cvt_13")])
def test_an_unknown_name_is_met_with_the_nearest(name, message):
    with pytest.raises(InputError, match=message):
        create_model(name)


@pytest.mark.parametrize("source", ["cvt_13.msft", "no_such_run"])
def test_a_source_that_is_nothing_is_named(source):
    with pytest.raises(InputError, match=source):
        load_model(source)


def test_an_official_file_is_known_by_its_name(official):
    model, card = load_model(official)

    assert card.preprocess == ZOO["cvt_13.msft_in1k_384"].preprocess
    assert card.classes == imagenet_classes()
    assert isinstance(model.stages[0].blocks[0].mlp.act, QuickGELU)


def test_a_tag_says_what_a_renamed_file_is(official, tmp_path):
    (tmp_path / "mine.pth").symlink_to(official)

    model = create_model("cvt_13.msft_in1k", weights=tmp_path / "mine.pth")

    assert model.config.image_size == 224
    assert model.load_report.format == "official"


def test_weights_of_another_variant_are_rejected(official, nano):
    with pytest.raises(InputError, match="not a checkpoint of this architecture"):
        create_model("cvt_21.msft_in1k", weights=official)
    with pytest.raises(InputError, match="weights of cvt_nano, not of cvt_13; create that one"):
        create_model("cvt_13", weights=nano)


def test_a_new_head_and_other_channels_are_reported(nano):
    whole, _ = load_model(nano)

    model = create_model("cvt_nano", weights=nano, num_classes=5, in_chans=1)

    assert model(torch.randn(2, 1, 32, 32)).shape == (2, 5)
    assert torch.equal(model.stages[2].cls_token, whole.stages[2].cls_token)
    report = model.load_report
    assert set(report.missing) == set(report.skipped) == {"head.weight", "head.bias"}
    assert report.adapted == {"stages.0.embed.conv.weight": "32x3x3x3 to 32x1x3x3"}
    assert not any(p.is_meta for p in model.parameters())
    assert model.head.weight.std() > 0


def test_a_head_that_is_kept_for_its_number_of_classes_is_reported(nano):
    model = create_model("cvt_nano", weights=nano, num_classes=2)

    assert torch.equal(model.head.weight, load_model(nano)[0].head.weight)
    assert "num_classes=2 equals that of the checkpoint, so its head is kept" in str(
        model.load_report)
    assert "equals that" not in str(create_model("cvt_nano", weights=nano).load_report)


def test_a_head_is_taken_away(nano):
    model = create_model("cvt_nano", weights=nano, num_classes=0)

    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 128)


def test_an_activation_is_overridden(nano):
    assert create_model("cvt_nano", weights=nano).config.act == "quick_gelu"
    model = create_model("cvt_nano", weights=nano, act="gelu")
    assert isinstance(model.stages[0].blocks[0].mlp.act, torch.nn.GELU)


def test_a_model_is_in_evaluation_mode_and_can_be_trained_on(nano):
    model = create_model("cvt_nano", weights=nano)
    assert not model.training

    model.train()(torch.randn(2, 3, 32, 32)).sum().backward()

    assert all(p.grad is not None for p in model.parameters())


def test_imagenet_has_a_thousand_names_in_the_order_of_the_logits():
    names = imagenet_classes()

    assert len(names) == 1000
    assert (names[0], names[207], names[999]) == (
        "tench, Tinca tinca", "golden retriever", "toilet tissue, toilet paper, bathroom tissue")
