import itertools

import pytest
import torch
import yaml
from timm.models import load_state_dict

from cvt.cli import main
from cvt.config import VARIANTS, Preprocess
from cvt.model import CvT
from cvt.system.errors import InputError
from cvt.weights.card import ModelCard
from cvt.weights.convert import convert
from cvt.weights.models import load_model, save_model
from cvt.weights.official import from_official_yaml
from cvt.weights.tensors import read_tensors

pytestmark = pytest.mark.slow

CLASSES = tuple("abcdefghij")
FORMATS = ("native", "official", "huggingface", "timm")


@pytest.fixture
def source(tmp_path, tiny, shaken):
    """A directory of ours whose network every format can hold."""
    model = shaken(CvT(tiny(depths=(1, 2, 3), image_size=32)))
    save_model(tmp_path / "source", model, Preprocess(size=32, crop=0.9), CLASSES)
    return tmp_path / "source"


def place(directory, to, name="x"):
    return directory / (f"{name}.pth" if to == "official" else f"{name}_{to}")


def assert_same(path, source):
    one, other = load_model(path)[0], load_model(source)[0]
    assert one.config == other.config
    torch.testing.assert_close(one.state_dict(), other.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize(("first", "second"), list(itertools.product(FORMATS, FORMATS)))
def test_every_format_goes_to_every_other_and_nothing_changes(tmp_path, source, first, second):
    one, two = place(tmp_path, first, "one"), place(tmp_path, second, "two")

    convert(source, one, first)
    convert(one, two, second)

    assert_same(two, source)
    if "official" not in (first, second):  # it has no place for them
        assert load_model(two)[1] == ModelCard.load(source)


def test_an_official_file_has_the_names_and_the_experiment_of_the_official_code(tmp_path, source):
    done = convert(source, tmp_path / "x.pth", "official")

    assert [p.name for p in done.written] == ["x.yaml", "x.pth"]
    names = set(torch.load(tmp_path / "x.pth", weights_only=True))
    assert {"stage0.patch_embed.proj.weight", "stage2.cls_token",
            "stage2.blocks.0.attn.conv_proj_q.bn.running_var", "head.bias"} <= names
    spec = yaml.safe_load((tmp_path / "x.yaml").read_text())["MODEL"]["SPEC"]
    assert spec["QKV_PROJ_METHOD"] == ["dw_bn"] * 3
    assert from_official_yaml(tmp_path / "x.yaml") == load_model(source)[0].config


def test_classes_without_names_are_reported(tmp_path, source):
    note = "the source does not name its classes, so they are numbered"
    assert note not in convert(source, tmp_path / "x.pth", "official").notes
    assert note in convert(tmp_path / "x.pth", tmp_path / "y", "native").notes
    assert ModelCard.load(tmp_path / "y").classes == tuple("0123456789")


@pytest.mark.parametrize("suffix", [".safetensors", ".bin", ".pt"])
def test_an_official_file_may_be_of_any_kind(tmp_path, source, suffix):
    convert(source, tmp_path / f"x{suffix}", "official")

    assert_same(tmp_path / f"x{suffix}", source)
    assert "stage2.cls_token" in load_state_dict(tmp_path / f"x{suffix}")  # timm reads it too


def test_gelu_weights_are_not_quietly_given_to_the_official_code(tmp_path, tiny, shaken):
    model = shaken(CvT(tiny(act="gelu")))
    save_model(tmp_path / "a", model, Preprocess(size=32), CLASSES)

    done = convert(tmp_path / "a", tmp_path / "x.pth", "official")

    assert "the official code will compute QuickGELU" in done.notes[0]
    assert "logits differ by up to" in done.notes[0]


@pytest.mark.parametrize("to", ["native", "huggingface", "timm"])
def test_a_directory_has_a_model_card_for_the_hub(tmp_path, source, to):
    convert(source, place(tmp_path, to), to)

    text = (place(tmp_path, to) / "README.md").read_text()
    _, header, body = text.split("---\n", 2)
    header = yaml.safe_load(header)
    assert header["pipeline_tag"] == "image-classification"
    assert header["library_name"] == {"native": "cvt-torch", "huggingface": "transformers",
                                      "timm": "timm"}[to]
    assert "short side resized to 35, centre crop of 32x32" in body
    assert place(tmp_path, to).name in body


def test_a_conversion_of_what_the_zoo_published_says_what_it_was_trained_on(tmp_path):
    torch.manual_seed(0)
    torch.save(CvT(VARIANTS["cvt_13"]).state_dict(), tmp_path / "CvT-13-384x384-IN-22k.pth")
    convert(tmp_path / "CvT-13-384x384-IN-22k.pth", tmp_path / "hf", "huggingface")

    text = (tmp_path / "hf/README.md").read_text()
    assert "# cvt_13.msft_in22k_ft_in1k_384" in text
    assert yaml.safe_load(text.split("---\n")[1])["datasets"] == ["imagenet-1k", "imagenet-21k"]


def test_weights_of_ones_own_are_not_called_the_zoos(tmp_path, source):
    with pytest.raises(InputError, match=r"defines its own network; .* for a bare file of weights"):
        convert(source, tmp_path / "hf", "huggingface", model="cvt_13.msft_in1k")
    convert("cvt_nano.digits", tmp_path / "named", "timm")
    convert(source, tmp_path / "own", "timm")

    assert "# cvt_nano.digits" in (tmp_path / "named/README.md").read_text()
    assert "cvt_nano.digits" not in (tmp_path / "own/README.md").read_text()


def test_a_model_in_another_format_is_not_mixed_with_the_new_one(tmp_path, source):
    convert(source, tmp_path / "x", "huggingface")
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}

    for to in ("native", "timm"):
        with pytest.raises(InputError, match="is of a model in another format"):
            convert(source, tmp_path / "x", to, overwrite=True)

    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize(("to", "name", "message"), [
    ("official", "x", "is one file; use a name"), ("official", "x.yaml", "is one file; use a name"),
    ("native", "file.txt", "is a file; --to native writes a directory")])
def test_a_destination_that_cannot_hold_the_format_is_rejected(tmp_path, source, to, name, message):
    (tmp_path / "file.txt").touch()

    with pytest.raises(InputError, match=message):
        convert(source, tmp_path / name, to)


@pytest.mark.parametrize("to", FORMATS)
def test_files_are_not_replaced_unasked(tmp_path, source, to):
    convert(source, place(tmp_path, to), to)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}

    with pytest.raises(InputError, match="--overwrite"):
        convert(source, place(tmp_path, to), to)

    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
    convert(source, place(tmp_path, to), to, overwrite=True)


def test_a_checkpoint_is_converted_onto_itself(source):
    """Its weights are mapped from the very file that is replaced."""
    expected = {n: t.clone() for n, t in load_model(source)[0].state_dict().items()}

    convert(source, source, "native", overwrite=True)

    torch.testing.assert_close(dict(load_model(source)[0].state_dict()), expected, rtol=0, atol=0)


@pytest.mark.parametrize("changes", [{"every": {"pos_embed": True}}, {"last": {
    "stride_kv": (1, 2, 2)}}, {"last": {"mlp_ratio": (2.0, 4.0, 4.0)}}])
@pytest.mark.parametrize("to", ["official", "huggingface"])
def test_a_network_that_the_format_cannot_express_leaves_nothing(tmp_path, tiny, to, changes):
    model = CvT(tiny(depths=(1, 2, 3), **changes))
    save_model(tmp_path / "a", model, Preprocess(size=32), CLASSES)

    with pytest.raises(InputError, match=r"choose another format|use --to native"):
        convert(tmp_path / "a", place(tmp_path, to), to)

    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_gray_images_have_no_processor_in_transformers(tmp_path, tiny):
    model = CvT(tiny(depths=(1, 2, 3), in_chans=1, act="gelu"))
    save_model(tmp_path / "a", model, Preprocess(size=32, mean=(0.5,), std=(0.2,)), CLASSES)

    done = convert(tmp_path / "a", tmp_path / "b", "huggingface")

    assert "no preprocessor_config.json was written" in done.notes[0]
    assert not (tmp_path / "b/preprocessor_config.json").exists()


@pytest.mark.parametrize("to", FORMATS)
def test_half_precision_is_half_the_bytes_and_loads_as_float32(tmp_path, source, to):
    half = place(tmp_path, to, "half")

    whole = convert(source, place(tmp_path, to, "whole"), to)
    done = convert(source, half, to, dtype="fp16")

    # Of so small a network, a good part of the file is names.
    assert done.written[-1].stat().st_size < 0.7 * whole.written[-1].stat().st_size
    assert "values were rounded to float16: on a sample its logits differ by" in done.notes[0]
    expected = {name: tensor.half().float() if tensor.is_floating_point() else tensor
                for name, tensor in load_model(source)[0].state_dict().items()}
    found = load_model(half)[0].state_dict()
    assert {name: t.dtype for name, t in found.items()} == {
        name: t.dtype for name, t in expected.items()}
    torch.testing.assert_close(dict(found), expected, rtol=0, atol=0)


def test_values_beyond_half_precision_are_rejected_before_anything_is_written(tmp_path, tiny):
    model = CvT(tiny())
    model.head.weight.data[0, 0] = 1e6
    save_model(tmp_path / "a", model, Preprocess(size=32), CLASSES)

    with pytest.raises(InputError, match=r"head\.weight reaches 1e\+06, .* float16 is 65504"):
        convert(tmp_path / "a", tmp_path / "b", "native", dtype="fp16")

    assert not (tmp_path / "b").exists()


def test_half_precision_is_an_option_of_the_command(tmp_path, source, capsys):
    assert main(["convert", str(source), str(tmp_path / "b"), "--to", "native", "--dtype",
                 "fp16"]) == 0

    assert "rounded to float16" in capsys.readouterr().err
    assert read_tensors(tmp_path / "b/best.safetensors")["head.weight"].dtype == torch.float16
