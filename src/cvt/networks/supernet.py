"""Supernet of the search space of CvT-13-NAS (Table 3 of the paper): one set of weights for all.

A block has one of two key and value strides and one of two MLP ratios. The paper gives no more
details; training follows Guo et al., 2020 (Single Path One-Shot, arXiv:1904.00420): each step
trains one network of the space, sampled uniformly.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from itertools import chain
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cvt.config import CvTConfig
from cvt.model import MLP, Block, ConvProjection, CvT, join
from cvt.networks.surgery import swap
from cvt.system.errors import InputError

Gene = tuple[int, float]  # a block's key and value stride, and its MLP ratio
Choice = tuple[Gene, ...]  # a network of the space: the gene of each block in order

STRIDES, RATIOS = (1, 2), (2.0, 4.0)
GENES: tuple[Gene, ...] = tuple((stride, ratio) for stride in STRIDES for ratio in RATIOS)


def chosen(config: CvTConfig, choice: Choice) -> CvTConfig:
    """`config` with the strides and MLP ratios of `choice`."""
    genes, stages = iter(choice), []
    for stage in config.stages:
        strides, ratios = zip(*(next(genes) for _ in range(stage.depth)), strict=True)
        stages.append(dataclasses.replace(stage, stride_kv=strides, mlp_ratio=ratios))
    return dataclasses.replace(config, stages=tuple(stages))


def choice_of(config: CvTConfig) -> Choice:
    """The strides and MLP ratios of `config`; the inverse of `chosen`."""
    blocks = (stage.block(i) for stage in config.stages for i in range(stage.depth))
    return tuple((cast("int", b.stride_kv), float(cast("float", b.mlp_ratio))) for b in blocks)


class Supernet(nn.Module):
    """Images (B, in_chans, H, W) to logits (B, num_classes) with any network of the space.

    `choice` selects the network. If it is None, training uses the last one sampled by `draw`, so
    that all parts of a batch train the same network; evaluation, and training before the first
    draw, use `largest`, the one with the maximum multiply-adds. The weights have the shapes of the
    largest: an MLP of ratio 2 is the first half of the hidden units, and both strides share the
    depthwise kernel, but each has its own BatchNorm, as their statistics differ (Yu et al., 2019,
    arXiv:1812.08928). Unused hidden units get a gradient of 0, but momentum and weight decay still
    change them. `config` gives everything but strides and ratios. Raises InputError for a
    projection other than "conv".
    """

    choice: Choice | None = None

    def __init__(self, config: CvTConfig) -> None:
        super().__init__()
        for i, stage in enumerate(config.stages):
            if stage.projection != "conv":
                raise InputError(f"projection={stage.projection!r} in stage {i + 1} has no "
                                 "convolution whose stride could be searched; use 'conv'")
        self.config = config
        self.largest: Choice = ((STRIDES[0], RATIOS[-1]),) * sum(s.depth for s in config.stages)
        self.drawn = self.largest
        self.model = CvT(chosen(config, self.largest))
        swap(self.model, MLP, SharedMLP)
        for block in self._blocks():
            block.attn.k = SharedProjection(cast("ConvProjection", block.attn.k))
            block.attn.v = SharedProjection(cast("ConvProjection", block.attn.v))

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, in_chans, H, W) to logits (B, num_classes)."""
        choice = self.choice or (self.drawn if self.training else self.largest)
        for block, (stride, ratio) in zip(self._blocks(), choice, strict=True):
            cast("SharedProjection", block.attn.k).stride = stride
            cast("SharedProjection", block.attn.v).stride = stride
            cast("SharedMLP", block.mlp).ratio = ratio
        return self.model(x)

    def draw(self) -> Choice:
        """Sample the network of the next training steps uniformly, with the global random state of
        PyTorch."""
        self.drawn = tuple(GENES[i] for i in
                           torch.randint(len(GENES), (len(self.largest),)).tolist())
        return self.drawn

    @torch.no_grad()
    def extract(self, choice: Choice) -> CvT:
        """A CvT of `choice` with a copy of its weights; it has the same logits."""
        like = self.model.norm.weight
        network = CvT(chosen(self.config, choice)).to(device=like.device, dtype=like.dtype)
        weights = self.model.state_dict()
        strides = {f"{name}.bn": module.conv.stride[0] for name, module in network.named_modules()
                   if isinstance(module, ConvProjection) and not name.endswith(".q")}
        for name, tensor in network.state_dict().items():
            module, _, last = name.rpartition(".")
            shared = weights[f"{module}.{strides[module]}.{last}" if module in strides else name]
            # A smaller MLP has the first hidden units; all other shapes are equal.
            tensor.copy_(shared[tuple(slice(n) for n in tensor.shape)])
        return network.train(self.training)

    def no_weight_decay(self) -> set[str]:
        """As `CvT.no_weight_decay`."""
        return {f"model.{name}" for name in self.model.no_weight_decay()}

    def get_classifier(self) -> nn.Module:
        """As `CvT.get_classifier`."""
        return self.model.get_classifier()

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """As `CvT.set_grad_checkpointing`."""
        self.model.set_grad_checkpointing(enable)

    def _blocks(self) -> Iterator[Block]:
        return chain.from_iterable(cast("Iterator[Block]", stage.blocks)
                                   for stage in self.model.stages)


class SharedProjection(nn.Module):
    """Key or value projection for every stride: shared kernel and Linear, one BatchNorm each."""

    def __init__(self, projection: ConvProjection) -> None:
        super().__init__()
        self.stride = STRIDES[0]
        self.conv, self.linear = projection.conv, projection.linear
        self.bn = nn.ModuleDict({str(stride): nn.BatchNorm2d(projection.conv.out_channels)
                                 for stride in STRIDES})

    def forward(self, cls: Tensor | None, fmap: Tensor) -> Tensor:
        """Tokens (B, 1, C) or None and map (B, C, H, W) to (B, [1 +] S, C)."""
        fmap = F.conv2d(fmap, self.conv.weight, None, self.stride, self.conv.padding,
                        groups=self.conv.groups)
        return self.linear(join(cls, self.bn[str(self.stride)](fmap)))


class SharedMLP(nn.Module):
    """MLP for every ratio, with the first hidden units."""

    def __init__(self, mlp: MLP) -> None:
        super().__init__()
        self.ratio = RATIOS[-1]
        self.fc1, self.act, self.fc2, self.drop = mlp.fc1, mlp.act, mlp.fc2, mlp.drop

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (B, T, C) to (B, T, C)."""
        hidden = int(self.fc1.in_features * self.ratio)
        x = self.act(F.linear(x, self.fc1.weight[:hidden], self.fc1.bias[:hidden]))
        return self.drop(F.linear(self.drop(x), self.fc2.weight[:, :hidden], self.fc2.bias))
