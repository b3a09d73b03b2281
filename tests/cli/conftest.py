"""A model that commands are given, and images for it."""

import numpy as np
import pytest
import torch
from PIL import Image

from cvt.config import CvTConfig, Preprocess, StageConfig
from cvt.model import CvT
from cvt.weights.models import save_model


@pytest.fixture
def model(tmp_path):
    """The directory of an untrained model of three classes, and its folder of images."""
    stage = StageConfig(dim=8, num_heads=1, depth=1, cls_token=True)
    torch.manual_seed(0)
    net = CvT(CvTConfig(stages=(stage,), num_classes=3, image_size=8))
    save_model(tmp_path / "model", net, Preprocess(size=8, crop=1.0), ("ant", "bee", "cat"))
    rng = np.random.default_rng(0)
    for name in ("ant", "bee", "cat"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(4):
            pixels = rng.integers(0, 256, (10, 12, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{i}.png")
    return tmp_path / "model"
