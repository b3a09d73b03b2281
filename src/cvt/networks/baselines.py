"""Baselines of the size of a CvT: the networks that the paper compares with, built by timm."""

from __future__ import annotations

from itertools import count

import torch
from timm.models.byobnet import ByoBlockCfg, ByobNet, ByoModelCfg
from timm.models.vision_transformer import VisionTransformer

from cvt.config import CvTConfig
from cvt.model import CvT
from cvt.networks.complexity import parameters
from cvt.system.errors import InputError

# Size of the ViT relative to the CvT, as DeiT-S (22.05 M) to CvT-13 (20.00 M) in Tables 3 and 5 of
# the paper, so that a lower accuracy cannot be due to its size.
VIT_SIZE = 1.1
_MIN_GRID = 7  # patches per side


def vit(config: CvTConfig, *, pos_embed: bool = True) -> VisionTransformer:
    """A ViT with the width, heads and stochastic depth of the last stage; DeiT-S for `cvt_13`.

    Its patch size is the largest stride of the CvT with at least 7x7 tokens, its depth the minimum
    for 10 % more parameters than the CvT. Images (B, in_chans, image_size, image_size) to logits
    (B, num_classes). Raises InputError if no stride divides `image_size`.
    """
    last, side = config.stages[-1], config.image_size
    fitting = [stride for stride in config.strides if side % stride == 0]
    if not fitting:
        raise InputError(f"no patch size of a ViT divides images of {side} pixels: the strides of "
                         f"the CvT are {', '.join(map(str, config.strides))}; use a multiple of "
                         "one of them as image_size")
    patch = max((s for s in fitting if side // s >= _MIN_GRID), default=fitting[0])

    def build(depth: int) -> VisionTransformer:
        return VisionTransformer(
            img_size=side, patch_size=patch, in_chans=config.in_chans,
            num_classes=config.num_classes, embed_dim=last.dim, depth=depth,
            num_heads=last.num_heads, pos_embed="learn" if pos_embed else "none",
            drop_path_rate=last.drop_path_rate)

    with torch.device("meta"):
        size = VIT_SIZE * parameters(CvT(config))
        depth = next(n for n in count(1) if parameters(build(n)) >= size)
    return build(depth)


def resnet(config: CvTConfig) -> ByobNet:
    """A ResNet (He et al., 2016) with the grids of the CvT: two basic blocks per stage.

    The width doubles in each stage; the first is the smallest multiple of 8 with at least the
    parameters of the CvT. Images (B, in_chans, H, W) to logits (B, num_classes). Raises InputError
    unless the CvT has the strides of a ResNet: 2 or 4 in the first stage, 2 in the others.
    """
    stem, *later = (stage.embed_stride for stage in config.stages)
    if stem not in (2, 4) or set(later) - {2}:
        raise InputError(f"a ResNet's stem has stride 2 or 4 and its stages 2, but the CvT's are "
                         f"{stem}, {', '.join(map(str, later))}")

    def build(width: int) -> ByobNet:
        blocks = tuple(ByoBlockCfg(type="basic", d=2, c=width * 2**i, s=2 if i else 1)
                       for i in range(len(config.stages)))
        return ByobNet(
            ByoModelCfg(blocks=blocks, stem_chs=width, stem_type="7x7" if stem == 4 else "3x3",
                        stem_pool="maxpool" if stem == 4 else ""),
            num_classes=config.num_classes, in_chans=config.in_chans,
            drop_path_rate=config.stages[-1].drop_path_rate)

    with torch.device("meta"):
        size = parameters(CvT(config))
        width = next(n for n in count(8, 8) if parameters(build(n)) >= size)
    return build(width)
