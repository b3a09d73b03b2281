import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from cvt.errors import InputError
from cvt.model import CvT
from cvt.weights.load import load_weights
from cvt.weights.names import rename

# Our names -> official ones.
TO_OFFICIAL = [
    (r"^stages\.(\d+)\.", r"stage\1."),
    (r"\.embed\.conv\.", r".patch_embed.proj."),
    (r"\.embed\.norm\.", r".patch_embed.norm."),
    (r"\.attn\.([qkv])\.linear\.", r".attn.proj_\1."),
    (r"\.attn\.([qkv])\.(conv|bn)\.", r".attn.conv_proj_\1.\2."),
]


class Bomb:
    """Touches a file when an ordinary unpickler reads it."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.fixture
def source(tiny, shaken):
    """A model that is nowhere at its initial values."""
    return shaken(CvT(tiny()))


def official(model):
    return {rename(name, TO_OFFICIAL): t for name, t in model.state_dict().items()}


def save(tensors, path):
    if path.suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path)
    return path


def snapshot(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same(model, expected):
    torch.testing.assert_close(model.state_dict(), expected, rtol=0, atol=0)


@pytest.mark.parametrize("names", ["official", "native"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt", ".bin"])
def test_weights_come_back_bit_for_bit_from_any_format(tmp_path, tiny, source, names, suffix):
    tensors = official(source) if names == "official" else source.state_dict()
    path = save(tensors, tmp_path / f"weights{suffix}")
    model = CvT(tiny())

    report = load_weights(model, path)

    assert_same(model, source.state_dict())
    assert report.format == names


def test_weights_come_back_from_the_older_pickle_format(tmp_path, tiny, source):
    torch.save(official(source), tmp_path / "w.pth", _use_new_zipfile_serialization=False)
    model = CvT(tiny())

    load_weights(model, tmp_path / "w.pth")

    assert_same(model, source.state_dict())


@pytest.mark.parametrize("key", ["state_dict", "model"])
def test_weights_one_level_down_are_found(tmp_path, tiny, source, key):
    path = save({key: official(source), "epoch": 300, "best": 81.6}, tmp_path / "w.pth")
    model = CvT(tiny())

    load_weights(model, path)

    assert_same(model, source.state_dict())


def test_the_report_says_what_was_loaded_from_official_names(tmp_path, tiny, source):
    path = save(official(source), tmp_path / "w.safetensors")

    report = load_weights(CvT(tiny()), path)

    own = set(source.state_dict())
    assert report.path == path
    assert set(report.loaded) == own
    assert report.renamed == len([name for name in own if name.startswith("stages.")])
    assert f"{len(own)} tensors in official names, {report.renamed} renamed" in str(report)


def test_the_report_says_that_native_names_stay(tmp_path, tiny, source):
    report = load_weights(CvT(tiny()), save(source.state_dict(), tmp_path / "w.pth"))

    assert (report.format, report.renamed) == ("native", 0)


def test_a_path_may_be_a_string(tmp_path, tiny, source):
    path = save(official(source), tmp_path / "w.pth")

    assert load_weights(CvT(tiny()), str(path)).path == path


def drop(tensors):
    del tensors["norm.weight"], tensors["stage0.patch_embed.proj.bias"]


def add(tensors):
    tensors["aux.weight"] = torch.zeros(3)


def reshape(tensors):
    tensors["head.weight"] = torch.zeros(7, 24)


def flatten(tensors):
    tensors["norm.bias"] = torch.tensor(1.0)


def duplicate(tensors):
    tensors["stages.2.cls_token"] = torch.zeros(1, 1, 24)


@pytest.mark.parametrize(("spoil", "message"), [
    (drop, r"2 missing \(stages\.0\.embed\.conv\.bias, norm\.weight\)"),
    (add, r"1 left over \(aux\.weight\)"),
    (reshape, r"1 of another shape \(head\.weight is 7x24, the model's 10x24\)"),
    (flatten, r"1 of another shape \(norm\.bias is a scalar, the model's 24\)"),
    (duplicate, r"under official and native names"),
])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_checkpoint_that_does_not_fit_is_refused_and_the_model_kept(
        tmp_path, tiny, source, spoil, message, suffix):
    tensors = official(source)
    spoil(tensors)
    path = save(tensors, tmp_path / f"w{suffix}")
    model = CvT(tiny())
    before = snapshot(model)

    with pytest.raises(InputError, match=message) as error:
        load_weights(model, path)

    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    assert_same(model, before)


def test_all_that_is_wrong_is_told_at_once(tmp_path, tiny, source):
    tensors = official(source)
    for spoil in (drop, add, reshape):
        spoil(tensors)

    with pytest.raises(InputError, match=r"2 missing .*; 1 left over .*; 1 of another shape "):
        load_weights(CvT(tiny()), save(tensors, tmp_path / "w.pth"))


@pytest.mark.parametrize("changes", [
    {"depths": (1, 1, 3)}, {"depths": (1, 1, 1)}, {"num_classes": 9}, {"num_classes": 0},
    {"in_chans": 1}, {"every": {"projection": "avg"}}, {"every": {"qkv_bias": False}},
    {"every": {"kernel": 5}}, {"every": {"mlp_ratio": 2.0}}, {"every": {"cls_token": True}},
    {"last": {"cls_token": False}}, {"last": {"pos_embed": True}}, {"last": {"dim": 48}},
])
def test_weights_of_another_architecture_are_refused(tmp_path, tiny, source, changes):
    path = save(official(source), tmp_path / "w.safetensors")

    with pytest.raises(InputError, match="is not a checkpoint of this architecture"):
        load_weights(CvT(tiny(**changes)), path)


def test_a_long_list_of_names_is_cut_short(tmp_path, tiny, source):
    path = save(official(source), tmp_path / "w.safetensors")

    with pytest.raises(InputError, match=r"34 missing .*, and 31 more"):
        load_weights(CvT(tiny(depths=(1, 1, 3))), path)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("inside", ["value", "wrapper"])
def test_a_pickle_that_would_run_code_is_refused_before_it_does(tmp_path, tiny, zipped, inside):
    marker, path = tmp_path / "ran", tmp_path / "w.pth"
    data = {"head.weight": Bomb(marker)} if inside == "value" else {"model": {}, "x": Bomb(marker)}
    torch.save(data, path, _use_new_zipfile_serialization=zipped)
    model = CvT(tiny())
    before = snapshot(model)

    with pytest.raises(InputError, match="could run code") as error:
        load_weights(model, path)

    assert not marker.exists()
    assert "\n" not in str(error.value)
    assert_same(model, before)
    torch.load(path, weights_only=False)
    assert marker.exists()  # the file was dangerous indeed


@pytest.mark.parametrize(("suffix", "zipped"), [
    (".safetensors", None), (".pth", True), (".pth", False)])
def test_a_file_cut_off_anywhere_is_refused_in_one_line(tmp_path, suffix, zipped):
    path = tmp_path / f"w{suffix}"
    tensors = {"head.weight": torch.randn(10, 4), "head.bias": torch.randn(10)}
    if zipped is None:
        save_file(tensors, path)
    else:
        torch.save(tensors, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()

    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match="damaged") as error:
            load_weights(torch.nn.Linear(4, 10), path)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(("name", "data", "message"), [
    ("w.pth", {}, "holds no state dict"),
    ("w.pth", [1, 2], "holds no state dict"),
    ("w.pth", torch.zeros(3), "holds no state dict"),
    ("w.pth", {"epoch": 3}, "holds no state dict"),
    ("w.pth", {"model": {}}, "holds no state dict"),
    ("w.bin", {"model": {"a": 3}}, "holds no state dict"),
])
def test_a_pickle_without_a_state_dict_is_refused(tmp_path, tiny, name, data, message):
    path = save(data, tmp_path / name)

    with pytest.raises(InputError, match=message):
        load_weights(CvT(tiny()), path)


@pytest.mark.parametrize("name", ["w.npz", "w.onnx", "w", "w.safetensors.index"])
def test_a_file_of_another_kind_is_refused_by_its_suffix(tmp_path, tiny, name):
    (tmp_path / name).write_bytes(b"something")

    with pytest.raises(InputError, match=r"weights are read from \.safetensors, \.pth"):
        load_weights(CvT(tiny()), tmp_path / name)


def test_a_plain_pickle_or_text_is_not_taken_for_weights(tmp_path, tiny):
    for content in (pickle.dumps({"a": 1}, 2), b"hello", b"<!doctype html><html></html>"):
        (tmp_path / "w.pth").write_bytes(content)

        with pytest.raises(InputError, match=r"damaged|no state dict"):
            load_weights(CvT(tiny()), tmp_path / "w.pth")


@pytest.mark.parametrize("name", ["absent.pth", "absent.safetensors", "directory.pth"])
def test_a_file_that_is_not_there_is_named(tmp_path, tiny, name):
    (tmp_path / "directory.pth").mkdir()

    with pytest.raises(FileNotFoundError, match=f"no weights at .*{name}") as error:
        load_weights(CvT(tiny()), tmp_path / name)

    assert "\n" not in str(error.value)
