"""CvT as the backbone of a detector, segmenter or tracker: images to maps at three strides."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from cvt.config import Act
from cvt.model import CvT
from cvt.system.errors import InputError, did_you_mean
from cvt.weights.models import create_model


class Backbone(nn.Module):
    """Images (B, in_chans, H, W) to a dict of maps (B, C, H / stride, W / stride) by name.

    The maps are those passed from one stage to the next, without norm and class token. Stages
    after the last map are not computed.
    """

    def __init__(self, model: CvT, out: Sequence[str]) -> None:
        super().__init__()
        names = [f"stride{stride}" for stride in model.config.strides]
        for name in out:
            if name not in names:
                raise InputError(f"this network has no map {name!r}; {did_you_mean(name, names)}")
        if not out or len(set(out)) < len(out):
            raise InputError(f"out={tuple(out)} must have at least one map and no map twice")
        self.model = model
        self.indices = [names.index(name) for name in out]
        self.out = tuple(out)
        model.reset_classifier(0)
        self.channels = {name: model.config.stages[i].dim
                         for name, i in zip(self.out, self.indices, strict=True)}
        """Channels of each map, as needed for `torchvision.ops.FeaturePyramidNetwork`."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Images (B, in_chans, H, W) to the maps by name, in the order of `out`."""
        maps = self.model.forward_intermediates(x, self.indices, intermediates_only=True,
                                                stop_early=True)
        return dict(zip(self.out, maps, strict=True))


def backbone(name: str, out: Sequence[str] = ("stride4", "stride8", "stride16"), *,
             weights: str | Path | None = None, in_chans: int | None = None,
             act: Act | None = None) -> Backbone:
    """A CvT without classifier in evaluation mode; arguments as in `create_model`.

    Images (B, in_chans, H, W) give a dict of maps (B, C, H / stride, W / stride); `channels` has
    each C. out: names of maps; "stride4", "stride8" and "stride16" for the networks of the paper.
    The final norm is not used and gets no gradient. Raises InputError for an unknown map.
    """
    return Backbone(create_model(name, weights=weights, in_chans=in_chans, act=act), out).eval()
