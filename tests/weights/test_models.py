import json

import pytest
import torch

from cvt.config import Preprocess
from cvt.model import CvT
from cvt.system.errors import InputError
from cvt.weights.card import ModelCard
from cvt.weights.models import load_model, save_model
from cvt.weights.tensors import read_tensors, write_tensors

CLASSES = tuple("abcdefghij")
PREPROCESS = Preprocess(size=64, crop=0.9, interpolation="bilinear")


@pytest.fixture
def model(tiny, shaken):
    return shaken(CvT(tiny()))


@pytest.fixture
def saved(tmp_path, model):
    directory = tmp_path / "runs" / "x"
    save_model(directory, model, PREPROCESS, CLASSES)
    return directory


def test_a_model_comes_back_bit_for_bit(saved, model):
    x = torch.randn(2, 3, 64, 64)

    loaded, card = load_model(saved)

    torch.testing.assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)
    assert card == ModelCard(model=model.config, preprocess=PREPROCESS, classes=CLASSES)
    assert loaded.config == model.config
    assert torch.equal(loaded(x), model.eval()(x))


def test_an_ablation_comes_back_with_its_config(tmp_path, ablated, shaken):
    model = shaken(CvT(ablated))
    preprocess = Preprocess(size=48, crop=1, mode="squash", mean=(0.5,), std=(0.25,))

    save_model(tmp_path, model, preprocess, ("a", "b", "c", "d"))
    loaded, card = load_model(tmp_path)

    torch.testing.assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)
    assert (loaded.config, card.preprocess) == (ablated, preprocess)


def test_a_loaded_model_is_in_evaluation_mode(saved):
    loaded, _ = load_model(saved)

    assert not any(module.training for module in loaded.modules())


def test_a_replaced_classifier_is_saved_with_its_width(tmp_path, model):
    model.reset_classifier(2)

    save_model(tmp_path, model, PREPROCESS, ("cat", "dog"))

    assert load_model(tmp_path)[0].config.num_classes == 2


def test_weights_beside_the_best_are_loaded_by_their_file(saved, model):
    with torch.no_grad():
        model.head.bias.fill_(3)
    write_tensors(model.state_dict(), saved / "last.safetensors")

    loaded, _ = load_model(saved / "last.safetensors")

    assert (loaded.head.bias == 3).all()


def test_a_model_saved_again_replaces_the_old_one_and_leaves_nothing_beside(saved, model):
    with torch.no_grad():
        model.head.bias.fill_(3)

    save_model(saved, model, PREPROCESS, CLASSES)

    assert (load_model(saved)[0].head.bias == 3).all()
    assert sorted(p.name for p in saved.iterdir()) == ["best.safetensors", "config.json"]


def test_class_names_that_do_not_fit_are_rejected_before_anything_is_written(tmp_path, model):
    with pytest.raises(InputError, match="9 class names for a classifier of 10"):
        save_model(tmp_path, model, PREPROCESS, CLASSES[:9])

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", ["runs/absent", "runs/x/absent.safetensors"])
def test_a_model_that_is_not_there_is_named(tmp_path, saved, path):
    with pytest.raises(InputError, match=f"no model at .*{path}"):
        load_model(tmp_path / path)


def test_a_directory_without_a_config_is_no_model(saved):
    (saved / "config.json").unlink()

    with pytest.raises(InputError, match=r"has no config\.json"):
        load_model(saved)


def test_a_directory_without_weights_is_no_model(saved):
    (saved / "best.safetensors").unlink()

    with pytest.raises(InputError, match=r"has no weights, such as model\.safetensors or best"):
        load_model(saved)


def test_an_unknown_key_in_the_config_is_rejected(saved):
    data = json.loads((saved / "config.json").read_text())
    data["model"]["stages"][1]["kernal"] = 3
    (saved / "config.json").write_text(json.dumps(data))

    with pytest.raises(InputError, match=r"config\.json: stages\[1\] has the unknown key 'kernal'; "
                                         "did you mean kernel"):
        load_model(saved)


def test_a_config_of_another_network_is_rejected(saved, tiny):
    ModelCard(model=tiny(depths=(1, 1, 1)), preprocess=PREPROCESS, classes=CLASSES).save(saved)

    with pytest.raises(InputError, match=r"34 unexpected"):
        load_model(saved)


def test_corrupt_weights_are_rejected(saved):
    whole = (saved / "best.safetensors").read_bytes()
    (saved / "best.safetensors").write_bytes(whole[:-1])

    with pytest.raises(InputError, match=r"best\.safetensors is corrupt"):
        load_model(saved)


def test_a_write_that_fails_leaves_the_old_weights_and_nothing_beside(tmp_path):
    path = tmp_path / "w.safetensors"
    write_tensors({"a": torch.ones(2)}, path)
    shared = torch.zeros(4)

    with pytest.raises(RuntimeError):  # safetensors rejects tensors that share memory
        write_tensors({"a": shared, "b": shared}, path)

    assert torch.equal(read_tensors(path)["a"], torch.ones(2))
    assert list(tmp_path.iterdir()) == [path]


def test_tensors_of_any_layout_and_dtype_come_back_equal(tmp_path):
    tensors = {
        "transposed": torch.randn(3, 4).t(), "slice": torch.randn(4, 4)[1:, ::2],
        "last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        "half": torch.randn(3).bfloat16(), "scalar": torch.tensor(7),
        "grad": torch.randn(2, requires_grad=True),
    }

    write_tensors(tensors, tmp_path / "w.safetensors")

    torch.testing.assert_close(read_tensors(tmp_path / "w.safetensors"),
                               {name: t.detach() for name, t in tensors.items()}, rtol=0, atol=0)
