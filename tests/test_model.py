import copy
import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.export import Dim
from torchvision.models.feature_extraction import create_feature_extractor

from cvt.config import VARIANTS, CvTConfig, StageConfig
from cvt.model import MLP, Block, CvT, DropPath, QuickGELU, join, split, to_map, to_tokens
from cvt.system.errors import InputError

ABLATIONS = {
    "linear": {"every": {"projection": "linear", "stride_kv": 1}},
    "avg": {"every": {"projection": "avg"}},
    "patch": {"every": {"embed": "patch", "embed_kernel": 2, "embed_stride": 2,
                        "embed_padding": 0}},
    "kernel_5": {"every": {"kernel": 5, "padding_kv": 2}},
    "kv_stride_1": {"every": {"stride_kv": 1}},
    "block_by_block": {"last": {"stride_kv": (1, 2), "mlp_ratio": (2.0, 4.0)}},
    "no_qkv_bias": {"every": {"qkv_bias": False}},
    "pos_embed": {"every": {"pos_embed": True}},
    "cls_in_every_stage": {"every": {"cls_token": True}},
    "cls_in_no_stage": {"last": {"cls_token": False}},
    "gelu": {"act": "gelu"},
    "xavier": {"init": "xavier"},
}
STOCHASTIC = {"drop_rate": 0.1, "attn_drop_rate": 0.1, "drop_path_rate": 0.5}


def images(batch=2, height=64, width=64, chans=3):
    return torch.randn(batch, chans, height, width)


def training_step(model, x, seed=1):
    """Loss, gradients and buffers after one forward and backward pass, under one seed."""
    torch.manual_seed(seed)
    model.zero_grad()
    loss = F.cross_entropy(model(x), torch.arange(len(x)))
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    return loss, gradients, {name: b.clone() for name, b in model.named_buffers()}


# Size

@pytest.mark.parametrize(("name", "parameters", "blocks"), [
    ("cvt_13", 19_997_480, 13), ("cvt_21", 31_622_696, 21), ("cvt_w24", 277_196_392, 24),
    ("cvt_nano", 1_023_306, 7),
])
def test_a_variant_has_the_parameters_and_entries_of_the_official_network(name, parameters, blocks):
    with torch.device("meta"):
        model = CvT(VARIANTS[name])

    assert sum(p.numel() for p in model.parameters()) == parameters
    assert len(model.state_dict()) == 34 * blocks + 17


def test_a_model_built_on_the_meta_device_allocates_nothing(ablated):
    with torch.device("meta"):
        model = CvT(ablated)

    assert all(t.is_meta for t in model.state_dict().values())
    assert model(torch.zeros(2, 1, 48, 48, device="meta")).shape == (2, 4)


def test_the_names_of_the_state_dict_are_pinned(tiny):
    projections = [f"{p}.{name}" for p in "qkv" for name in (
        "conv.weight", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var",
        "bn.num_batches_tracked", "linear.weight", "linear.bias")]
    block = ["norm1.weight", "norm1.bias", *(f"attn.{name}" for name in projections),
             "attn.proj.weight", "attn.proj.bias", "norm2.weight", "norm2.bias",
             "mlp.fc1.weight", "mlp.fc1.bias", "mlp.fc2.weight", "mlp.fc2.bias"]
    embed = ["embed.conv.weight", "embed.conv.bias", "embed.norm.weight", "embed.norm.bias"]

    names = list(CvT(tiny(depths=(1, 1, 1), last={"pos_embed": True})).state_dict())

    assert names == [
        *(f"stages.0.{name}" for name in embed), *(f"stages.0.blocks.0.{name}" for name in block),
        *(f"stages.1.{name}" for name in embed), *(f"stages.1.blocks.0.{name}" for name in block),
        "stages.2.pos_embed", "stages.2.cls_token", *(f"stages.2.{name}" for name in embed),
        *(f"stages.2.blocks.0.{name}" for name in block),
        "norm.weight", "norm.bias", "head.weight", "head.bias"]


# Input and output

def test_one_image_keeps_its_batch_axis(tiny_model):
    assert tiny_model(images(1)).shape == (1, 10)


def test_an_image_has_the_same_logits_alone_and_in_a_batch(tiny_model):
    x = images(3)

    torch.testing.assert_close(tiny_model(x[1:2]), tiny_model(x)[1:2], rtol=0, atol=1e-6)


@pytest.mark.parametrize(("height", "width"), [(64, 96), (75, 53), (33, 128), (17, 16)])
def test_images_may_have_any_shape(tiny_model, height, width):
    x = images(2, height, width)

    logits = tiny_model(x)

    assert logits.shape == (2, 10)
    assert logits.isfinite().all()


@pytest.mark.parametrize("chans", [1, 4])
def test_images_may_have_any_number_of_channels(tiny, chans):
    model = CvT(tiny(in_chans=chans))

    assert model(images(chans=chans)).shape == (2, 10)


@pytest.mark.parametrize("shape", [(2, 1, 64, 64), (2, 4, 64, 64), (3, 64, 64), (2, 3, 64)])
def test_images_of_another_form_are_rejected_with_their_shape(tiny_model, shape):
    with pytest.raises(InputError, match=r"shape \(B, 3, H, W\), got \(" + str(shape)[1:-1]):
        tiny_model(torch.zeros(shape))


@pytest.mark.parametrize("ablation", ["plain", "patch", "avg", "kv_stride_1"])
def test_the_least_size_runs_and_one_pixel_less_is_rejected(tiny, ablation):
    config = tiny(**ABLATIONS.get(ablation, {}))
    model, least = CvT(config).eval(), config.min_size()

    assert model(images(2, least, least)).shape == (2, 10)
    for height, width in ((least - 1, 64), (64, least - 1)):
        with pytest.raises(InputError, match=f"at least {least} pixels a side"):
            model(images(2, height, width))
        with pytest.raises(InputError, match=f"at least {least} pixels a side"):
            model.forward_intermediates(images(2, height, width))


def test_forward_is_the_head_of_the_features(tiny_model):
    x = images()

    features = tiny_model.forward_features(x)

    assert features.shape == (2, 1 + 4 * 4, 24)
    assert torch.equal(tiny_model.forward_head(features), tiny_model(x))


def test_pre_logits_are_what_the_classifier_sees(tiny_model):
    x = images()

    pooled = tiny_model.forward_head(tiny_model.forward_features(x), pre_logits=True)

    assert pooled.shape == (2, tiny_model.num_features)
    assert torch.equal(tiny_model.head(pooled), tiny_model(x))


def test_the_class_token_is_classified_where_there_is_one(tiny_model):
    features = tiny_model.forward_features(images())

    pooled = tiny_model.forward_head(features, pre_logits=True)

    assert torch.equal(pooled, features[:, 0])


def test_the_mean_token_is_classified_without_a_class_token(tiny):
    model = CvT(tiny(last={"cls_token": False})).eval()
    features = model.forward_features(images())

    pooled = model.forward_head(features, pre_logits=True)

    assert features.shape == (2, 4 * 4, 24)
    assert torch.equal(pooled, features.mean(1))


def test_without_classes_the_result_is_the_pooled_feature(tiny):
    model = CvT(tiny(num_classes=0)).eval()
    x = images()

    pooled = model(x)

    assert pooled.shape == (2, 24)
    assert torch.equal(pooled, model.forward_head(model.forward_features(x), pre_logits=True))
    assert "head.weight" not in model.state_dict()


def test_the_classifier_is_replaced_and_the_features_are_kept(tiny_model):
    x = images()
    features = tiny_model.forward_features(x)

    for classes, shape in ((7, (2, 7)), (0, (2, 24)), (10, (2, 10))):
        tiny_model.reset_classifier(classes)

        assert tiny_model(x).shape == shape
        assert tiny_model.config.num_classes == classes
        assert CvT(tiny_model.config).state_dict().keys() == tiny_model.state_dict().keys()
    assert torch.equal(tiny_model.forward_features(x), features)
    assert tiny_model.get_classifier() is tiny_model.head


def test_a_new_classifier_has_the_dtype_and_the_initialisation_of_the_model(tiny):
    model = CvT(tiny(num_classes=1000)).double()
    old = model.head.weight

    model.reset_classifier(1000)

    assert model.head.weight.dtype == torch.float64
    assert not torch.equal(model.head.weight, old)
    assert model.head.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert model(images().double()).dtype == torch.float64


def test_a_negative_number_of_classes_leaves_the_classifier(tiny_model):
    with pytest.raises(InputError, match="num_classes=-1"):
        tiny_model.reset_classifier(-1)

    assert tiny_model(images()).shape == (2, 10)


# Intermediates

def test_stage_maps_have_the_channels_and_strides_that_feature_info_tells(tiny_model):
    features, maps = tiny_model.forward_intermediates(images(2, 64, 96))

    assert [tuple(m.shape) for m in maps] == [(2, 8, 16, 24), (2, 16, 8, 12), (2, 24, 4, 6)]
    assert tiny_model.feature_info == [
        {"num_chs": 8, "reduction": 4, "module": "stages.0"},
        {"num_chs": 16, "reduction": 8, "module": "stages.1"},
        {"num_chs": 24, "reduction": 16, "module": "stages.2"}]
    assert features.shape == (2, 1 + 4 * 6, 24)


@pytest.mark.parametrize("ablation", ["plain", "cls_in_every_stage", "cls_in_no_stage", "avg"])
@pytest.mark.parametrize("level", ["stage", "block"])
def test_intermediates_come_with_the_features_of_the_forward_pass(tiny, ablation, level):
    model = CvT(tiny(**ABLATIONS.get(ablation, {}))).eval()
    x = images()

    features, maps = model.forward_intermediates(x, level=level)

    assert torch.equal(features, model.forward_features(x))
    assert len(maps) == {"stage": 3, "block": 4}[level]


def test_the_last_block_of_a_stage_gives_the_map_of_the_stage(tiny_model):
    x = images()

    stages = tiny_model.forward_intermediates(x, intermediates_only=True)
    blocks = tiny_model.forward_intermediates(x, level="block", intermediates_only=True)

    assert [tuple(m.shape[1:]) for m in blocks] == [(8, 16, 16), (16, 8, 8), (24, 4, 4), (24, 4, 4)]
    for stage, block in zip(stages, [blocks[0], blocks[1], blocks[3]], strict=True):
        assert torch.equal(stage, block)
    assert not torch.equal(blocks[2], blocks[3])


def test_a_stage_map_is_what_the_next_stage_sees(tiny_model):
    seen = []
    tiny_model.stages[2].embed.conv.register_forward_pre_hook(lambda _, args: seen.append(args[0]))

    _, maps = tiny_model.forward_intermediates(images())

    assert torch.equal(seen[0], maps[1])


@pytest.mark.parametrize("level", ["stage", "block"])
@pytest.mark.parametrize(("indices", "positions"), [
    (1, [-1]), (2, [-2, -1]), (3, [-3, -2, -1]), ([0], [0]), ([-1, 0], [-1, 0]), ((1, -2), [1, -2]),
    ([2, 2], [2, 2]), ([], []),
])
def test_indices_pick_maps_in_the_order_asked_for(tiny_model, level, indices, positions):
    x = images()
    every = tiny_model.forward_intermediates(x, level=level, intermediates_only=True)

    maps = tiny_model.forward_intermediates(x, indices, level=level, intermediates_only=True)

    assert len(maps) == len(positions)
    assert all(torch.equal(m, every[i]) for m, i in zip(maps, positions, strict=True))


@pytest.mark.parametrize("level", ["stage", "block"])
@pytest.mark.parametrize("indices", [0, -1, 5, [4], [-5], [0, 7]])
def test_an_index_out_of_range_is_rejected(tiny_model, level, indices):
    with pytest.raises(InputError, match=r"\d of \d|out of range"):
        tiny_model.forward_intermediates(images(), indices, level=level)


@pytest.mark.parametrize(("changes", "message"), [
    ({"stop_early": True}, "set intermediates_only=True"),
    ({"level": "layer"}, "level='layer'"),
    ({"output_fmt": "NHWC"}, "output_fmt='NHWC'"),
])
def test_intermediates_in_another_form_are_rejected(tiny_model, changes, message):
    with pytest.raises(InputError, match=message):
        tiny_model.forward_intermediates(images(), **changes)


def test_tokens_are_the_maps_row_by_row(tiny_model):
    x = images(2, 64, 96)
    maps = tiny_model.forward_intermediates(x, intermediates_only=True)

    tokens = tiny_model.forward_intermediates(x, output_fmt="NLC", intermediates_only=True)

    for fmap, sequence in zip(maps, tokens, strict=True):
        assert sequence.shape == (2, fmap.shape[2] * fmap.shape[3], fmap.shape[1])
        assert torch.equal(sequence[:, fmap.shape[3] + 2], fmap[:, :, 1, 2])


def test_prefix_tokens_are_the_class_tokens(tiny_model):
    x = images()
    features, pairs = tiny_model.forward_intermediates(x, return_prefix_tokens=True)
    maps = tiny_model.forward_intermediates(x, intermediates_only=True)

    assert [cls is None for _, cls in pairs] == [True, True, False]
    assert all(torch.equal(pair[0], fmap) for pair, fmap in zip(pairs, maps, strict=True))
    assert torch.equal(tiny_model.norm(pairs[2][1]), features[:, :1])


@pytest.mark.parametrize(("level", "indices", "run"), [
    ("stage", [0], ["0.0"]), ("stage", [1, 0, 1], ["0.0", "1.0"]),
    ("stage", 1, ["0.0", "1.0", "2.0", "2.1"]), ("block", [0, 0], ["0.0"]),
    ("block", [2, -3], ["0.0", "1.0", "2.0"]),
])
def test_stopping_early_gives_the_same_maps_without_later_work(tiny_model, level, indices, run):
    x = images()
    full = tiny_model.forward_intermediates(x, indices, level=level, intermediates_only=True)
    ran = []
    for i, stage in enumerate(tiny_model.stages):
        for j, block in enumerate(stage.blocks):
            block.register_forward_hook(lambda *_, name=f"{i}.{j}": ran.append(name))

    early = tiny_model.forward_intermediates(x, indices, level=level, intermediates_only=True,
                                             stop_early=True)

    torch.testing.assert_close(early, full, rtol=0, atol=0)
    assert ran == run


# Parts

@pytest.mark.parametrize("ablation", ABLATIONS)
def test_every_parameter_of_an_ablation_gets_a_gradient(tiny, ablation):
    model = CvT(tiny(**ABLATIONS[ablation]))

    logits = model(images())
    logits.square().sum().backward()

    assert logits.shape == (2, 10)
    assert [n for n, p in model.named_parameters() if p.grad is None] == []
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("ablation", sorted(set(ABLATIONS) - {"xavier"}))
def test_an_ablation_changes_what_the_network_computes(tiny, shaken, ablation):
    plain, changed = CvT(tiny()), CvT(tiny(**ABLATIONS[ablation]))
    shaken(plain)
    own = changed.state_dict()
    changed.load_state_dict({n: t for n, t in plain.state_dict().items()
                             if n in own and own[n].shape == t.shape}, strict=False)
    x = images()

    difference = (plain.eval()(x) - changed.eval()(x)).abs().max()

    assert difference > 1e-4


def test_class_tokens_stand_in_front_of_their_own_stage_alone(tiny):
    model = CvT(tiny(every={"cls_token": True}, depths=(1, 1, 1)))
    lengths = []
    for stage in model.stages:
        stage.blocks[0].register_forward_pre_hook(lambda _, args: lengths.append(args[0].shape[1]))

    model(images())

    assert lengths == [1 + 16 * 16, 1 + 8 * 8, 1 + 4 * 4]


def test_without_class_tokens_there_is_no_such_parameter(tiny):
    model = CvT(tiny(last={"cls_token": False}))

    assert not [name for name in model.state_dict() if "cls_token" in name]
    assert model(images()).shape == (2, 10)


def test_the_position_embedding_is_added_as_it_is_on_its_own_grid(tiny):
    plain, model = CvT(tiny()), CvT(tiny(every={"pos_embed": True}))
    model.load_state_dict(plain.state_dict(), strict=False)
    x = images()

    grid = (16, 16)
    difference = model.stages[0].enter(x)[0] - plain.stages[0].enter(x)[0]

    torch.testing.assert_close(to_map(difference, grid)[0], model.stages[0].pos_embed[0],
                               rtol=0, atol=1e-6)


def test_the_position_embedding_works_on_any_grid_and_tells_places_apart(tiny):
    model = CvT(tiny(every={"pos_embed": True}, last={"cls_token": False})).eval()
    x = torch.ones(1, 3, 50, 90)

    (fmap,) = model.forward_intermediates(x, [0], intermediates_only=True)
    model(x).sum().backward()

    assert fmap.shape[2:] == model.config.grids((50, 90))[0]
    assert fmap[0, :, 5, 5].sub(fmap[0, :, 5, 12]).abs().max() > 1e-4
    assert all(stage.pos_embed.grad.any() for stage in model.stages)


def test_tokens_and_their_embeddings_are_left_alone_by_weight_decay(tiny):
    model = CvT(tiny(every={"pos_embed": True}))

    assert model.no_weight_decay() == {
        "stages.0.pos_embed", "stages.1.pos_embed", "stages.2.pos_embed", "stages.2.cls_token"}
    assert CvT(tiny(last={"cls_token": False})).no_weight_decay() == set()


def test_quick_gelu_is_x_times_sigmoid_of_1_702_x():
    x = torch.linspace(-6, 6, 241, dtype=torch.float64)
    before = x.clone()

    torch.testing.assert_close(QuickGELU()(x), x * torch.sigmoid(1.702 * x))
    assert torch.equal(x, before)


def test_hooks_see_what_the_layers_computed_and_survive_the_backward_pass(tiny_model):
    fc1 = tiny_model.stages[0].blocks[0].mlp.fc1
    seen, gradients = [], []
    fc1.register_forward_hook(lambda _, args, out: seen.append((args[0], out)))
    fc1.register_full_backward_hook(lambda _m, _in, out: gradients.append(out[0]))

    tiny_model(images()).sum().backward()

    x, out = seen[0]
    assert torch.equal(out, F.linear(x, fc1.weight, fc1.bias))
    assert gradients[0].shape == out.shape


def test_a_hook_keeps_what_it_saw_and_nothing_else_keeps_memory(tiny_model):
    """Without gradients the activation works in place, unless a hook looks at its input."""
    x, mlp = torch.randn(2, 16, 8), tiny_model.stages[0].blocks[0].mlp
    with torch.no_grad():
        plain = mlp(x)
        inside = []
        handle = mlp.act.register_forward_hook(lambda _, args, out: inside.append((args[0], out)))
        mlp(x)
        assert inside[0][0] is inside[0][1]
        handle.remove()
        seen = []
        mlp.fc1.register_forward_hook(lambda _m, _args, out: seen.append(out))
        assert torch.equal(mlp(x), plain)
    assert torch.equal(seen[0], F.linear(x, mlp.fc1.weight, mlp.fc1.bias))


def test_attention_is_scaled_by_the_full_width(tiny):
    config = tiny().stages[2]
    block = Block(config, nn.GELU(), 0.0).eval()
    x = torch.randn(2, 1 + 16, 24)
    cls, fmap = x[:, :1], to_map(x[:, 1:], (4, 4))
    q, k, v = (p(cls, fmap).unflatten(2, (3, 8)).transpose(1, 2)
               for p in (block.attn.q, block.attn.k, block.attn.v))

    weights = (q @ k.transpose(2, 3) / math.sqrt(24)).softmax(-1)
    expected = block.attn.proj((weights @ v).transpose(1, 2).flatten(2))

    torch.testing.assert_close(block.attn(x, (4, 4)), expected)


def test_maps_and_tokens_are_views_of_each_other():
    x = torch.randn(2, 12, 8)

    fmap = to_map(x, (3, 4))

    assert fmap.shape == (2, 8, 3, 4)
    assert fmap.data_ptr() == x.data_ptr()
    assert fmap.is_contiguous(memory_format=torch.channels_last)
    assert to_tokens(fmap).data_ptr() == x.data_ptr()
    assert torch.equal(to_tokens(fmap), x)
    assert torch.equal(fmap[:, :, 1, 2], x[:, 1 * 4 + 2])


@pytest.mark.parametrize("cls_token", [True, False])
def test_a_split_sequence_is_joined_again(cls_token):
    x = torch.randn(2, cls_token + 12, 8)

    cls, fmap = split(x, (3, 4), cls_token)

    assert (cls is not None) == cls_token
    assert fmap.data_ptr() == x[:, int(cls_token)].data_ptr()
    assert torch.equal(join(cls, fmap), x)


# Training

def test_stochastic_depth_rises_linearly_within_each_stage(tiny):
    model = CvT(tiny(every={"drop_path_rate": 0.3}, depths=(1, 2, 4)))

    for stage in model.stages:
        rates = [block.drop_path.rate for block in stage.blocks]
        assert rates == pytest.approx(torch.linspace(0, 0.3, len(rates)).tolist())


def test_stochastic_depth_keeps_the_expectation_and_drops_whole_samples():
    x = torch.ones(20_000, 2, 3)

    y = DropPath(0.25)(x)

    assert y.unique().tolist() == pytest.approx([0, 1 / 0.75])
    assert torch.equal(y, y[:, :1, :1].expand_as(y))
    assert y.mean().item() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize(("rate", "training"), [(0.5, False), (0.0, True)])
def test_stochastic_depth_is_the_identity_in_evaluation_and_at_rate_0(rate, training):
    x = torch.randn(8, 2, 3)

    assert torch.equal(DropPath(rate).train(training)(x), x)


def test_dropout_acts_in_training_only(tiny):
    model = CvT(tiny(every=STOCHASTIC))
    x = images()

    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


def test_dropout_acts_on_the_sequence_the_projection_and_both_layers_of_the_mlp(tiny):
    model = CvT(tiny(every={"drop_rate": 0.5}, depths=(1, 1, 1)))
    calls = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Dropout):
            assert module.p == 0.5
            module.register_forward_hook(lambda *_, name=name: calls.append(name))

    model(images())

    assert calls == [f"stages.{i}.{name}" for i in range(3) for name in (
        "drop", "blocks.0.attn.drop", "blocks.0.mlp.drop", "blocks.0.mlp.drop")]


def test_each_branch_is_dropped_for_each_image_on_its_own(tiny):
    model = CvT(tiny(last={"drop_path_rate": 0.5}))
    dropped = []
    model.stages[2].blocks[1].drop_path.register_forward_hook(
        lambda *args: dropped.append((args[2] == 0).all(2).all(1).tolist()))

    model(images(64, 32, 32))

    attention, mlp = dropped
    assert len(set(zip(attention, mlp, strict=True))) == 4


def test_linear_weights_start_at_the_official_spread():
    config = CvTConfig(stages=(StageConfig(dim=128, num_heads=2, depth=2, cls_token=True,
                                           pos_embed=True),), image_size=64)
    model = CvT(config)
    linears = [m for n, m in model.named_modules() if isinstance(m, nn.Linear) and n != "head"]
    weights = torch.cat([m.weight.flatten() for m in linears])

    assert weights.std().item() == pytest.approx(0.02, rel=0.01)
    assert not any(m.bias.any() for m in linears)
    assert model.head.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert model.head.bias.any()
    assert model.stages[0].cls_token.std().item() == pytest.approx(0.02, rel=0.3)
    assert model.stages[0].pos_embed.std().item() == pytest.approx(0.02, rel=0.02)


def test_convolutions_and_norms_start_at_the_default_of_pytorch(tiny):
    model = CvT(tiny())
    stem = model.stages[0].embed.conv.weight
    depthwise = model.stages[2].blocks[0].attn.q.conv.weight

    for weight, fan_in in ((stem, 3 * 49), (depthwise, 9)):
        assert 0.9 * fan_in**-0.5 < weight.abs().max() <= fan_in**-0.5
    for norm in (m for m in model.modules() if isinstance(m, (nn.LayerNorm, nn.BatchNorm2d))):
        assert norm.eps == 1e-5
        assert (norm.weight == 1).all()
        assert not norm.bias.any()


def test_xavier_fills_the_linear_weights_uniformly(tiny):
    model = CvT(tiny(init="xavier"))

    for m in (m for n, m in model.named_modules() if isinstance(m, nn.Linear) and n != "head"):
        bound = math.sqrt(6 / sum(m.weight.shape))
        assert 0.9 * bound < m.weight.abs().max() <= bound
        assert m.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.2)


def test_the_mlp_is_as_wide_as_its_ratio(tiny):
    mlp = MLP(dataclasses.replace(tiny().stages[0], mlp_ratio=2.5), nn.GELU())

    assert (mlp.fc1.out_features, mlp.fc2.in_features) == (20, 20)


def test_gradient_checkpointing_changes_neither_loss_nor_gradients_nor_statistics(tiny):
    plain = CvT(tiny(every=STOCHASTIC))
    plain.stages[1].blocks[0].attn.k.bn.momentum = 0.3
    frugal = copy.deepcopy(plain)
    frugal.set_grad_checkpointing()
    x = images(4)

    for step in range(2):
        expected, result = (training_step(m, x, seed=step) for m in (plain, frugal))

        torch.testing.assert_close(result, expected, rtol=0, atol=0)
    assert frugal.stages[0].blocks[0].attn.q.bn.num_batches_tracked == 2


def test_gradient_checkpointing_computes_each_block_again_in_the_backward_pass(tiny_model):
    tiny_model.train().set_grad_checkpointing()
    calls = []
    tiny_model.stages[1].blocks[0].mlp.fc1.register_forward_hook(lambda *_: calls.append(1))

    loss = tiny_model(images()).sum()
    assert len(calls) == 1
    loss.backward()
    assert len(calls) == 2

    tiny_model.set_grad_checkpointing(False)
    tiny_model(images()).sum().backward()
    assert len(calls) == 3


def test_frozen_batch_norm_stays_frozen_under_gradient_checkpointing(tiny):
    model = CvT(tiny())
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.eval()
    model.set_grad_checkpointing()

    _, _, buffers = training_step(model, images())

    assert all(not b.any() for name, b in buffers.items() if "num_batches" in name)
    assert all(norm.track_running_stats for norm in norms)


def test_bfloat16_autocast_stays_near_float32(tiny_model):
    x = images()

    with torch.autocast("cpu", torch.bfloat16):
        logits = tiny_model(x)

    torch.testing.assert_close(logits.float(), tiny_model(x), rtol=0.1, atol=0.02)


# Compilers

@pytest.mark.parametrize("training", [False, True])
@pytest.mark.slow
def test_compiling_finds_one_graph_that_equals_eager(tiny, training):
    torch._dynamo.reset()
    model = CvT(tiny(every=STOCHASTIC)).train(training)
    twin = copy.deepcopy(model)
    x = images(2, 64, 48)

    torch.manual_seed(1)
    compiled = torch.compile(twin, fullgraph=True, backend="eager")(x)
    torch.manual_seed(1)
    eager = model(x)

    assert torch.equal(compiled, eager)
    torch.testing.assert_close(twin.state_dict(), model.state_dict(), rtol=0, atol=0)


@pytest.mark.slow
def test_an_exported_program_runs_any_batch_and_size(tiny):
    # 35 pixels give the last stage two keys a side; torch.export takes a side of 1 for a constant.
    model = CvT(tiny(every={"pos_embed": True}, depths=(1, 1, 1))).eval()
    sizes = {0: Dim("batch"), 2: Dim("height", min=35), 3: Dim("width", min=35)}

    program = torch.export.export(model, (images(2, 64, 96),), dynamic_shapes=(sizes,)).module()

    for shape in ((1, 64, 64), (3, 75, 53), (2, 35, 160)):
        x = images(*shape)
        torch.testing.assert_close(program(x), model(x), rtol=0, atol=1e-6)


def test_a_symbolic_trace_equals_eager(tiny_model):
    traced = torch.fx.symbolic_trace(tiny_model)
    x = images(3, 75, 53)

    assert torch.equal(traced(x), tiny_model(x))


def test_a_trace_without_gradients_keeps_what_every_layer_gave(tiny_model):
    """The in-place activation is not for a graph whose nodes may all be read."""
    x = images()
    with torch.no_grad():
        traced = create_feature_extractor(tiny_model, ["stages.0.blocks.0.mlp.fc1", "head"])
        out = traced(x)

    fc1 = tiny_model.stages[0].blocks[0].mlp.fc1
    seen = []
    fc1.register_forward_hook(lambda _m, _args, out: seen.append(out))
    tiny_model(x)
    assert torch.equal(out["stages.0.blocks.0.mlp.fc1"], seen[0])
