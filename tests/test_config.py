import dataclasses
import json

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from cvt.config import VARIANTS, CvTConfig, Preprocess, StageConfig
from cvt.model import ConvEmbed, projections
from cvt.system.errors import InputError


def a_stage(**changes):
    return StageConfig(**{"dim": 8, "num_heads": 2, "depth": 1, **changes})


@pytest.mark.parametrize("suffix", [".json", ".yaml"])
@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_comes_back_from_its_file(tmp_path, name, suffix):
    path = tmp_path / f"model{suffix}"

    VARIANTS[name].save(path)

    assert CvTConfig.load(path) == VARIANTS[name]


@pytest.mark.parametrize("suffix", [".json", ".yaml"])
def test_an_ablation_comes_back_from_its_file(tmp_path, ablated, suffix):
    path = tmp_path / f"model{suffix}"

    ablated.save(path)

    assert CvTConfig.load(path) == ablated


def test_a_config_as_a_dict_is_plain_data(ablated):
    data = ablated.to_dict()

    assert json.loads(json.dumps(data)) == data
    assert CvTConfig.from_dict(data) == ablated


@pytest.mark.parametrize(("name", "dims", "heads", "depths"), [
    ("cvt_13", (64, 192, 384), (1, 3, 6), (1, 2, 10)),
    ("cvt_21", (64, 192, 384), (1, 3, 6), (1, 4, 16)),
    ("cvt_w24", (192, 768, 1024), (3, 12, 16), (2, 2, 20)),
])
def test_the_variants_are_those_of_table_2(name, dims, heads, depths):
    stages = VARIANTS[name].stages

    assert tuple(s.dim for s in stages) == dims
    assert tuple(s.num_heads for s in stages) == heads
    assert tuple(s.depth for s in stages) == depths
    assert all(s.dim // s.num_heads == 64 and s.mlp_ratio == 4 and s.kernel == 3 for s in stages)
    assert [s.cls_token for s in stages] == [False, False, True]
    assert VARIANTS[name].strides == (4, 8, 16)


@pytest.mark.parametrize("side", [224, 384, *range(12, 120)])
def test_grids_follow_the_formula_of_the_official_network(side):
    first = (side + 1) // 4
    second = (first + 1) // 2
    third = (second + 1) // 2

    grids = VARIANTS["cvt_13"].grids((side, side))

    assert grids == ((first,) * 2, (second,) * 2, (third,) * 2)
    assert VARIANTS["cvt_13"].stages[2].grids_kv(grids[2]) == (((third + 1) // 2,) * 2,)


def test_height_and_width_are_kept_apart():
    assert VARIANTS["cvt_13"].grids((75, 53)) == ((19, 13), (10, 7), (5, 4))


@given(
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    embed=st.tuples(st.integers(1, 7), st.integers(1, 4), st.integers(0, 3)),
    projection=st.sampled_from(["conv", "avg", "linear"]),
    kernel=st.sampled_from([1, 3, 5]), stride_kv=st.integers(1, 4), padding_kv=st.integers(0, 3),
)
@pytest.mark.slow
def test_grids_are_those_of_the_tensors(size, embed, projection, kernel, stride_kv, padding_kv):
    assume(embed[2] < embed[0])
    assume(projection != "linear" or stride_kv == 1)
    assume(projection != "avg" or padding_kv <= kernel // 2)
    config = a_stage(dim=2, num_heads=1, embed_kernel=embed[0], embed_stride=embed[1],
                     embed_padding=embed[2], projection=projection, kernel=kernel,
                     stride_kv=stride_kv, padding_kv=padding_kv)
    grid = config.grid(size)
    q, k, _ = projections(config)

    def embedded():
        return ConvEmbed(config, 1)(torch.zeros(1, 1, *size))

    if min(grid) < 1:
        with pytest.raises(RuntimeError):
            embedded()
        return
    tokens, real = embedded()
    assert real == grid
    fmap = tokens.transpose(1, 2).unflatten(2, grid)
    assert q.eval()(None, fmap).shape[1] == grid[0] * grid[1]
    keys, = config.grids_kv(grid)
    if min(keys) < 1:
        with pytest.raises(RuntimeError):
            k(None, fmap)
        return
    assert k.eval()(None, fmap).shape[1] == keys[0] * keys[1]
    if projection == "conv":
        assert k.conv(fmap).shape[2:] == keys
    elif projection == "avg":
        assert k.pool(fmap).shape[2:] == keys


@given(
    size=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    projection=st.sampled_from(["conv", "avg"]), kernel=st.sampled_from([1, 3, 5]),
    stride_kv=st.integers(1, 4), padding_kv=st.integers(0, 2), embed_padding=st.integers(0, 2),
)
@pytest.mark.slow
def test_grids_reject_exactly_the_sizes_with_a_side_below_the_least(
        size, projection, kernel, stride_kv, padding_kv, embed_padding):
    assume(projection != "avg" or padding_kv <= kernel // 2)
    stage = a_stage(embed_padding=embed_padding, projection=projection, kernel=kernel,
                    stride_kv=stride_kv, padding_kv=padding_kv)
    config = CvTConfig(stages=(stage, stage))
    least = config.min_size()

    if min(size) >= least:
        assert len(config.grids(size)) == 2
    else:
        with pytest.raises(InputError, match=f"at least {least} pixels a side"):
            config.grids(size)


def test_a_config_whose_own_image_size_is_too_small_is_rejected():
    with pytest.raises(InputError, match=r"2x2 pixels leaves stage 1 .* at least 3 pixels a side"):
        dataclasses.replace(VARIANTS["cvt_13"], image_size=2)
    with pytest.raises(InputError, match=r"224x224 pixels .* at least 70000 pixels a side"):
        CvTConfig(stages=(a_stage(embed_kernel=70_000, embed_padding=0),))
    wide = a_stage(embed_kernel=100_000, embed_padding=0)
    with pytest.raises(InputError, match="no tokens for images of up to 100000 pixels"):
        CvTConfig(stages=(wide, wide))


@pytest.mark.parametrize(("changes", "message"), [
    ({"dim": 10, "num_heads": 3}, r"dim=10 is not divisible by num_heads=3.*try num_heads=1"),
    ({"dim": 130, "num_heads": 4}, r"dim=130 is not divisible by num_heads=4.*try num_heads=2"),
    ({"kernel": 4}, "kernel=4 is even"),
    ({"embed": "patch"}, r"does not overlap, but embed_kernel=3, embed_stride=2"),
    ({"embed": "patch", "embed_kernel": 2}, "embed_padding=1"),
    ({"embed_padding": 3}, "must be smaller than embed_kernel=3"),
    ({"projection": "linear"}, "stride_kv=2; set stride_kv=1"),
    ({"projection": "avg", "padding_kv": 2}, "set padding_kv=1"),
    ({"projection": "dw_bn"}, "projection='dw_bn'; choose from conv, avg, linear"),
    ({"drop_rate": 1.0}, r"drop_rate=1.0 must be in \[0, 1\)"),
    ({"attn_drop_rate": -0.1}, "attn_drop_rate=-0.1"),
    ({"drop_path_rate": 1}, "drop_path_rate=1"),
    ({"drop_rate": float("nan")}, "drop_rate=nan"),
    ({"mlp_ratio": float("inf")}, "mlp_ratio=inf"),
    ({"mlp_ratio": 0.1}, "mlp_ratio=0.1 leaves no hidden channel"),
    ({"depth": 0}, "depth=0 must be at least 1"),
    ({"depth": True}, "depth=True must be of type int"),
    ({"dim": "64"}, "dim='64' must be of type int"),
    ({"dim": 64.0}, "dim=64.0 must be of type int"),
    ({"cls_token": 1}, "cls_token=1 must be of type bool"),
    ({"stride_kv": 0}, "stride_kv=0 must be at least 1"),
    ({"padding_kv": -1}, "padding_kv=-1 must not be negative"),
    ({"depth": 2, "stride_kv": (1, 2, 2)},
     r"stride_kv=\(1, 2, 2\) has 3 entries for depth=2; .* one per block"),
    ({"mlp_ratio": ()}, r"mlp_ratio=\(\) has 0 entries for depth=1"),
    ({"depth": 2, "stride_kv": (1, 0)}, r"stride_kv=\(1, 0\) must be at least 1"),
    ({"depth": 2, "mlp_ratio": (2.0, 0.1)}, r"mlp_ratio=\(2.0, 0.1\) leaves no hidden channel"),
    ({"depth": 2, "stride_kv": (1, 2.0)}, r"stride_kv=\(1, 2.0\) must be of type int | tuple"),
    ({"depth": 2, "stride_kv": (1, 2), "projection": "linear"}, r"stride_kv=\(1, 2\); set"),
])
def test_a_stage_that_cannot_be_built_is_rejected(changes, message):
    with pytest.raises(InputError, match=message):
        a_stage(**changes)


def test_blocks_may_differ_in_key_stride_and_mlp_ratio():
    stage = a_stage(depth=3, stride_kv=(1, 2, 4), mlp_ratio=(2.0, 4.0, 4.0))

    assert [stage.block(i) for i in range(3)] == [
        a_stage(stride_kv=stride, mlp_ratio=ratio) for stride, ratio in ((1, 2), (2, 4), (4, 4))]
    assert stage.grids_kv((8, 5)) == ((8, 5), (4, 3), (2, 2))
    assert not stage.uniform


def test_equal_numbers_for_all_blocks_are_one():
    assert a_stage(depth=2, stride_kv=(1, 1), mlp_ratio=(2, 2.0)) == a_stage(
        depth=2, stride_kv=1, mlp_ratio=2.0)


def test_the_least_size_is_that_of_the_block_with_the_fewest_keys():
    stage = a_stage(depth=2, projection="avg", kernel=5, padding_kv=1, stride_kv=(1, 2))

    least = CvTConfig(stages=(stage,)).min_size()

    assert least == max(CvTConfig(stages=(stage.block(i),)).min_size() for i in (0, 1))
    assert least > CvTConfig(stages=(stage.block(1),)).min_size()


@pytest.mark.parametrize("suffix", [".json", ".yaml"])
def test_a_network_of_unlike_blocks_comes_back_from_its_file(tmp_path, tiny, suffix):
    config = tiny(last={"stride_kv": (1, 2), "mlp_ratio": (2.0, 4.0)})

    config.save(tmp_path / f"model{suffix}")

    assert CvTConfig.load(tmp_path / f"model{suffix}") == config
    assert json.loads(json.dumps(config.to_dict())) == config.to_dict()


@pytest.mark.parametrize(("changes", "message"), [
    ({"stages": ()}, "0 stages; a CvT has 1 to 100"),
    ({"stages": [a_stage()]}, "stages="),
    ({"in_chans": 0}, "in_chans=0"),
    ({"num_classes": -1}, "num_classes=-1 must not be negative"),
    ({"act": "relu"}, "act='relu'; did you mean gelu"),
    ({"init": "kaiming"}, "init='kaiming'; choose from trunc_norm, xavier"),
    ({"image_size": 0}, "0x0 pixels"),
])
def test_a_network_that_cannot_be_built_is_rejected(changes, message):
    with pytest.raises(InputError, match=message):
        CvTConfig(**{"stages": (a_stage(),), **changes})


@pytest.mark.parametrize(("data", "message"), [
    ({"stages": [{"dim": 8, "num_heads": 1, "dept": 1}]},
     r"stages\[0\] has the unknown key 'dept'; did you mean depth"),
    ({"stages": [{"dim": 8, "num_heads": 1, "depth": 1}], "num_class": 3},
     "model has the unknown key 'num_class'; did you mean num_classes"),
    ({"stages": [{"dim": 8, "num_heads": 1}]}, r"stages\[0\] lacks the key 'depth'"),
    ({"stages": [3]}, r"stages\[0\] is 3, not a mapping"),
    ({"stages": "abc"}, "stages='abc' is not a list of stages"),
    ({}, "stages=None is not a list of stages"),
    ([1, 2], "is not a list of stages"),
])
def test_data_that_describe_no_network_are_rejected(data, message):
    with pytest.raises(InputError, match=message):
        CvTConfig.from_dict(data)


def test_a_config_is_not_written_under_another_suffix(tmp_path, tiny):
    with pytest.raises(InputError, match=r"use \.json or \.yaml"):
        tiny().save(tmp_path / "model.toml")


@pytest.mark.parametrize(("changes", "message"), [
    ({"size": 0}, "size=0"), ({"crop": 0.0}, "crop=0.0"), ({"crop": 1.1}, "crop=1.1"),
    ({"mode": "squash"}, "crop=0.875; set crop=1"), ({"mode": "pad"}, "mode='pad'"),
    ({"interpolation": "cubic"}, "did you mean bicubic"), ({"mean": (0.5,)}, "mean="),
    ({"mean": (), "std": ()}, "as many entries as the input has channels"),
    ({"std": (0.1, 0.1, 0.0)}, "must be positive"), ({"std": (float("nan"),) * 3}, "std="),
])
def test_preprocessing_that_cannot_be_done_is_rejected(changes, message):
    with pytest.raises(InputError, match=message):
        Preprocess(**changes)


@pytest.mark.parametrize(("preprocess", "resize", "channels"), [
    (Preprocess(), 256, 3),
    (Preprocess(size=384, crop=1, mode="squash"), 384, 3),
    (Preprocess(size=28, crop=1, mean=(0.5,), std=(0.5,)), 28, 1),
])
def test_preprocessing_tells_its_resize_and_channels(preprocess, resize, channels):
    assert (preprocess.resize, preprocess.channels) == (resize, channels)
