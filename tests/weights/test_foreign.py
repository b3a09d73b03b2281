"""Checkpoints as other code writes them, made from random weights: each loads or is named."""

import argparse
import collections
import io
import json
import pickle
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
import torch
from torch import nn

from cvt.cli import main
from cvt.config import VARIANTS
from cvt.model import CvT
from cvt.system.errors import InputError
from cvt.weights.convert import convert
from cvt.weights.load import load_weights
from cvt.weights.models import create_model, load_model
from cvt.weights.names import FROM_NATIVE, find_networks, rename
from cvt.weights.tensors import read_state_dicts


@pytest.fixture
def source(tiny, shaken):
    """A model that is nowhere at its initial values."""
    return shaken(CvT(tiny())).eval()


@pytest.fixture
def config(tmp_path, tiny):
    """Path of the configuration of `source`, in a directory of its own."""
    (tmp_path / "config").mkdir()
    tiny().save(tmp_path / "config/tiny.yaml")
    return str(tmp_path / "config/tiny.yaml")


def named(model, naming="official", prefix="", without=()):
    """The state dict of `model` in another code's names."""
    return {prefix + rename(name, FROM_NATIVE[naming]): t.clone()
            for name, t in model.state_dict().items() if not name.endswith(tuple(without))}


def trunk(model, *args, **options):
    """The same without norm and head."""
    return {name: t for name, t in named(model, *args, **options).items()
            if not name.rpartition(".")[0].endswith(("head", "classifier"))}


def namespace():
    return argparse.Namespace(model="cvt_13", lr=0.1, sizes=(224, 224), output=Path("x"))


def mixformer(model):
    return {"net": {**trunk(model, prefix="backbone.", without=["num_batches_tracked"]),
                    **{f"box_head.conv{i}.weight": torch.zeros(3) for i in range(9)}},
            "epoch": 500, "constructor": None, "net_type": "MixFormer"}


def report_generator(model):
    """As cxrmate and cvt2distilgpt2 save theirs."""
    weights = trunk(model, "huggingface", prefix="encoder.")
    return {"state_dict": {**{n: t for n, t in weights.items() if "encoder.layernorm." not in n},
                           "encoder.projection_head.projection.weight": torch.zeros(4, 4),
                           "decoder.transformer.wte.weight": torch.zeros(9, 4)},
            "hyper_parameters": {"lr": 1e-4, "args": namespace()}}


def timm_script(model):
    return {"epoch": 3, "arch": "cvt_13", "state_dict": named(model, "native"),
            "optimizer": {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.zeros(3)}},
                          "param_groups": [{"lr": 0.1, "params": [0]}]},
            "version": 2, "args": namespace(), "amp_scaler": {"scale": 65536.0}, "metric": 81.6}


def lightning(model):
    return {"epoch": 3, "global_step": 10, "pytorch-lightning_version": "2.4.0",
            "state_dict": {**named(model, prefix="model."),
                           "criterion.weight": torch.ones(10)},
            "callbacks": {"ModelCheckpoint{'monitor': 'loss'}": {
                "best_model_score": torch.tensor(0.5), "best_model_path": "a.ckpt"}},
            "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(3)}}}],
            "hyper_parameters": {"lr": 0.1, "model": "cvt_13"}}


def dino(model):
    return {"student": {"module.head.mlp.weight": torch.zeros(3)}, "epoch": 3, "args": namespace(),
            "teacher": {**named(model, prefix="backbone."), "head.mlp.0.weight": torch.zeros(3)}}


FORMS = {
    "MixFormer": ("w.pth.tar", mixformer, "net", "backbone."),
    "cxrmate": ("w.ckpt", report_generator, "state_dict", "encoder.cvt."),
    "timm": ("last.pth.tar", timm_script, "state_dict", ""),
    "Lightning": ("last.ckpt", lightning, "state_dict", "model."),
    "DINO": ("w.pth", dino, "teacher", "backbone."),
    "DDP": ("w.pth", lambda m: {"model": named(m, prefix="module.")}, "model", "module."),
    "compiled": ("w.pt", lambda m: named(m, "native", prefix="_orig_mod."), "", "_orig_mod."),
    "MMDetection": ("w.pth", lambda m: {"meta": {"epoch": 12}, "state_dict": {
        **trunk(m, prefix="backbone."), "neck.0.weight": torch.ones(3)}}, "state_dict",
        "backbone."),
    "transformers": ("w.bin", lambda m: named(m, "huggingface"), "", ""),
    "nested": ("w.pt", lambda m: {"checkpoint": {"model": {"ema": named(m)}}},
               "checkpoint.model.ema", ""),
}


@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_a_checkpoint_of_others_computes_what_it_did(tmp_path, source, config, form, older):
    name, make, key, prefix = FORMS[form]
    torch.save(make(source), tmp_path / name, _use_new_zipfile_serialization=not older)
    images = torch.randn(2, 3, 64, 64)

    model = create_model(config, weights=tmp_path / name)

    report = model.load_report
    assert (report.key, report.prefix) == (key, prefix)
    assert all(f"{part!r}" in str(report).splitlines()[0] for part in (key, prefix) if part)
    with torch.no_grad():
        expected = source.forward_features(images)
        if form == "cxrmate":  # a CvtModel has no norm
            last = source.forward_intermediates(images, [-1], intermediates_only=True,
                                                return_prefix_tokens=True)[0][1]
            expected = nn.functional.layer_norm(last, (24,))
        torch.testing.assert_close(model.forward_features(images)[:, :1], expected[:, :1])
        if model.config.num_classes:
            assert torch.equal(model(images), source(images))


def paddle(model):
    """The state dict of `model` as PaddlePaddle has it."""
    arrays = {}
    for name, t in named(model, "paddle", without=["num_batches_tracked"]).items():
        name = name.replace(".running_mean", "._mean").replace(".running_var", "._variance")
        arrays[name] = (t.t() if t.ndim == 2 else t).contiguous().numpy()
    return {**arrays, "StructuredToParameterName@@": {name: f"p_{name}" for name in arrays}}


@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize("names", ["PaddleViT", "PaddleClas"])
def test_weights_of_paddle_compute_what_they_did(tmp_path, source, config, protocol, names):
    data = paddle(source)
    if names == "PaddleClas":  # the official code's names
        data = {rename(rename(n, [(r"(conv_proj_.)\.0", r"\1.conv"), (r"(conv_proj_.)\.1", r"\1.bn")
                                  ]), [(r"^stages\.", "stage")]): v for n, v in data.items()}
    (tmp_path / "w.pdparams").write_bytes(pickle.dumps(data, protocol))
    images = torch.randn(2, 3, 64, 64)

    model = create_model(config, weights=tmp_path / "w.pdparams")

    with torch.no_grad():
        assert torch.equal(model(images), source(images))
    assert model.load_report.format == ("paddle" if names == "PaddleViT" else "official")
    assert all(name.endswith("num_batches_tracked") for name in model.load_report.missing)


def outcome(model, path):
    """What loading a corrupt file raised; some changes only change a value."""
    try:
        load_weights(model, path)
    except InputError as error:
        return str(error)
    return "loaded"


class Bomb:
    def __reduce__(self):
        return PurePosixPath, ("x",)


@pytest.mark.parametrize(("data", "message"), [
    ({"a": np.zeros(3), "b": Bomb()}, "imports 'pathlib.PurePosixPath'"),
    ({"a": np.zeros(3), "b": print}, r"imports '(builtins|__builtin__)\.print'"),
    ({"a": 3}, "'a', which is not an array"), ([np.zeros(3)], "corrupt or not a file"),
    ({"a": np.array([None])}, "corrupt or not a file"), ({"a": np.zeros(3, ">f4")}, "corrupt or"),
    ({(1, 2): np.zeros(3)}, "corrupt or not a file"), ({"a": np.zeros(3, "c8")}, "corrupt or"),
    ({"a": np.full(2, np.nan, "f4")}, "not finite|not a checkpoint"), ({}, "no state dict"),
])
@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickle_of_paddle_with_anything_else_is_rejected(tmp_path, tiny, data, message, protocol):
    (tmp_path / "w.pdparams").write_bytes(pickle.dumps(data, protocol))

    with pytest.raises(InputError, match=message) as error:
        load_weights(CvT(tiny()), tmp_path / "w.pdparams")
    assert "\n" not in str(error.value)


def test_a_file_of_paddle_cut_off_or_changed_anywhere_is_rejected_in_one_line(tmp_path):
    path, linear = tmp_path / "w.pdparams", nn.Linear(4, 10)
    whole = pickle.dumps({"weight": np.zeros((4, 10), "f4"), "bias": np.zeros(10, "f4")}, 4)
    path.write_bytes(whole)
    load_weights(linear, path)

    for i in range(len(whole)):
        for broken in (whole[:i], whole[:i] + bytes([whole[i] ^ 0x55]) + whole[i + 1:]):
            path.write_bytes(broken)
            assert "\n" not in outcome(linear, path)


def test_a_small_file_of_paddle_fills_no_memory(tmp_path):
    """Its arrays refer to the same bytes, or to the same text that is to become bytes."""
    array = np.zeros(10_000, "f4")
    state = array.__reduce__()[2]

    class Same:
        def __reduce__(self):
            return *array.__reduce__()[:2], state

    for protocol in (2, 4):
        data = {f"{i}": Same() for i in range(1000)}
        (tmp_path / "w.pdparams").write_bytes(pickle.dumps(data, protocol))
        assert (tmp_path / "w.pdparams").stat().st_size < 200_000
        with pytest.raises(InputError, match="corrupt or not a file of PaddlePaddle"):
            read_state_dicts(tmp_path / "w.pdparams")


def test_several_are_listed_and_one_is_chosen(tmp_path, source, tiny, shaken, config):
    other = shaken(CvT(tiny())).eval()
    data = {"state_dict": named(source), "state_dict_ema": named(other), "args": namespace()}
    torch.save(data, tmp_path / "w.pth")
    torch.save({"student." + n: t for n, t in named(source).items()} |
               {"teacher." + n: t for n, t in named(other).items()}, tmp_path / "two.pth")
    images = torch.randn(1, 3, 64, 64)

    with pytest.raises(InputError, match=r"has 2 CvTs; choose key='state_dict' or "
                                         r"key='state_dict_ema' \(--key of `cvt convert`\)"):
        create_model(config, weights=tmp_path / "w.pth")
    with pytest.raises(InputError, match=r"choose prefix='student\.' or prefix='teacher\.' "):
        load_weights(CvT(tiny()), tmp_path / "two.pth")
    with pytest.raises(InputError, match="no state dict under the key 'ema'; its keys are"):
        create_model(config, weights=tmp_path / "w.pth", key="ema")

    ema = create_model(config, weights=tmp_path / "w.pth", key="state_dict_ema")
    teacher = create_model(config, weights=tmp_path / "two.pth", prefix="teacher.")
    with torch.no_grad():
        assert torch.equal(ema(images), other(images))
        assert torch.equal(teacher(images), other(images))
    assert "student.* " in str(teacher.load_report)


def test_one_state_dict_under_two_keys_is_one_choice(tmp_path, source, config):
    state = named(source)
    torch.save({"model": state, "best": {"state_dict": state}}, tmp_path / "w.pth")

    assert create_model(config, weights=tmp_path / "w.pth").load_report.key == "model"
    again = create_model(config, weights=tmp_path / "w.pth", key="best.state_dict")
    assert torch.equal(again.head.weight, source.head.weight)


def test_a_network_inside_another_is_its_own(tmp_path, source, tiny):
    torch.save({**named(source, "native"), **named(source, "native", prefix="momentum.")},
               tmp_path / "w.pth")
    model = CvT(tiny())

    with pytest.raises(InputError, match=r"choose prefix='' or prefix='momentum\.'"):
        load_weights(model, tmp_path / "w.pth")
    report = load_weights(model, tmp_path / "w.pth", prefix="")

    assert set(report.skipped.values()) == {"of another CvT"}
    assert torch.equal(model.head.weight, source.head.weight)


def test_parts_of_ones_own_under_the_prefix_are_named_and_ignored(tmp_path, source, tiny):
    torch.save({**named(source, prefix="backbone."), "backbone.fpn.weight": torch.ones(3)},
               tmp_path / "w.pth")
    model = CvT(tiny())

    with pytest.raises(InputError, match=r"\(fpn\.weight\).* ignore=\['backbone\.fpn\.\*'\]"):
        load_weights(model, tmp_path / "w.pth")
    report = load_weights(model, tmp_path / "w.pth", ignore=["backbone.fpn.*"])

    assert report.skipped == {"backbone.fpn.weight": "ignored, as requested"}


def test_a_trunk_without_class_token_or_norm_gives_features(tmp_path, source):
    state = {n: t for n, t in trunk(source, prefix="backbone.").items()
             if "cls_token" not in n and not n.startswith("backbone.norm")}
    source.config.save(tmp_path / "tiny.yaml")
    torch.save({"net": state}, tmp_path / "w.pth")

    model = create_model(str(tmp_path / "tiny.yaml"), weights=tmp_path / "w.pth")

    assert not model.config.stages[-1].cls_token
    assert model(torch.randn(2, 3, 64, 64)).shape == (2, 24)
    assert "no class token" in str(model.load_report)
    assert "no final norm" in str(model.load_report)


def esvit(_):
    names = ["stage0.0.proj.weight", "stage0.1.layers.0.0.norm.weight",
             "stage0.1.layers.0.0.fn.qkv.dw.weight", "stage0.1.layers.0.1.fn.net.0.weight"]
    return {"student": {f"module.backbone.{n}": torch.zeros(3) for n in names},
            "teacher": {f"backbone.{n}": torch.zeros(3) for n in names}, "args": namespace()}


def lucidrains(_):
    return {n: torch.zeros(3) for n in (
        "layers.0.0.weight", "layers.0.2.layers.0.0.to_q.net.0.weight",
        "layers.0.2.layers.0.0.to_kv.net.0.weight", "to_logits.2.weight")}


@pytest.mark.parametrize(("make", "message"), [
    (esvit, "the CvT of EsViT, which has window attention"),
    (lucidrains, r"the CvT of vit-pytorch \(lucidrains\), which has one projection"),
])
def test_other_networks_of_the_name_are_rejected_by_name(tmp_path, source, make, message):
    torch.save(make(source), tmp_path / "w.pth")

    for load in (load_model, lambda path: create_model("cvt_13", weights=path),
                 lambda path: load_weights(source, path)):
        with pytest.raises(InputError, match=message):
            load(tmp_path / "w.pth")


def test_the_arguments_of_a_script_are_neither_run_nor_kept(tmp_path, tiny, source):
    ran = []

    class Armed(argparse.Namespace):
        def __setstate__(self, state):
            ran.append(state)

    args = namespace()
    torch.save({"state_dict": named(source), "args": args}, tmp_path / "w.pth")
    data = (tmp_path / "w.pth").read_bytes()
    before = set(torch.serialization.get_safe_globals())
    argparse.Namespace.__setstate__ = Armed.__setstate__
    try:
        load_weights(CvT(tiny()), tmp_path / "w.pth")
        assert not ran
        torch.load(io.BytesIO(data), weights_only=False)
        assert ran  # an ordinary unpickler would
    finally:
        del argparse.Namespace.__setstate__
    assert set(torch.serialization.get_safe_globals()) == before


def test_many_references_to_one_dict_take_no_time(tmp_path, tiny):
    inner = {}
    for _ in range(6):
        inner = {f"{i}": inner for i in range(300)}
    torch.save(inner, tmp_path / "w.pth")

    with pytest.raises(InputError, match="has no state dict"):
        load_weights(CvT(tiny()), tmp_path / "w.pth")


def test_names_of_every_scheme_are_found_under_any_prefix():
    names = list(CvT(VARIANTS["cvt_nano"]).state_dict())
    for naming, table in FROM_NATIVE.items():
        for prefix in ("", "a.", "encoder.", "model.encoder."):
            theirs = [prefix + rename(name, table) for name in names]
            assert find_networks(theirs) == {prefix: naming}
    assert find_networks(["stages.0.weight", "layers.0.norm.weight", "head.weight"]) == {}


@pytest.mark.slow
def test_a_checkpoint_of_others_is_converted_with_the_options(tmp_path, capsys):
    torch.manual_seed(0)
    models = [CvT(VARIANTS["cvt_nano"]).eval() for _ in range(2)]
    torch.save({"state_dict": lightning(models[0])["state_dict"],
                "ema": {**named(models[1], prefix="net."), "net.aux.weight": torch.ones(3)}},
               tmp_path / "last.ckpt")
    command = ["convert", str(tmp_path / "last.ckpt"), str(tmp_path / "out"), "--to", "native"]

    assert main(command) == 1
    assert "choose key='state_dict' prefix='model.' or key='ema' prefix='net.'" in (
        capsys.readouterr().err)
    assert main([*command, "--key", "ema", "--ignore", "net.aux.*"]) == 0
    assert "key 'ema', prefix 'net.'" in capsys.readouterr().err
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(load_model(tmp_path / "out")[0](images), models[1](images))
    with pytest.raises(InputError, match="no tensor whose name starts with"):
        convert(tmp_path / "last.ckpt", tmp_path / "y", "native", key="ema", prefix="x.")
    assert not (tmp_path / "y").exists()
    assert json.loads((tmp_path / "out/config.json").read_text())
    assert collections.Counter(p.suffix for p in (tmp_path / "out").iterdir())[".safetensors"] == 1
