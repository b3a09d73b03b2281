"""Tiny networks for every test, each of which starts from the same seed."""

import os
import tempfile

import pytest
import torch
from hypothesis import settings

from cvt.config import CvTConfig, StageConfig
from cvt.model import CvT

settings.register_profile("fixed", derandomize=True, database=None, deadline=None)
settings.load_profile("fixed")


# What a terminal, a launcher, a scheduler or a CI says to the programs that it starts.
VARIABLES = {"COLUMNS", "LINES", "FORCE_COLOR", "NO_COLOR", "CVT_API_KEY", "RANK", "WORLD_SIZE",
             "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
PREFIXES = ("ACCELERATE_", "HF_", "SLURM_", "TORCHELASTIC_", "TTY_", "WANDB_")


def pytest_configure(config):
    """Tests see neither these variables nor what was downloaded to this machine."""
    for name in list(os.environ):
        if name in VARIABLES or name.startswith(PREFIXES):
            del os.environ[name]
    downloads = tempfile.TemporaryDirectory(prefix="cvt-tests-")
    config.add_cleanup(downloads.cleanup)
    os.environ["HF_HOME"] = downloads.name  # read when huggingface_hub is imported


@pytest.fixture(autouse=True)
def _same_seed():
    torch.manual_seed(0)


@pytest.fixture
def no_charts():
    """Reports without their charts, a third of the time of a run of a few steps."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("loss_chart", "lr_chart", "reliability_diagram", "top1_chart"):
            patch.setattr(f"cvt.evaluate.report.{name}", lambda _: "<svg></svg>")
        yield


@pytest.fixture
def tiny():
    """tiny(every=None, last=None, depths=(1, 1, 2), **whole): a CvT of three narrow stages.

    `every` changes fields of every stage, `last` of the last, `whole` of the network.
    """
    return _tiny


def _tiny(*, every=None, last=None, depths=(1, 1, 2), **whole):
    stages = []
    for i, embed in enumerate([(7, 4, 2), (3, 2, 1), (3, 2, 1)]):
        fields = {"dim": 8 * (i + 1), "num_heads": i + 1, "depth": depths[i],
                  "embed_kernel": embed[0], "embed_stride": embed[1], "embed_padding": embed[2],
                  "cls_token": i == 2}
        fields |= (every or {}) | ((last or {}) if i == 2 else {})
        stages.append(StageConfig(**fields))
    return CvTConfig(**{"stages": tuple(stages), "num_classes": 10, "image_size": 64, **whole})


@pytest.fixture
def shaken():
    """shaken(model): `model` with every parameter and statistic moved off its initial value."""
    return _shaken


def _shaken(model):
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("num_batches_tracked"):
                tensor.fill_(7)
            elif name.endswith("running_var"):
                tensor.uniform_(0.5, 2)
            else:
                tensor.add_(torch.randn_like(tensor), alpha=0.1)
    return model


@pytest.fixture(scope="session")
def telling():
    """telling(model): `model`, evaluating, with parameters by which it tells images apart."""
    return _telling


def _telling(model):
    with torch.no_grad():  # an untrained network says nearly the same of every image
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return model.eval()


@pytest.fixture
def ablated():
    """One configuration with every field that an ablation changes off its default."""
    return CvTConfig(
        in_chans=1, num_classes=4, act="gelu", init="xavier", image_size=48,
        stages=(
            StageConfig(dim=8, num_heads=1, depth=1, embed="patch", embed_kernel=4, embed_stride=4,
                        embed_padding=0, projection="linear", stride_kv=1, pos_embed=True,
                        drop_rate=0.1),
            StageConfig(dim=16, num_heads=2, depth=2, projection="avg", kernel=5, stride_kv=3,
                        padding_kv=2, qkv_bias=False, mlp_ratio=2.5, cls_token=True,
                        attn_drop_rate=0.1),
            StageConfig(dim=24, num_heads=3, depth=2, embed_kernel=5, embed_padding=2, stride_kv=1,
                        drop_path_rate=1e-05),
        ))


@pytest.fixture
def tiny_model(tiny):
    """An untrained model of the tiny configuration in evaluation mode."""
    return CvT(tiny()).eval()
