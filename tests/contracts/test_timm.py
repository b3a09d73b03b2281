"""timm's contract for a model, and that its factory, data and optimiser functions take a CvT."""

import copy
import dataclasses
import importlib
import json
import warnings

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.data import create_transform, infer_imagenet_subset, resolve_data_config
from timm.models import (
    FeatureInfo,
    create_feature_extractor,
    get_graph_node_names,
    group_parameters,
    model_entrypoint,
    register_model,
    save_for_hf,
)
from timm.optim import create_optimizer_v2, param_groups_layer_decay

import cvt.weights.timm_models
from cvt.config import VARIANTS, Preprocess
from cvt.data.preprocess import prepare
from cvt.model import CvT, QuickGELU
from cvt.system.errors import InputError
from cvt.weights.card import ModelCard
from cvt.weights.load import adapt_in_chans
from cvt.weights.models import config_of, load_model
from cvt.weights.names import FROM_NATIVE, rename
from cvt.weights.timm import build_config, config_json, read_card
from cvt.zoo import ZOO

pytestmark = pytest.mark.slow


def as_stages(config):
    return [dataclasses.asdict(stage) for stage in config.stages]


@pytest.fixture
def small(tiny, shaken):
    """small(every=None, last=None, **arguments): a tiny CvT that timm created."""
    def create(every=None, last=None, **arguments):
        stages = as_stages(tiny(every=every, last=last))
        return shaken(timm.create_model("cvt_13", stages=stages, **{
            "num_classes": 10, "img_size": 64, **arguments})).eval()
    return create


@pytest.fixture
def images():
    return torch.randn(2, 3, 64, 64)


def write(directory, model, preprocess=None):
    """`model` as a directory of timm, with numbered classes."""
    directory.mkdir(exist_ok=True)
    config = model.config
    card = ModelCard(
        model=config, classes=tuple(map(str, range(config.num_classes))),
        preprocess=(preprocess or Preprocess(size=64)).with_channels(config.in_chans))
    (directory / "config.json").write_text(json.dumps(config_json(card)))
    save_file(model.state_dict(), directory / "model.safetensors")
    return f"local-dir:{directory}"


# The registry


def test_timm_lists_every_variant_and_every_tag():
    assert timm.list_models("cvt*", module="timm_models") == sorted(VARIANTS)
    assert timm.list_pretrained("cvt*") == sorted(ZOO)


def test_a_variant_stands_for_its_first_tag():
    for name in VARIANTS:
        tags = [tag for tag in ZOO if ZOO[tag].variant == name]
        cfg = timm.get_pretrained_cfg(name)
        assert f"{name}.{cfg.tag}" == tags[0]


@pytest.mark.parametrize("tag", ZOO)
def test_a_tag_is_what_the_zoo_says(tag):
    row, cfg = ZOO[tag], timm.get_pretrained_cfg(tag)

    assert (cfg.hf_hub_id, cfg.license) == (row.repo, row.license)
    assert (cfg.origin_url is None) == (row.repo is None)  # ours do not come from microsoft
    assert cfg.num_classes == config_of(tag).num_classes
    # timm's cfg has no word for the activation, so weights must be of the variant's own.
    assert row.act == VARIANTS[row.variant].act


def test_weights_that_lie_in_the_package_need_no_network(monkeypatch):
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", None)
    images = torch.randn(2, 3, 28, 28)

    model = timm.create_model("cvt_nano.fashion_mnist", pretrained=True).eval()
    other = timm.create_model("cvt_nano.digits", pretrained=True, num_classes=3)

    assert torch.equal(model(images), load_model("cvt_nano.fashion_mnist")[0](images))
    assert other.head.out_features == 3


@pytest.mark.parametrize("tag", ["cvt_13.msft_in1k", "cvt_13.msft_in1k_384"])
def test_timm_prepares_an_image_as_this_package_does(tag):
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    image = Image.fromarray(pixels).resize((500, 420), Image.Resampling.BICUBIC)
    cfg = timm.get_pretrained_cfg(tag).to_dict()

    theirs = create_transform(**resolve_data_config(pretrained_cfg=cfg))(image)

    assert np.allclose(theirs, prepare(ZOO[tag].preprocess, image), atol=1e-5)


def test_an_image_model_of_timm_is_known_as_imagenets():
    with torch.device("meta"):
        assert infer_imagenet_subset(timm.create_model("cvt_13")) == "imagenet-1k"


def test_loading_the_module_again_does_not_warn():
    importlib.reload(cvt.weights.timm_models)

    assert model_entrypoint("cvt_13") is cvt.weights.timm_models.cvt_13
    assert timm.list_pretrained("cvt*") == sorted(ZOO)


def test_another_package_of_the_name_is_not_overwritten_in_silence():
    def cvt_nano():
        """Somebody else's."""

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        register_model(cvt_nano)

    with pytest.warns(UserWarning, match="Overwriting cvt_nano in registry"):
        importlib.reload(cvt.weights.timm_models)
    assert model_entrypoint("cvt_nano") is cvt.weights.timm_models.cvt_nano


# Arguments


def test_the_arguments_reach_the_network():
    config = timm.create_model(
        "cvt_nano", num_classes=5, in_chans=1, drop_rate=0.1, attn_drop_rate=0.2,
        drop_path_rate=0.3, act_layer="gelu", img_size=(48, 48)).config

    nano = VARIANTS["cvt_nano"]
    assert config == dataclasses.replace(
        nano, num_classes=5, in_chans=1, act="gelu", image_size=48, stages=tuple(
            dataclasses.replace(stage, drop_rate=0.1, attn_drop_rate=0.2,
                                drop_path_rate=0.3 if stage.drop_path_rate else 0.0)
            for stage in nano.stages))


def test_stochastic_depth_goes_to_the_last_stage_where_no_stage_has_some(tiny):
    config = build_config("cvt_13", stages=as_stages(tiny()), img_size=64, drop_path_rate=0.2)

    assert [stage.drop_path_rate for stage in config.stages] == [0, 0, 0.2]


def test_an_unknown_argument_raises():
    with pytest.raises(TypeError, match="patch_size"):
        timm.create_model("cvt_nano", patch_size=4)
    with pytest.raises(TypeError, match="out_indices"):
        timm.create_model("cvt_nano", out_indices=(0, 1))


@pytest.mark.parametrize(("arguments", "message"), [
    ({"act_layer": "relu"}, "act='relu'"),
    ({"drop_rate": 1.0}, "drop_rate=1.0"),
    ({"img_size": (32, 64)}, r"img_size=\(32, 64\) is not a square"),
    ({"stages": [{"dim": 8, "num_heads": 1, "depth": 1, "width": 3}]}, "unknown key 'width'"),
    ({"stages": 3}, "stages=3 is not a list"),
    ({"global_pool": "max"}, "global_pool='max' .* choose from 'token', 'avg', ''"),
    ({"features_only": True, "feature_cls": "hook"}, "feature_cls='hook' is not supported"),
])
def test_a_wrong_argument_is_rejected_with_what_to_do(arguments, message):
    with pytest.raises(InputError, match=message):
        timm.create_model("cvt_nano", **arguments)


# The model


@pytest.mark.parametrize(("name", "arguments", "size"), [
    ("cvt_nano", {}, 32), ("cvt_13", {}, 64), ("cvt_13", {"act_layer": "gelu"}, 71),
    ("cvt_nano", {"global_pool": "avg", "in_chans": 1}, 40),
])
def test_one_image_gives_logits_that_checkpointing_leaves_alone(name, arguments, size):
    model = timm.create_model(name, **arguments).eval()
    x = torch.randn(1, model.in_chans, size, size + 8)

    logits = model(x)
    model.set_grad_checkpointing()

    assert logits.shape == (1, model.num_classes)
    assert logits.isfinite().all()
    assert torch.equal(model(x), logits)


@pytest.mark.parametrize(("name", "pool"), [
    ("cvt_nano", "token"), ("cvt_nano", "avg"), ("cvt_13", None)])
def test_every_parameter_gets_a_gradient_and_checkpointing_the_same(name, pool):
    model = timm.create_model(name, num_classes=42, drop_path_rate=0.0, global_pool=pool)
    again = copy.deepcopy(model)
    again.set_grad_checkpointing()
    x = torch.randn(2, 3, 64, 64)

    for each in (model.train(), again.train()):
        out = each(x)
        assert out.shape == (2, 42)
        out.mean().backward()

    for (name, p), q in zip(model.named_parameters(), again.parameters(), strict=True):
        assert p.grad is not None, name
        assert torch.equal(p.grad, q.grad), name


def test_first_conv_and_classifier_are_in_the_state_dict():
    model = timm.create_model("cvt_nano")

    assert {model.default_cfg[key] + ".weight" for key in ("first_conv", "classifier")} <= set(
        model.state_dict())
    assert set(model.state_dict()) == set(CvT(VARIANTS["cvt_nano"]).state_dict())


def test_the_model_says_its_sizes(small):
    model = small(in_chans=2)

    assert (model.num_classes, model.in_chans, model.num_features, model.head_hidden_size,
            model.global_pool) == (10, 2, 24, 24, "token")
    assert model.get_classifier() is model.head


def test_the_head_pools_as_asked(small, images):
    model = small()
    tokens = model.forward_features(images)  # (2, 1 + 16, 24)

    assert tokens.shape == (2, 17, 24)
    assert torch.equal(model(images), model.head(tokens[:, 0]))
    for pool, pooled in (("token", tokens[:, 0]), ("avg", tokens[:, 1:].mean(1)), ("", tokens)):
        model.reset_classifier(5, pool)
        assert torch.equal(model.forward_head(tokens, pre_logits=True), pooled)
        assert torch.equal(model(images), model.head(pooled))
        assert model.num_classes == model.head.out_features == 5


def test_without_a_class_token_the_mean_is_taken_and_no_token_is_there(small, images):
    model = small(last={"cls_token": False})

    assert model.global_pool == "avg"
    assert torch.equal(model.forward_head(model.forward_features(images), pre_logits=True),
                       model.forward_features(images).mean(1))
    with pytest.raises(InputError, match=r"global_pool='token' .* choose from 'avg', ''"):
        model.reset_classifier(3, "token")


def test_reset_classifier_takes_the_head_away_and_keeps_the_pooling(small, images):
    model = small(global_pool="avg")

    model.reset_classifier(0)

    assert isinstance(model.get_classifier(), torch.nn.Identity)
    assert (model.num_classes, model.global_pool) == (0, "avg")
    assert model(images).shape == (2, model.head_hidden_size)
    model.reset_classifier(0, "")
    assert model(images).shape == (2, 17, 24)


def test_a_rejected_reset_changes_nothing(small, images):
    model = small()
    before = model(images)

    for wrong in ((3, "max"), (-1, "avg")):
        with pytest.raises(InputError):
            model.reset_classifier(*wrong)

    assert (model.num_classes, model.global_pool) == (10, "token")
    assert torch.equal(model(images), before)


# Optimiser groups


def test_parameters_sort_into_stem_blocks_and_head():
    model = timm.create_model("cvt_nano")

    layers = group_parameters(model, model.group_matcher(), reverse=True)

    assert set(layers) == {name for name, _ in model.named_parameters()}
    assert set(layers.values()) == set(range(1 + sum(s.depth for s in model.config.stages) + 1))
    assert [layers[name] for name in (
        "stages.0.embed.conv.weight", "stages.0.blocks.0.norm1.weight",
        "stages.1.embed.conv.weight", "stages.1.blocks.0.norm1.weight",
        "stages.1.blocks.1.norm1.weight", "stages.2.cls_token", "stages.2.blocks.0.norm1.weight",
        "stages.2.blocks.3.mlp.fc2.bias", "norm.weight", "head.bias")
    ] == [0, 1, 2, 2, 3, 4, 4, 7, 7, 8]


def test_coarsely_they_sort_into_stem_stages_and_head(small):
    model = small(every={"pos_embed": True})

    layers = group_parameters(model, model.group_matcher(coarse=True), reverse=True)

    assert [layers[name] for name in (
        "stages.0.embed.norm.weight", "stages.0.pos_embed", "stages.0.blocks.0.norm1.weight",
        "stages.1.embed.conv.weight", "stages.2.cls_token", "norm.weight", "head.weight")
    ] == [0, 0, 1, 2, 3, 4, 4]


def test_layer_decay_shrinks_the_rate_towards_the_stem():
    model = timm.create_model("cvt_nano")

    groups = param_groups_layer_decay(model, layer_decay=0.5,
                                      no_weight_decay_list=model.no_weight_decay())

    scale = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    assert scale[id(model.head.weight)] == 1
    assert scale[id(model.norm.weight)] == 0.5
    assert scale[id(model.stages[0].embed.conv.weight)] == 0.5**8


def test_class_token_and_position_embeddings_are_not_decayed(small):
    model = small(every={"pos_embed": True})

    optimizer = create_optimizer_v2(model, opt="adamw", weight_decay=0.05)

    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups
             for p in group["params"]}
    assert {name for name, p in model.named_parameters()
            if p.ndim > 1 and decay[id(p)] == 0} == {
                *(f"stages.{i}.pos_embed" for i in range(3)), "stages.2.cls_token"}


# Intermediate maps


@pytest.mark.parametrize("name", ["cvt_nano", "cvt_13"])
def test_the_maps_have_the_channels_and_strides_that_feature_info_says(name):
    model = timm.create_model(name).eval()
    info = FeatureInfo(model.feature_info, len(model.feature_info))
    x = torch.randn(1, 3, 96, 64)

    out, maps = model.forward_intermediates(x)

    assert torch.equal(out, model.forward_features(x))
    assert [m.shape for m in maps] == [
        (1, chs, 96 // stride, 64 // stride)
        for chs, stride in zip(info.channels(), info.reduction(), strict=True)]


def test_norm_norms_the_last_stage_alone(small, images):
    model = small()
    out, raw = model.forward_intermediates(images, output_fmt="NLC")

    again, maps = model.forward_intermediates(images, None, True, False, "NLC")

    assert torch.equal(again, out)
    assert torch.equal(maps[0], raw[0])
    assert torch.equal(maps[2], out[:, 1:])
    assert not torch.equal(maps[2], raw[2])
    (fmap, cls), = model.forward_intermediates(images, [-1], norm=True, stop_early=True,
                                               intermediates_only=True, return_prefix_tokens=True)
    assert torch.allclose(fmap.flatten(2).transpose(1, 2), out[:, 1:], atol=1e-6)
    assert torch.equal(cls, out[:, :1])
    blocks = model.forward_intermediates(images, [1, 2, 3], norm=True, level="block",
                                         output_fmt="NLC", intermediates_only=True)
    raw_blocks = model.forward_intermediates(images, [1, 2, 3], level="block", output_fmt="NLC",
                                             intermediates_only=True)
    assert [torch.equal(a, b) for a, b in zip(blocks, raw_blocks, strict=True)] == [
        True, False, False]


def test_what_cannot_be_returned_is_rejected(small, images):
    model = small()

    for wrong in ({"indices": [3]}, {"indices": 4}, {"output_fmt": "NHWC"}, {"stop_early": True}):
        with pytest.raises(InputError):
            model.forward_intermediates(images, **wrong)


@pytest.mark.parametrize(("indices", "kept"), [(1, [2]), ([0, -2], [0, 1]), ([0], [0])])
def test_pruning_keeps_the_maps_and_drops_the_rest(small, images, indices, kept):
    model = small()
    maps = model.forward_intermediates(images, indices, intermediates_only=True)

    assert model.prune_intermediate_layers(indices, prune_norm=True) == kept

    assert len(model.stages) == len(model.feature_info) == max(kept) + 1
    assert not {name for name, _ in model.named_parameters()
                if name.startswith(("norm", "head"))}
    for a, b in zip(model.forward_intermediates(images, kept, intermediates_only=True), maps,
                    strict=True):
        assert torch.equal(a, b)
    with pytest.raises(InputError, match="the norm was pruned"):
        model.forward_intermediates(images, norm=True)
    assert model.prune_intermediate_layers([0]) == [0]


def test_pruning_nothing_but_the_head_keeps_the_norm(small, images):
    model = small()
    tokens = model.forward_features(images)

    model.prune_intermediate_layers(3)

    assert torch.equal(model(images), tokens)


def test_a_pruned_network_takes_a_new_head(small, images):
    model = small()
    model.prune_intermediate_layers([1])

    model.reset_classifier(4, "avg")

    assert model(images).shape == (2, 4)


def test_a_head_without_its_stage_is_rejected(small, images):
    model = small()
    before = model(images)

    with pytest.raises(InputError, match="prune_head=False keeps a classifier"):
        model.prune_intermediate_layers([0], prune_head=False)
    with pytest.raises(InputError, match="indices is empty"):
        model.prune_intermediate_layers([])
    assert torch.equal(model(images), before)


@pytest.mark.parametrize("name", ["cvt_nano", "cvt_13"])
@pytest.mark.parametrize("in_chans", [3, 1])
def test_features_only_gives_every_stage(name, in_chans):
    model = timm.create_model(name, features_only=True, in_chans=in_chans).eval()
    x = torch.randn(1, in_chans, 96, 96)

    maps = model(x)

    config = VARIANTS[name]
    assert model.feature_info.channels() == [stage.dim for stage in config.stages]
    assert model.feature_info.reduction() == list(config.strides)
    assert [m.shape for m in maps] == [(1, s.dim, 96 // r, 96 // r)
                                       for s, r in zip(config.stages, config.strides, strict=True)]
    assert all(m.isfinite().all() for m in maps)


@pytest.mark.parametrize(("out", "positions"), [((1,), [1]), ((0, 2), [0, 2]), ((-1,), [2]),
                                                (2, [1, 2]), ((2, 0), [2, 0])])
def test_features_only_gives_the_stages_asked_for_and_no_idle_parameter(small, images, out,
                                                                        positions):
    whole = small()
    model = small(features_only=True, out_indices=out).eval()
    model.load_state_dict({f"model.{n}": t for n, t in whole.state_dict().items()
                           if f"model.{n}" in model.state_dict()})

    maps = model(images)

    expected = whole.forward_intermediates(images, positions, intermediates_only=True)
    assert model.feature_info.channels() == [m.shape[1] for m in maps]
    assert model.feature_info.reduction() == [4 * 2**i for i in positions]
    assert all(torch.equal(a, b) for a, b in zip(maps, expected, strict=True))
    sum(m.sum() for m in maps).backward()
    assert all(p.grad is not None for p in model.parameters())


# Tracing


@pytest.mark.parametrize("every", [{}, {"pos_embed": True, "projection": "avg"},
                                   {"projection": "linear", "stride_kv": 1, "cls_token": False}])
def test_a_trace_computes_the_same_bits(small, images, every):
    model = small(every=every, drop_path_rate=0.1)
    eval_nodes = get_graph_node_names(model)[1]

    extractor = create_feature_extractor(model, [eval_nodes[-1]]).eval()
    (logits,) = extractor(images).values()

    assert torch.equal(logits, model(images))
    assert torch.equal(torch.fx.symbolic_trace(model)(images), model(images))


def test_a_trace_in_training_gives_every_parameter_a_gradient(small, images):
    model = small(drop_path_rate=0.1).train()
    nodes = get_graph_node_names(model)[0]

    extractor = create_feature_extractor(model, [nodes[-1]]).train()
    next(iter(extractor(images).values())).mean().backward()

    assert all(p.grad is not None for p in model.parameters())


def test_any_node_can_be_taken_out_of_the_graph(small, images):
    model = small()
    found = {}
    model.stages[1].blocks[0].mlp.fc1.register_forward_hook(
        lambda _module, _x, out: found.update(fc1=out.clone()))
    model(images)

    out = create_feature_extractor(model, {"stages.1.blocks.0.mlp.fc1": "fc1", "head": "head"})(
        images)

    assert torch.equal(out["fc1"], found["fc1"])
    assert torch.equal(out["head"], model(images))


# Pretrained weights


def official(model):
    return {rename(name, FROM_NATIVE["official"]): t for name, t in model.state_dict().items()}


@pytest.mark.parametrize("names", ["native", "official", "huggingface"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_weights_in_anybodys_names_load(tmp_path, small, images, names, suffix):
    source, path = small(num_classes=1000), tmp_path / f"weights{suffix}"
    tensors = {rename(name, FROM_NATIVE[names]): t for name, t in source.state_dict().items()}
    save_file(tensors, path) if suffix == ".safetensors" else torch.save(tensors, path)

    loaded = timm.create_model("cvt_13", pretrained=True, stages=as_stages(source.config),
                               pretrained_cfg_overlay={"file": str(path)}).eval()

    assert torch.equal(loaded(images), source(images))


@pytest.mark.parametrize("num_classes", [5, 0])
def test_pretrained_weights_take_other_channels_and_classes(tmp_path, shaken, num_classes):
    source = shaken(timm.create_model("cvt_13"))
    save_file(official(source), tmp_path / "w.safetensors")

    model = timm.create_model("cvt_13", pretrained=True, in_chans=1, num_classes=num_classes,
                              pretrained_cfg_overlay={"file": str(tmp_path / "w.safetensors")})

    assert model.eval()(torch.randn(1, 1, 64, 64)).shape == (1, num_classes or 384)
    first = "stages.0.embed.conv.weight"
    expected = {**source.state_dict(), first: adapt_in_chans(source.state_dict()[first], 1)}
    for name, tensor in model.state_dict().items():
        assert name.startswith("head.") or torch.equal(tensor, expected[name]), name


def test_features_only_takes_pretrained_weights(tmp_path, small, images):
    source = small(num_classes=1000)
    torch.save(official(source), tmp_path / "w.pth")

    model = timm.create_model(
        "cvt_13", pretrained=True, features_only=True, out_indices=(0, 1), in_chans=3,
        stages=as_stages(source.config),
        pretrained_cfg_overlay={"file": str(tmp_path / "w.pth")}).eval()

    expected = source.forward_intermediates(images, [0, 1], intermediates_only=True)
    assert all(torch.equal(a, b) for a, b in zip(model(images), expected, strict=True))


def test_weights_of_another_network_are_rejected_even_where_timm_adapts(tmp_path, small, tiny):
    torch.save(official(small()), tmp_path / "w.pth")

    with pytest.raises(InputError, match=r"w\.pth is not a checkpoint of this architecture: 34 "):
        timm.create_model("cvt_13", pretrained=True, num_classes=5,
                          stages=as_stages(tiny(depths=(1, 1, 3))),
                          pretrained_cfg_overlay={"file": str(tmp_path / "w.pth")})


def test_weights_that_are_not_finite_are_rejected(tmp_path, small):
    source = small()
    source.norm.weight.data[0] = torch.nan
    torch.save(source.state_dict(), tmp_path / "w.pth")

    with pytest.raises(InputError, match=r"w\.pth has values that are not finite \(norm\.weigh"):
        timm.create_model("cvt_13", pretrained=True, num_classes=5,
                          stages=as_stages(source.config),
                          pretrained_cfg_overlay={"file": str(tmp_path / "w.pth")})


def test_position_embeddings_are_resized_to_the_models(tmp_path, small):
    source = small(every={"pos_embed": True}, num_classes=1000)
    torch.save(source.state_dict(), tmp_path / "w.pth")

    model = timm.create_model("cvt_13", pretrained=True, stages=as_stages(source.config),
                              img_size=128, pretrained_cfg_overlay={
                                  "file": str(tmp_path / "w.pth")}).eval()

    x = torch.randn(1, 3, 128, 128)
    assert model.stages[0].pos_embed.shape == (1, 8, 32, 32)
    assert torch.allclose(model(x), source(x), atol=1e-5)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_is_written_by_its_name(name):
    config = VARIANTS[name]
    data = config_json(ModelCard(
        model=config, preprocess=Preprocess(size=config.image_size),
        classes=tuple(map(str, range(config.num_classes)))))

    assert (data["architecture"], data["model_args"]) == (name, {})
    with torch.device("meta"):
        assert timm.create_model(name, num_classes=config.num_classes).config == config


@pytest.mark.parametrize("name", ["cvt_nano", "cvt_13"])
def test_a_directory_of_ours_loads_in_timm(tmp_path, shaken, images, name):
    source = shaken(CvT(VARIANTS[name])).eval()

    loaded = timm.create_model(write(tmp_path, source), pretrained=True).eval()

    assert torch.equal(loaded(images), source(images))


def test_directories_of_odd_networks_load_in_timm(tmp_path, shaken, tiny, ablated):
    configs = (ablated, tiny(act="gelu"), tiny(last={"cls_token": False}), tiny(in_chans=1),
               tiny(every={"pos_embed": True}), tiny(num_classes=0))
    for i, config in enumerate(configs):
        source = shaken(CvT(config)).eval()
        x = torch.randn(1, config.in_chans, 72, 64)

        loaded = timm.create_model(write(tmp_path / str(i), source), pretrained=True).eval()

        assert torch.equal(loaded(x), source(x))
        assert loaded.config == dataclasses.replace(config, init="trunc_norm")
        assert tuple(resolve_data_config(model=loaded)["input_size"]) == (config.in_chans, 64, 64)


def test_a_directory_of_ours_can_be_finetuned_in_timm(tmp_path, shaken, tiny):
    source = shaken(CvT(tiny()))
    place = write(tmp_path, source)

    model = timm.create_model(place, pretrained=True, num_classes=3, in_chans=1, drop_rate=0.1,
                              drop_path_rate=0.2)

    assert model.head.out_features == 3
    assert model.config.stages[-1].drop_path_rate == 0.2
    assert torch.equal(model.norm.weight, source.norm.weight)


def test_what_timm_saves_both_load(tmp_path, small, images):
    source = small(act_layer="gelu", num_classes=3, in_chans=3, drop_path_rate=0.1)
    assert type(source.stages[0].blocks[0].mlp.act) is not QuickGELU

    save_for_hf(source, tmp_path, safe_serialization=True, data_config={"input_size": (3, 64, 64)},
                model_config={"label_names": ["a", "b", "c"]})
    theirs = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    ours, card = load_model(tmp_path)

    assert torch.equal(theirs(images), source(images))
    assert torch.equal(ours(images), source(images))
    assert (card.classes, card.preprocess) == (("a", "b", "c"), Preprocess(size=64))


def test_another_pooling_loads_in_timm_and_is_rejected_here(tmp_path, small, images):
    source = small(global_pool="avg")
    save_for_hf(source, tmp_path, safe_serialization=True, data_config={"input_size": (3, 64, 64)})

    theirs = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()

    assert torch.equal(theirs(images), source(images))
    with pytest.raises(InputError, match="global_pool='avg' is not the pooling"):
        load_model(tmp_path)


@pytest.mark.parametrize(("data", "message"), [
    ({"model_args": {"depths": 3}}, "model_args has the unknown key 'depths'"),
    ({"model_args": {"in_chans": "3"}}, "in_chans='3' must be of type int"),
    ({"pretrained_cfg": {"crop_mode": "border"}}, "crop_mode='border' is not known"),
    ({"pretrained_cfg": {"crop_mode": "squash", "crop_pct": 0.9}},
     "mode='squash' does not crop"),
    ({"pretrained_cfg": {"input_size": [3, 64, 32]}}, "input_size=.* is not .channels, size, size"),
    ({"label_names": 3}, "label_names=3 is not a list"),
    ({"label_names": "cat"}, "label_names='cat' is not a list"),
    ({"label_names": {"1": "cat", "2": "dog"}}, "label_names has the indices 1, 2, not 0 to 1"),
    ({"label_names": ["cat"]}, "1 class names for a classifier of 1000"),
])
def test_a_config_of_timm_that_makes_no_sense_here_is_rejected(tmp_path, data, message):
    with pytest.raises(InputError, match=f"config.json: {message}"):
        read_card(tmp_path, {"architecture": "cvt_13", **data})


def test_a_config_without_pretrained_cfg_is_read_as_timm_reads_it(tmp_path):
    card = read_card(tmp_path, {
        "architecture": "cvt_13", "num_classes": 2, "input_size": [3, 96, 96], "crop_pct": 1.0,
        "label_names": {"1": "dog", "0": "cat"}})

    assert card.preprocess == Preprocess(size=96, crop=1.0)
    assert (card.classes, card.model) == (
        ("cat", "dog"), dataclasses.replace(VARIANTS["cvt_13"], num_classes=2))
