"""Everything that decides a training run, as data. No torch.

The same tree is the flags of `cvt train`, its YAML files and the `recipe.yaml` saved with the run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from cvt.card import find_config
from cvt.config import CvTConfig, Preprocess
from cvt.data.config import AugmentConfig, DataConfig
from cvt.schema import check, check_types, from_mapping, read_mapping, write_mapping


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW, a linear warm-up, then half a cosine; the learning rate moves at every step.

    The official recipe is lr 0.002 for a batch of 2,048, weight decay 0.05 (CvT-13) or 0.1, five
    warm-up epochs from 1e-6, a floor of 1e-5 and no clipping (microsoft/CvT, experiments).
    """

    lr: float = 1e-3
    """Learning rate after the warm-up."""
    weight_decay: float = 0.05
    """Decay of weight matrices and kernels; norms, biases, class token and position embeddings
    have none."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's moment decays."""
    warmup_epochs: float = 2.0
    """Epochs of linear warm-up; may be a fraction."""
    warmup_lr: float = 1e-6
    """Learning rate of the first step."""
    min_lr: float = 1e-5
    """Learning rate at the end."""
    clip_grad: float = 0.0
    """Largest norm of the gradient; 0 for no clipping."""
    accumulate: int = 1
    """Equal parts in which a batch passes the network before the optimiser's step; more parts take
    less memory, and BatchNorm sees one part at a time."""

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("lr", "warmup_lr", "min_lr", "weight_decay", "warmup_epochs", "clip_grad"):
            check(getattr(self, name) >= 0, f"{name}={getattr(self, name)} must not be negative")
        for name in ("warmup_lr", "min_lr"):
            check(getattr(self, name) <= self.lr, f"{name}={getattr(self, name)} is above "
                  f"lr={self.lr}; make it smaller")
        check(all(0 <= b < 1 for b in self.betas), f"betas={self.betas} must be in [0, 1)")
        check(self.accumulate >= 1, f"accumulate={self.accumulate} must be at least 1")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A training run."""

    model: str = "cvt_nano"
    """A variant (cvt_13, cvt_21, cvt_w24, cvt_nano), a .json or .yaml file with a configuration of
    this package or of microsoft/CvT, or the directory of a trained model, for its configuration."""
    in_chans: Literal[1, 3] = 3
    """Channels of the network's input: 3 for RGB, 1 for gray."""
    image_size: int | None = None
    """Side in pixels of the network's input; by default the dataset's own (224 for folders)."""
    drop_path_rate: float | None = None
    """Stochastic depth of the last stage; by default the model's own."""
    data: DataConfig = field(default_factory=DataConfig)
    """The pictures."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """How training pictures are varied."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """The optimiser and its schedule."""
    epochs: int = 30
    """Passes over the training pictures."""
    batch_size: int = 64
    """Pictures of one optimiser step."""
    ema: float = 0.0
    """Decay of the moving average of the weights, which is then what is evaluated and kept; 0 for
    none. It is smaller during the first steps."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """bf16 and fp16 run matrix products and convolutions under autocast; fp16, which scales the
    loss, is for GPUs that lack bf16."""
    grad_checkpointing: bool = False
    """Compute activations again in the backward pass: less memory, more time, the same result."""
    compile: bool = False
    """Compile the network with torch.compile; on a CPU this needs a C++ compiler."""
    sync_batchnorm: bool = False
    """With several processes, let BatchNorm see the batch of all of them, not each its share."""
    save_every: int = 0
    """Optimiser steps from one checkpoint to the next; 0 for none but that after each epoch."""
    keep: int = 2
    """How many of the newest checkpoints stay; that of the best epoch stays besides."""
    skip_nonfinite: int = 3
    """Batches that may be skipped between two checkpoints because loss or gradient are not finite.
    With one more the run goes back to the last checkpoint, once; the next time it ends."""
    timeout: int = 600
    """Seconds that one of several processes may keep the others waiting for a step."""
    device: str = "auto"
    """auto (CUDA where there is one, else the CPU), cpu, cuda, cuda:1, ..."""
    seed: int = 0
    """Seed of weights, order, augmentation and dropout."""

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("epochs", "batch_size", "keep", "timeout"):
            check(getattr(self, name) >= 1, f"{name}={getattr(self, name)} must be at least 1")
        check(self.optim.warmup_epochs < self.epochs,
              f"optim.warmup_epochs={self.optim.warmup_epochs} leaves nothing of epochs="
              f"{self.epochs}; make it smaller")
        check(not (self.compile and self.grad_checkpointing), "compile and grad_checkpointing do "
              "not go together, for a compiled network decides itself what to compute again; "
              "choose one")
        check(0 <= self.ema < 1, f"ema={self.ema} must be in [0, 1)")
        for name in ("seed", "save_every", "skip_nonfinite"):
            check(getattr(self, name) >= 0, f"{name}={getattr(self, name)} must not be negative")
        check(self.batch_size % self.optim.accumulate == 0,
              f"batch_size={self.batch_size} cannot be passed in optim.accumulate="
              f"{self.optim.accumulate} equal parts; choose a divisor")
        check(not self.augment.mixes or self.batch_size % 2 == 0,
              f"batch_size={self.batch_size} is odd, but mixup and CutMix mix pairs; make it even")
        self.config(num_classes=1)  # refuses an unknown model and too small an image

    def config(self, num_classes: int, size: int | None = None) -> CvTConfig:
        """The network to train, for `num_classes` classes and pictures of `size` pixels a side.

        Raises InputError for an unknown variant or file, or a size that leaves a stage empty.
        """
        config = find_config(self.model)
        stages, own = config.stages, size or config.image_size
        if self.drop_path_rate is not None:
            last = dataclasses.replace(stages[-1], drop_path_rate=self.drop_path_rate)
            stages = (*stages[:-1], last)
        return dataclasses.replace(config, stages=stages, in_chans=self.in_chans,
                                   num_classes=num_classes,
                                   image_size=own if self.image_size is None else self.image_size)

    def preprocess(self, own: Preprocess) -> Preprocess:
        """The dataset's `own` preprocessing at this recipe's size and number of channels."""
        size = own.size if self.image_size is None else self.image_size
        return dataclasses.replace(own.with_channels(self.in_chans), size=size)

    def to_dict(self) -> dict[str, Any]:
        """Plain data that `from_dict` reads back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Recipe:
        """The recipe `data` describes. Raises InputError for an unknown key or a wrong value."""
        parts = {"data": DataConfig, "augment": AugmentConfig, "optim": OptimConfig}
        built = {key: from_mapping(parts[key], value, key) if key in parts else value
                 for key, value in data.items()}
        return from_mapping(cls, built, "the recipe")

    def save(self, path: Path) -> None:
        """Write the recipe as YAML (or JSON, by suffix)."""
        write_mapping(self.to_dict(), path)

    @classmethod
    def load(cls, path: Path) -> Recipe:
        """Read what `save` wrote."""
        return cls.from_dict(read_mapping(path))
