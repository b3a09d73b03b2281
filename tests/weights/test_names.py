import pytest

from cvt.config import VARIANTS
from cvt.model import CvT
from cvt.weights.names import FROM_NATIVE, TO_NATIVE, detect_naming, rename


def names_of(config):
    return list(CvT(config).state_dict())


@pytest.mark.parametrize("format", ["official", "huggingface"])
@pytest.mark.parametrize("variant", ["cvt_13", "cvt_nano"])
@pytest.mark.slow
def test_every_name_goes_out_and_comes_back(format, variant):
    ours = names_of(VARIANTS[variant])
    theirs = [rename(name, FROM_NATIVE[format]) for name in ours]

    assert len(set(theirs)) == len(ours)
    assert [rename(name, TO_NATIVE[format]) for name in theirs] == ours
    assert detect_naming(theirs) == format
    assert detect_naming(ours) == "native"


def test_names_of_ablations_go_out_and_come_back(ablated):
    for name in names_of(ablated):
        assert rename(rename(name, FROM_NATIVE["official"]), TO_NATIVE["official"]) == name


@pytest.mark.parametrize(("official", "native"), [
    ("stage2.cls_token", "stages.2.cls_token"),
    ("stage0.patch_embed.norm.bias", "stages.0.embed.norm.bias"),
    ("stage1.blocks.0.attn.conv_proj_k.bn.running_var", "stages.1.blocks.0.attn.k.bn.running_var"),
    ("stage1.blocks.10.attn.proj_v.bias", "stages.1.blocks.10.attn.v.linear.bias"),
    ("stage1.blocks.0.attn.proj.weight", "stages.1.blocks.0.attn.proj.weight"),
    ("norm.weight", "norm.weight"), ("head.bias", "head.bias"),
])
def test_official_names_are_those_of_the_official_code(official, native):
    assert rename(official, TO_NATIVE["official"]) == native
    assert rename(native, FROM_NATIVE["official"]) == official


def test_the_backbone_of_transformers_has_shorter_names():
    name = "encoder.stages.0.layers.0.layernorm_before.weight"

    assert detect_naming([name]) == "huggingface"
    assert rename(name, TO_NATIVE["huggingface"]) == "stages.0.blocks.0.norm1.weight"
    assert rename("cvt." + name, TO_NATIVE["huggingface"]) == "stages.0.blocks.0.norm1.weight"


def test_module_names_stay():
    """Hooks, fine-tuned checkpoints and configurations of others name these."""
    model = CvT(VARIANTS["cvt_nano"])
    inside = {".".join(name.split(".")[4:])
              for name, _ in model.named_modules(remove_duplicate=False)
              if name.startswith("stages.2.blocks.0.")}
    assert inside == {
        "norm1", "norm2", "drop_path", "mlp", "mlp.fc1", "mlp.act", "mlp.fc2", "mlp.drop",
        "attn", "attn.proj", "attn.drop",
        *(f"attn.{x}{part}" for x in "qkv" for part in ("", ".conv", ".bn", ".linear"))}
    top = {".".join(name.split(".")[:3]) for name, _ in model.named_modules()
           if "blocks" not in name}
    assert top == {"", "stages", "norm", "head", *(
        f"stages.{i}{part}" for i in range(3) for part in ("", ".embed", ".drop")),
        *(f"stages.{i}.embed" for i in range(3))}
