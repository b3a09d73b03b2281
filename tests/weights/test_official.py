import pytest
import yaml

from cvt.config import VARIANTS
from cvt.system.errors import InputError
from cvt.weights.official import from_official_spec, from_official_yaml, to_official_yaml

# The published experiment file of CvT-13 at 224 pixels, as far as it describes the network.
CVT_13_SPEC = {
    "INIT": "trunc_norm", "NUM_STAGES": 3, "PATCH_SIZE": [7, 3, 3], "PATCH_STRIDE": [4, 2, 2],
    "PATCH_PADDING": [2, 1, 1], "DIM_EMBED": [64, 192, 384], "NUM_HEADS": [1, 3, 6],
    "DEPTH": [1, 2, 10], "MLP_RATIO": [4.0, 4.0, 4.0], "ATTN_DROP_RATE": [0.0, 0.0, 0.0],
    "DROP_RATE": [0.0, 0.0, 0.0], "DROP_PATH_RATE": [0.0, 0.0, 0.1],
    "QKV_BIAS": [True, True, True], "CLS_TOKEN": [False, False, True],
    "POS_EMBED": [False, False, False], "QKV_PROJ_METHOD": ["dw_bn", "dw_bn", "dw_bn"],
    "KERNEL_QKV": [3, 3, 3], "PADDING_KV": [1, 1, 1], "STRIDE_KV": [2, 2, 2],
    "PADDING_Q": [1, 1, 1], "STRIDE_Q": [1, 1, 1],
}


def write_yaml(path, data):
    path.write_text(yaml.safe_dump(data))
    return path


def test_the_official_file_of_cvt_13_is_the_variant(tmp_path):
    path = write_yaml(tmp_path / "cvt.yaml", {
        "MODEL": {"NAME": "cls_cvt", "SPEC": CVT_13_SPEC}, "TRAIN": {"IMAGE_SIZE": [224, 224]}})

    assert from_official_yaml(path) == VARIANTS["cvt_13"]


def test_the_official_file_sets_classes_size_and_projections(tmp_path):
    spec = {**CVT_13_SPEC, "QKV_PROJ_METHOD": ["linear", "avg", "dw_bn"], "INIT": "xavier"}
    path = write_yaml(tmp_path / "cvt.yaml", {
        "MODEL": {"NUM_CLASSES": 7, "SPEC": spec}, "TRAIN": {"IMAGE_SIZE": [384, 384]}})

    config = from_official_yaml(path)

    assert (config.num_classes, config.image_size, config.init) == (7, 384, "xavier")
    assert [s.projection for s in config.stages] == ["linear", "avg", "conv"]
    assert [s.stride_kv for s in config.stages] == [1, 2, 2]
    assert config.act == "quick_gelu"


@pytest.mark.parametrize(("changes", "message"), [
    ({"DEPTH": [1, 2]}, "NUM_STAGES=3, but one of its lists has no entry for stage 3"),
    ({"STRIDE_Q": [1, 2, 1]}, "STRIDE_Q=2, PADDING_Q=1 in stage 2 change the grid"),
    ({"PADDING_Q": [1, 1, 0]}, "STRIDE_Q=1, PADDING_Q=0 in stage 3 change the grid"),
    ({"DIM_EMBEDS": [1]}, "unknown key DIM_EMBEDS; did you mean DIM_EMBED"),
    ({"QKV_PROJ_METHOD": ["dw_bm"] * 3}, "'dw_bm'.*did you mean dw_bn"),
    ({"QKV_PROJ_METHOD": [None] * 3}, "None.*choose from dw_bn, avg, linear"),
    ({"QKV_PROJ_METHOD": [["dw_bn"]] * 3}, r"\['dw_bn'\].*is not a projection"),
    ({"KERNEL_QKV": ["a"] * 3}, "kernel='a' must be of type int"),
    ({"NUM_HEADS": [1, 3, 5]}, "dim=384 is not divisible by num_heads=5"),
    ({"NUM_HEADS": 3}, "no entry for stage 1"),
    ({"NUM_HEADS": {"a": 3}}, "no entry for stage 1"),
    ({"NUM_STAGES": "3"}, "NUM_STAGES='3'"),
    ({"NUM_STAGES": 0}, "0 stages; a CvT has 1 to 100"),
    ({"INIT": "normal"}, "init='normal'"),
])
def test_an_official_file_that_cannot_be_built_is_rejected(tmp_path, changes, message):
    path = write_yaml(tmp_path / "cvt.yaml", {"MODEL": {"SPEC": {**CVT_13_SPEC, **changes}}})

    with pytest.raises(InputError, match=message):
        from_official_yaml(path)


@pytest.mark.parametrize("key", ["NUM_STAGES", "DIM_EMBED", "NUM_HEADS", "DEPTH"])
def test_a_key_that_the_official_file_lacks_is_named(key):
    spec = {k: v for k, v in CVT_13_SPEC.items() if k != key}

    with pytest.raises(InputError, match=f"MODEL.SPEC lacks {key}"):
        from_official_spec(spec)


@pytest.mark.parametrize("data", [{"MODEL": {"NAME": "cls_cvt"}}, {"MODEL": 3}, {"stages": []}])
def test_a_file_without_a_spec_is_not_an_official_one(tmp_path, data):
    path = write_yaml(tmp_path / "cvt.yaml", data)

    with pytest.raises(InputError, match=r"has no MODEL\.SPEC; is it an experiment file"):
        from_official_yaml(path)


@pytest.mark.parametrize("field", ["stride_kv", "mlp_ratio"])
def test_the_official_file_has_no_place_for_unlike_blocks(tiny, field):
    with pytest.raises(InputError, match="stride_kv or mlp_ratio, which differ between the blocks"):
        to_official_yaml(tiny(last={field: (2, 1)}), 64)
