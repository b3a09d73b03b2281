"""From a picture to the network's input as evaluation does it, as a tensor."""

from __future__ import annotations

from collections.abc import Callable

import torch
from PIL import Image
from torch import Tensor

from cvt.config import Preprocess
from cvt.data.prepare import check_channels, prepare

Transform = Callable[[Image.Image], Tensor]


def evaluation_transform(preprocess: Preprocess) -> Transform:
    """An RGB picture of any size to a normalised float tensor (channels, size, size).

    Raises InputError for a picture so thin that resizing its short side would fill the memory.
    """
    check_channels(preprocess)
    return lambda image: torch.from_numpy(prepare(preprocess, image))
