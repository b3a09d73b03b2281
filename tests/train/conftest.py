"""Networks small enough to be trained in a second."""

import pytest

import cvt
from cvt.config import CvTConfig, Preprocess, StageConfig
from cvt.model import CvT

STAGES = (StageConfig(dim=8, num_heads=1, depth=1),
          StageConfig(dim=8, num_heads=2, depth=1, cls_token=True))


@pytest.fixture(scope="session")
def tiny_file(tmp_path_factory):
    """The file of a network for images of 8 pixels."""
    path = tmp_path_factory.mktemp("config") / "tiny.json"
    CvTConfig(stages=STAGES, num_classes=10, image_size=8).save(path)
    return path


@pytest.fixture
def teacher(tmp_path):
    """A larger image, another normalisation, the classes in another order."""
    big = CvT(CvTConfig(stages=STAGES, num_classes=10, image_size=20))
    cvt.save_model(tmp_path / "teacher", big, Preprocess(size=20, crop=1.0, mean=(0.5,) * 3,
                                                         std=(0.25,) * 3), tuple("9876543210"))
    return tmp_path / "teacher"
