import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from cvt.model import CvT
from cvt.system.errors import InputError
from cvt.weights.load import load_weights
from cvt.weights.names import FROM_NATIVE, rename


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
    return {rename(name, FROM_NATIVE["official"]): t for name, t in model.state_dict().items()}


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
    (add, r"1 unexpected \(aux\.weight\)"),
    (reshape, r"1 mismatched \(head\.weight is 7x24, the model's 10x24\)"),
    (flatten, r"1 mismatched \(norm\.bias is a scalar, the model's 24\)"),
    (duplicate, r"has the same tensor under two names"),
])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_checkpoint_that_does_not_fit_is_rejected_and_the_model_kept(
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


def test_all_problems_are_reported_at_once(tmp_path, tiny, source):
    tensors = official(source)
    for spoil in (drop, add, reshape):
        spoil(tensors)

    with pytest.raises(InputError, match=r"2 missing .*; 1 unexpected .*; 1 mismatched "):
        load_weights(CvT(tiny()), save(tensors, tmp_path / "w.pth"))


@pytest.mark.parametrize("changes", [
    {"depths": (1, 1, 3)}, {"depths": (1, 1, 1)}, {"num_classes": 9}, {"num_classes": 0},
    {"in_chans": 1}, {"every": {"projection": "avg"}}, {"every": {"qkv_bias": False}},
    {"every": {"kernel": 5}}, {"every": {"mlp_ratio": 2.0}}, {"every": {"cls_token": True}},
    {"last": {"cls_token": False}}, {"last": {"pos_embed": True}}, {"last": {"dim": 48}},
])
def test_weights_of_another_architecture_are_rejected(tmp_path, tiny, source, changes):
    path = save(official(source), tmp_path / "w.safetensors")

    with pytest.raises(InputError, match="is not a checkpoint of this architecture"):
        load_weights(CvT(tiny(**changes)), path)


def test_a_long_list_of_names_is_cut_short(tmp_path, tiny, source):
    path = save(official(source), tmp_path / "w.safetensors")

    with pytest.raises(InputError, match=r"34 missing .*, and 31 more"):
        load_weights(CvT(tiny(depths=(1, 1, 3))), path)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("inside", ["value", "wrapper"])
def test_a_pickle_that_would_run_code_is_rejected_before_it_does(tmp_path, tiny, zipped, inside):
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
def test_a_file_cut_off_anywhere_is_rejected_in_one_line(tmp_path, suffix, zipped):
    path = tmp_path / f"w{suffix}"
    tensors = {"head.weight": torch.randn(10, 4), "head.bias": torch.randn(10)}
    if zipped is None:
        save_file(tensors, path)
    else:
        torch.save(tensors, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()

    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match="corrupt") as error:
            load_weights(torch.nn.Linear(4, 10), path)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(("name", "data", "message"), [
    ("w.pth", {}, "has no state dict"),
    ("w.pth", [1, 2], "has no state dict"),
    ("w.pth", torch.zeros(3), "has no state dict"),
    ("w.pth", {"epoch": 3}, "has no state dict"),
    ("w.pth", {"model": {}}, "has no state dict"),
    ("w.bin", {"model": {"a": 3}}, "has no state dict"),
])
def test_a_pickle_without_a_state_dict_is_rejected(tmp_path, tiny, name, data, message):
    path = save(data, tmp_path / name)

    with pytest.raises(InputError, match=message):
        load_weights(CvT(tiny()), path)


@pytest.mark.parametrize("name", ["w.npz", "w.onnx", "w", "w.safetensors.index"])
def test_a_file_of_another_kind_is_rejected_by_its_suffix(tmp_path, tiny, name):
    (tmp_path / name).write_bytes(b"something")

    with pytest.raises(InputError, match=r"weights are read from \.safetensors, \.pth"):
        load_weights(CvT(tiny()), tmp_path / name)


def test_a_plain_pickle_or_text_is_not_taken_for_weights(tmp_path, tiny):
    for content in (pickle.dumps({"a": 1}, 2), b"hello", b"<!doctype html><html></html>"):
        (tmp_path / "w.pth").write_bytes(content)

        with pytest.raises(InputError, match=r"corrupt|no state dict"):
            load_weights(CvT(tiny()), tmp_path / "w.pth")


@pytest.mark.parametrize("name", ["absent.pth", "absent.safetensors", "directory.pth"])
def test_a_file_that_is_not_there_is_named(tmp_path, tiny, name):
    (tmp_path / "directory.pth").mkdir()

    with pytest.raises(FileNotFoundError, match=f"no weights at .*{name}") as error:
        load_weights(CvT(tiny()), tmp_path / name)

    assert "\n" not in str(error.value)


def test_a_head_of_another_width_is_left_new_when_asked(tmp_path, tiny, source):
    path = save(official(source), tmp_path / "w.pth")
    model = CvT(tiny(num_classes=4))
    head = model.head.weight.clone()

    report = load_weights(model, path, adapt=["head"])

    assert torch.equal(model.head.weight, head)
    assert torch.equal(model.norm.weight, source.norm.weight)
    assert set(report.skipped) == set(report.missing) == {"head.weight", "head.bias"}
    assert "10x24, head of another size" in str(report)
    assert "4x24, newly initialised" in str(report)


@pytest.mark.parametrize(("ours", "theirs"), [(0, 10), (10, 0)])
def test_a_head_may_be_absent_on_one_side_when_asked(tmp_path, tiny, shaken, ours, theirs):
    donor = shaken(CvT(tiny(num_classes=theirs)))
    path = save(donor.state_dict(), tmp_path / "w.pth")

    report = load_weights(CvT(tiny(num_classes=ours)), path, adapt=["head"])

    assert bool(report.missing) == bool(ours)
    assert bool(report.skipped) == bool(theirs)


def test_one_channel_sees_in_gray_what_three_saw(tmp_path, tiny, source):
    path = save(official(source), tmp_path / "w.pth")
    model = CvT(tiny(in_chans=1)).eval()
    gray = torch.randn(2, 1, 64, 64)

    report = load_weights(model, path, adapt=["in_chans"])

    torch.testing.assert_close(model(gray), source.eval()(gray.expand(-1, 3, -1, -1)),
                               rtol=1e-4, atol=1e-5)
    assert report.adapted == {"stages.0.embed.conv.weight": "8x3x7x7 to 8x1x7x7"}


@pytest.mark.parametrize("channels", [2, 4, 6, 7])
def test_more_channels_repeat_and_keep_the_size_of_activations(tmp_path, tiny, source, channels):
    path = save(official(source), tmp_path / "w.pth")
    model = CvT(tiny(in_chans=channels))

    load_weights(model, path, adapt=["in_chans"])

    weight, old = model.stages[0].embed.conv.weight, source.stages[0].embed.conv.weight
    for i in range(channels):
        torch.testing.assert_close(weight[:, i], old[:, i % 3] * 3 / channels)


def test_position_embeddings_are_resized_when_asked(tmp_path, tiny, shaken):
    donor = shaken(CvT(tiny(every={"pos_embed": True})))
    path = save(donor.state_dict(), tmp_path / "w.pth")
    model = CvT(tiny(every={"pos_embed": True}, image_size=96))

    report = load_weights(model, path, adapt=["pos_embed"])

    assert report.adapted["stages.0.pos_embed"] == "1x8x16x16 to 1x8x24x24"
    assert model.stages[0].pos_embed.mean().item() == pytest.approx(
        donor.stages[0].pos_embed.mean().item(), abs=0.01)
    images = torch.randn(1, 3, 96, 96)  # the network resizes in the same way when it runs
    torch.testing.assert_close(model.eval()(images), donor.eval()(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("changes", "asked"), [
    ({"num_classes": 4}, ["in_chans"]), ({"in_chans": 1}, ["head"]),
    ({"in_chans": 1, "num_classes": 4}, ["head"]),
])
def test_what_was_not_asked_for_is_rejected(tmp_path, tiny, source, changes, asked):
    path = save(official(source), tmp_path / "w.pth")
    model = CvT(tiny(**changes))
    before = snapshot(model)

    with pytest.raises(InputError, match="or use adapt="):
        load_weights(model, path, adapt=asked)

    assert_same(model, before)


def test_the_hint_names_only_what_adapting_would_mend(tmp_path, tiny, source):
    path = save(official(source), tmp_path / "w.pth")

    with pytest.raises(InputError, match=r"adapt=\('head',\)$"):
        load_weights(CvT(tiny(num_classes=4)), path)
    with pytest.raises(InputError) as error:
        load_weights(CvT(tiny(num_classes=4, depths=(1, 1, 3))), path)
    assert "adapt" not in str(error.value)


def test_a_trunk_is_loaded_out_of_a_larger_model(tmp_path, tiny, source):
    """As trackers and segmenters store it: under a prefix, beside parts of their own."""
    tensors = {f"backbone.{name}": t for name, t in official(source).items()}
    path = save({**tensors, "box_head.weight": torch.zeros(4)}, tmp_path / "w.pth")
    model = CvT(tiny())

    with pytest.raises(InputError, match=r"1 tensors .* not start .*\(box_head\.weight\)"):
        load_weights(model, path, prefix="backbone.")
    report = load_weights(model, path, prefix="backbone.", ignore=["box_head.*"])

    assert_same(model, source.state_dict())
    assert report.skipped == {"box_head.weight": "ignored, as requested"}


def test_a_name_outside_the_prefix_takes_the_place_of_none_inside(tmp_path, tiny, source):
    tensors = {f"backbone.{name}": t for name, t in source.state_dict().items()}
    path = save({**tensors, "norm.weight": torch.zeros(24)}, tmp_path / "w.pth")  # a decoder's

    with pytest.raises(InputError, match=r"'backbone\.' \(norm\.weight\); add them to ignore"):
        load_weights(CvT(tiny()), path, prefix="backbone.")
    with pytest.raises(InputError, match=r"do not start with 'trunk\.'"):
        load_weights(CvT(tiny()), path, prefix="trunk.")


@pytest.mark.parametrize("front", ["module.", "_orig_mod.", "module._orig_mod."])
def test_wrappers_leave_no_mark(tmp_path, tiny, source, front):
    path = save({front + n: t for n, t in official(source).items()}, tmp_path / "w.pth")
    model = CvT(tiny())

    assert load_weights(model, path).format == "official"
    assert_same(model, source.state_dict())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_are_converted_and_reported(tmp_path, tiny, source, dtype):
    half = {n: t.to(dtype) if t.is_floating_point() else t for n, t in source.state_dict().items()}
    model = CvT(tiny())

    report = load_weights(model, save(half, tmp_path / "w.safetensors"))

    assert model.head.weight.dtype is torch.float32
    assert torch.equal(model.head.weight, half["head.weight"].float())
    assert str(dtype).removeprefix("torch.") in str(report)


def test_weights_that_are_not_finite_are_rejected(tmp_path, tiny, source):
    tensors = source.state_dict()
    tensors["norm.bias"][3] = float("nan")
    model = CvT(tiny())

    with pytest.raises(InputError, match=r"not finite \(norm\.bias\)"):
        load_weights(model, save(tensors, tmp_path / "w.pth"))


def test_large_weights_whose_sum_overflows_are_finite(tmp_path, tiny, source):
    source.head.weight.data.fill_(3e38)

    load_weights(CvT(tiny()), save(source.state_dict(), tmp_path / "w.pth"))
