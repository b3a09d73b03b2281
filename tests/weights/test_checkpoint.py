"""Checkpoints of every format as the library's own objects."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import save_file

from cvt.config import VARIANTS, Preprocess
from cvt.model import CvT
from cvt.system.errors import InputError
from cvt.weights import huggingface, timm
from cvt.weights.card import ModelCard
from cvt.weights.checkpoint import build, read_checkpoint
from cvt.weights.names import FROM_NATIVE, rename
from cvt.weights.tensors import write_tensors

CLASSES = tuple("abcdefghij")


@pytest.fixture
def portable(tiny, shaken):
    """A model that every format can hold."""
    return shaken(CvT(tiny(depths=(1, 2, 3)))).eval()


def card_of(model, **preprocess):
    return ModelCard(model=model.config, preprocess=Preprocess(size=64, **preprocess),
                     classes=CLASSES)


def huggingface_directory(directory, model, card):
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(huggingface.config_json(card)))
    (directory / "preprocessor_config.json").write_text(
        json.dumps(huggingface.preprocessor_json(card.preprocess)))
    save_file({rename(n, FROM_NATIVE["huggingface"]): t for n, t in model.state_dict().items()},
              directory / "model.safetensors")
    return directory


@pytest.mark.parametrize("preprocess", [
    {"crop": 0.875}, {"crop": 0.9, "interpolation": "bilinear"}, {"mode": "squash", "crop": 1.0},
    {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}])
@pytest.mark.parametrize("size", [64, 384])
def test_preprocessing_survives_the_files_of_transformers(tmp_path, preprocess, size):
    ours = Preprocess(size=size, **preprocess)
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps(huggingface.preprocessor_json(ours)))

    back = huggingface.read_preprocess(tmp_path)

    assert (back.size, back.resize, back.mode) == (ours.size, ours.resize, ours.mode)
    assert (back.mean, back.std, back.interpolation) == (ours.mean, ours.std, ours.interpolation)


@pytest.mark.parametrize("data", [
    {"size": 224, "feature_extractor_type": "ConvNextFeatureExtractor", "crop_pct": 0.875},
    {"size": {"shortest_edge": 224}, "image_processor_type": "ConvNextImageProcessor"},
    {"size": {"shortest_edge": 224}, "image_processor_type": "ConvNextImageProcessorFast"}])
def test_preprocessing_of_older_files_is_read(tmp_path, data):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(data))

    assert huggingface.read_preprocess(tmp_path) == Preprocess(size=224, crop=0.875)


def test_preprocessing_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "preprocessor_config.json").write_text('{"size": {"longest_edge": 9}}')

    with pytest.raises(InputError, match=r"preprocessor_config\.json has .*longest_edge"):
        huggingface.read_preprocess(tmp_path)


def test_a_directory_of_transformers_computes_gelu_by_default(tmp_path, portable):
    card = card_of(portable)
    directory = huggingface_directory(tmp_path / "hf", portable, card)
    written = json.loads((directory / "config.json").read_text())

    assert read_checkpoint(directory).card == card  # ours: it says quick_gelu
    for change, act in (({"trained_act": None}, "gelu"), ({"transformers_version": "5.0"}, "gelu")):
        (directory / "config.json").write_text(json.dumps({**written, **change}))
        checkpoint = read_checkpoint(directory)
        assert checkpoint.card.model.act == act
        assert "GELU" in checkpoint.notes[0]
        assert read_checkpoint(directory, act="quick_gelu").card.model.act == "quick_gelu"


def test_an_activation_that_was_asked_for_hides_no_other_note(tmp_path, portable):
    """A trunk of transformers lacks the last norm, whatever it is to compute."""
    trunk = {n: t for n, t in portable.state_dict().items() if not n.startswith(("norm", "head"))}
    directory = huggingface_directory(tmp_path / "hf", portable, card_of(portable))
    write_tensors({rename(n, FROM_NATIVE["huggingface"]): t for n, t in trunk.items()},
                  directory / "model.safetensors")

    notes = read_checkpoint(directory, act="gelu").notes

    assert [note.split(",")[0] for note in notes] == [
        "a CvtModel of transformers has no final norm; a new one was added", "act=gelu is used"]


@pytest.mark.parametrize(("change", "message"), [
    ({"embed_dim": 64}, "embed_dim=64, which is not a list"),
    ({"depth": 3}, "depth=3, which is not a list"),
    ({"num_heads": [1, 2]}, r"num_heads=\[1, 2\], which is not a list of one entry for each stage"),
    ({"qkv_projection_method": ["avg"] * 3}, "qkv_projection_method"),
    ({"id2label": {"one": "cat"}}, "id2label whose keys"),
    ({"depth": [1, 1, "3"]}, "depth='3' must be of type int"),
    ({"model_type": "vit"}, "of a 'vit' model"),
])
def test_a_config_of_transformers_that_makes_no_sense_is_rejected(tmp_path, portable, change,
                                                                message):
    directory = huggingface_directory(tmp_path / "hf", portable, card_of(portable))
    written = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**written, **change}))

    with pytest.raises(InputError, match=message):
        read_checkpoint(directory)


def test_what_the_port_cannot_run_is_not_written_for_it(tiny):
    for config in (tiny(depths=(1, 1, 3)), tiny(depths=(1, 2, 3), every={"pos_embed": True}),
                   tiny(depths=(1, 2, 3), every={"projection": "avg"}),
                   tiny(depths=(1, 2, 3), last={"cls_token": False}),
                   tiny(depths=(1, 2, 3), last={"stride_kv": (1, 2, 2)}),
                   tiny(depths=(1, 2, 3), last={"mlp_ratio": (2.0, 4.0, 4.0)})):
        with pytest.raises(InputError, match="use --to native, which supports every network"):
            huggingface.config_json(card_of(CvT(config)))


@pytest.mark.parametrize("preprocess", [{}, {"mode": "squash", "crop": 1.0}])
def test_any_network_survives_the_files_of_timm(tmp_path, tiny, ablated, preprocess):
    ablated = dataclasses.replace(ablated, init="trunc_norm")  # how it began, it does not say
    mixed = tiny(last={"stride_kv": (1, 2), "mlp_ratio": (2.0, 4.0)})
    for config, classes in ((tiny(), CLASSES), (mixed, CLASSES), (ablated, ("a", "b", "c", "d"))):
        mean = (0.5,) * config.in_chans
        card = ModelCard(model=config, classes=classes, preprocess=Preprocess(
            size=64, mean=mean, std=mean, **preprocess))
        assert timm.read_card(tmp_path, json.loads(json.dumps(timm.config_json(card)))) == card


def test_a_directory_of_timm_with_another_architecture_is_rejected(tmp_path):
    with pytest.raises(InputError, match=r"architecture='cvt_31', .*did you mean cvt_"):
        timm.read_card(tmp_path, {"architecture": "cvt_31"})


def test_a_bare_file_is_known_by_its_shapes(tmp_path, shaken):
    model = shaken(CvT(VARIANTS["cvt_nano"]))
    model.reset_classifier(3)
    torch.save(model.state_dict(), tmp_path / "mine.pth")

    checkpoint = read_checkpoint(tmp_path / "mine.pth")

    assert checkpoint.card.model.stages == VARIANTS["cvt_nano"].stages
    assert checkpoint.card.classes == ("0", "1", "2")
    assert not checkpoint.has_class_names


def test_a_checkpoint_says_whether_it_names_its_classes(tmp_path, portable):
    card = card_of(portable)
    numbered = dataclasses.replace(card, classes=tuple("0123456789"))
    unnamed = dataclasses.replace(card, classes=tuple(f"LABEL_{i}" for i in range(10)))
    for i, (own, named) in enumerate(((card, True), (numbered, True), (unnamed, False))):
        directory = huggingface_directory(tmp_path / f"theirs{i}", portable, own)
        assert read_checkpoint(directory).has_class_names is named
    for i, gone in enumerate(((), ("label_names",))):
        home = tmp_path / f"timm{i}"
        home.mkdir()
        data = {k: v for k, v in timm.config_json(numbered).items() if k not in gone}
        (home / "config.json").write_text(json.dumps(data))
        write_tensors(portable.state_dict(), home / "model.safetensors")
        assert read_checkpoint(home).card.classes == numbered.classes
        assert read_checkpoint(home).has_class_names is not bool(gone)


def test_a_bare_file_of_no_variant_needs_its_configuration(tmp_path, portable):
    torch.save(portable.state_dict(), tmp_path / "mine.pth")
    with pytest.raises(InputError, match="of no known variant"):
        read_checkpoint(tmp_path / "mine.pth")

    portable.config.save(tmp_path / "config.yaml")
    checkpoint = read_checkpoint(tmp_path / "mine.pth", config=str(tmp_path / "config.yaml"))

    assert checkpoint.card.model == portable.config


def test_a_built_model_does_not_share_memory_between_parameters(tmp_path, portable):
    tensors = portable.state_dict()
    tensors["norm.weight"] = tensors["norm.bias"] = torch.ones(24)
    torch.save(tensors, tmp_path / "w.pth")

    model, _ = build(read_checkpoint(tmp_path / "w.pth", config=portable.config))
    with torch.no_grad():
        model.norm.weight.fill_(5)

    assert (model.norm.bias == 1).all()


def test_training_a_loaded_model_leaves_its_file_alone(tmp_path, portable):
    """Its parameters are the file, mapped into memory; what is written to them stays private."""
    save_file(portable.state_dict(), tmp_path / "w.safetensors")
    before = (tmp_path / "w.safetensors").read_bytes()

    model, _ = build(read_checkpoint(tmp_path / "w.safetensors", config=portable.config))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)

    assert (tmp_path / "w.safetensors").read_bytes() == before
    assert all(p.requires_grad for p in model.parameters())


def test_a_directory_with_two_unnamed_files_asks_which(tmp_path, portable):
    for name in ("a.pth", "b.pth"):
        torch.save(portable.state_dict(), tmp_path / name)

    with pytest.raises(InputError, match=r"2 files of weights \(a\.pth"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize(("file", "change", "message"), [
    ("config.json", {"num_labels": 10**12, "id2label": None}, "num_labels=1000000000000"),
    ("config.json", {"num_labels": "a", "id2label": None}, "num_labels='a'"),
    ("config.json", {"num_channels": 10**12}, "num_channels=1000000000000"),
    ("config.json", {"num_channels": "3"}, "num_channels='3'"),
    ("config.json", {"num_channels": 2.0}, "num_channels=2.0"),
    ("config.json", {"num_channels": None}, "num_channels=None"),
    ("config.json", {"qkv_projection_method": [{}, {}, {}]}, "qkv_projection_method"),
    ("config.json", {"depth": [1, 2, 10**9]}, "depth=1000000000 must be at most"),
    ("config.json", {"depth": [1, 2, 90_000]}, "too few for the 90003 blocks"),
    ("config.json", {"embed_dim": [8, 16, 3 * 2**60]}, "must be at most"),
    ("config.json", {"mlp_ratio": [4.0, 4.0, 1e300]}, "mlp_ratio=1e[+]300 must be at most"),
    ("config.json", {"patch_sizes": [7, 3, 2**40 + 1]}, "must be at most"),
    ("preprocessor_config.json", {"image_mean": ["a"]}, "cannot be read"),
    ("preprocessor_config.json", {"image_mean": 3}, "cannot be read"),
    ("preprocessor_config.json", {"resample": [1]}, "cannot be read"),
    ("preprocessor_config.json", {"resample": 5}, r"'resample': 5.*0 \(nearest\), 1 \(lanczos\)"),
    ("preprocessor_config.json", {"size": {"shortest_edge": 10**12}}, "must be at most"),
    ("preprocessor_config.json", {"do_center_crop": True, "size": 0, "crop_size": 8},
     "cannot be read")])
def test_a_strangers_configuration_fills_no_memory(tmp_path, portable, file, change, message):
    directory = huggingface_directory(tmp_path / "hf", portable, card_of(portable))
    written = json.loads((directory / file).read_text())
    (directory / file).write_text(json.dumps({**written, **change}))

    with pytest.raises(InputError, match=message) as error:
        build(read_checkpoint(directory))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a": ' + "9" * 5000 + "}", '{"a": NaN'])
def test_a_config_that_breaks_parsers_is_rejected(tmp_path, portable, text):
    directory = huggingface_directory(tmp_path / "hf", portable, card_of(portable))
    (directory / "config.json").write_text(text)

    with pytest.raises(InputError, match=r"config\.json cannot be read"):
        read_checkpoint(directory)


def test_timm_classes_without_number_are_rejected(tmp_path):
    with pytest.raises(InputError, match="num_classes=1000000000000 must be at most"):
        timm.read_card(tmp_path, {"architecture": "cvt_nano", "num_classes": 10**12})
