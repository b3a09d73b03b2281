"""Networks of a CvT's size that are no CvT: what the paper compares it with. timm builds them."""

from __future__ import annotations

from itertools import count

import torch
from timm.models.byobnet import ByoBlockCfg, ByobNet, ByoModelCfg
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from cvt.config import CvTConfig
from cvt.model import CvT
from cvt.system.errors import InputError

# A ViT is a tenth larger than the CvT, as DeiT-S (22.05 M) is than CvT-13 (20.00 M) in Tables 3 and
# 5 of the paper, so that size cannot be why it is behind.
LARGER = 1.1
_LEAST_GRID = 7  # patches a side


def vit(config: CvTConfig, *, pos_embed: bool = True) -> VisionTransformer:
    """A ViT with the last stage's width, heads and stochastic depth; for `cvt_13`, DeiT-S.

    Its patches are as far apart as the tokens of the last stage that has 7x7 of them or more, its
    depth is the least that gives a tenth more parameters than the CvT. Images (B, in_chans,
    image_size, image_size) to logits (B, num_classes). Raises InputError where no patch divides
    `image_size`.
    """
    last, side = config.stages[-1], config.image_size
    fitting = [stride for stride in config.strides if side % stride == 0]
    if not fitting:
        raise InputError(f"no ViT's patches fill images of {side} pixels: the strides of the CvT "
                         f"are {', '.join(map(str, config.strides))}; choose image_size a multiple")
    patch = max((s for s in fitting if side // s >= _LEAST_GRID), default=fitting[0])

    def of_depth(depth: int) -> VisionTransformer:
        return VisionTransformer(
            img_size=side, patch_size=patch, in_chans=config.in_chans,
            num_classes=config.num_classes, embed_dim=last.dim, depth=depth,
            num_heads=last.num_heads, pos_embed="learn" if pos_embed else "none",
            drop_path_rate=last.drop_path_rate)

    with torch.device("meta"):
        wanted = LARGER * _count(CvT(config))
        depth = next(n for n in count(1) if _count(of_depth(n)) >= wanted)
    return of_depth(depth)


def resnet(config: CvTConfig) -> ByobNet:
    """A ResNet (He et al., 2016) on the CvT's grids: two basic blocks a stage, widths doubling.

    Its width is the least multiple of 8 that gives as many parameters as the CvT. Images (B,
    in_chans, H, W) to logits (B, num_classes). Raises InputError where the CvT's grids are not
    those of a ResNet: a stem of stride 2 or 4, and 2 from a stage to the next.
    """
    stem, *later = (stage.embed_stride for stage in config.stages)
    if stem not in (2, 4) or set(later) - {2}:
        raise InputError(f"a ResNet's stem has stride 2 or 4 and its stages 2, but the CvT's are "
                         f"{stem}, {', '.join(map(str, later))}")

    def of_width(width: int) -> ByobNet:
        blocks = tuple(ByoBlockCfg(type="basic", d=2, c=width * 2**i, s=2 if i else 1)
                       for i in range(len(config.stages)))
        return ByobNet(
            ByoModelCfg(blocks=blocks, stem_chs=width, stem_type="7x7" if stem == 4 else "3x3",
                        stem_pool="maxpool" if stem == 4 else ""),
            num_classes=config.num_classes, in_chans=config.in_chans,
            drop_path_rate=config.stages[-1].drop_path_rate)

    with torch.device("meta"):
        wanted = _count(CvT(config))
        width = next(n for n in count(8, 8) if _count(of_width(n)) >= wanted)
    return of_width(width)


def _count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())
