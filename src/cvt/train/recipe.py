"""Everything that decides a training run, as data. No torch.

The same tree is the flags of `cvt train`, its YAML files and the `recipe.yaml` saved with the run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from cvt.config import VARIANTS, CvTConfig, Preprocess
from cvt.data.config import AugmentConfig, DataConfig
from cvt.system.schema import (
    check,
    check_default,
    check_types,
    from_mapping,
    read_mapping,
    write_mapping,
)
from cvt.train.config import DistillConfig, FreezeConfig, OptimConfig
from cvt.weights.card import ModelCard, Network, find_config

DEFAULT = "cvt_nano"

LENGTH = frozenset(("epochs", "steps", "patience"))
"""Options that decide the length of a run; they may change when it resumes."""
MACHINE = frozenset(("device", "timeout", "trackers", "project", "keep_checkpoints", "save_every",
                     "data.workers", "data.max_unreadable"))
"""Options that decide how a run is executed; they do not change its result."""
PLACES = frozenset(("data.root", "model", "distill.teacher"))
"""Paths. They may change when a run resumes, if the contents are the same."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A training run.

    Raises InputError for invalid values and for options that exclude each other.
    """

    model: str | None = None
    """Architecture: a variant (cvt_13, cvt_21, cvt_w24, cvt_nano), a .json or .yaml configuration
    of this package or of microsoft/CvT, or the directory of a trained model, whose configuration is
    used. Default: the architecture of `weights`, or cvt_nano without weights."""
    network: Network = "cvt"
    """Network to train: the CvT, or a baseline of the same size for comparison: a ViT (DeiT-S for
    cvt_13), a ViT without position embedding, or a ResNet. supernet: the weight-sharing supernet of
    `cvt search`."""
    weights: str | None = None
    """Pretrained weights to fine-tune: a tag of `cvt zoo`, the directory of a model in any format,
    a file, or hf-hub:org/name. Their preprocessing is used. The head is kept if its classes are
    those of the dataset, matched by name, and new otherwise. Default: random initialisation."""
    in_chans: Literal[1, 3] = 3
    """Number of input channels: 3 for RGB, 1 for grayscale."""
    image_size: int | None = None
    """Input size in pixels, the side of a square. Default: the size of `weights`, or without
    weights the dataset's (224 for your own images)."""
    drop_path_rate: float | None = None
    """Stochastic depth rate of the last block of the last stage; it increases linearly from 0 in
    the first block of that stage (for a ViT or ResNet, of the network). Default: the model's."""
    data: DataConfig = field(default_factory=DataConfig)
    """Dataset."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Augmentation of training images."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """Optimiser and learning rate schedule."""
    freeze: FreezeConfig = field(default_factory=FreezeConfig)
    """Parts of a pretrained network that are not trained."""
    distill: DistillConfig = field(default_factory=DistillConfig)
    """Knowledge distillation."""
    epochs: int = 30
    """Number of epochs. The model is validated and saved after each. An epoch makes
    `passes_per_epoch` passes over the training images."""
    passes_per_epoch: int = 1
    """Passes over the training images in an epoch. Use more than 1 for a small dataset, where
    validation and saving would take most of the time."""
    steps: int | None = None
    """Number of optimiser steps, in place of epochs. The last epoch may be partial."""
    max_train_samples: int | None = None
    """Maximum number of training images: a subset with the same fraction of each class, drawn with
    data.split_seed."""
    sampling: Literal["shuffled", "balanced"] = "shuffled"
    """Sampling of training images. balanced: draw with replacement, every class equally often, so
    that images of rare classes are repeated. Excludes class_weights=balanced."""
    class_weights: Literal["none", "balanced"] = "none"
    """Class weights of the loss. balanced: the loss of an image, the teacher's part included, is
    weighted by the inverse frequency of its class; a mixed image takes the mean of its classes'
    weights by their proportions. The optimal prediction for an image does not depend on the
    weights. Excludes sampling=balanced, which would compensate for rare classes twice."""
    best_by: Literal["val_top1", "val_recall", "val_loss"] = "val_top1"
    """Metric that selects the best epoch. val_recall is the mean over the classes, for imbalanced
    validation images."""
    patience: int = 0
    """Early stopping: end the run after this many epochs without improvement; 0 disables it."""
    batch_size: int = 64
    """Global batch size: images per optimiser step, over all processes."""
    ema: float = 0.0
    """Decay of the exponential moving average of the weights and BatchNorm's statistics; 0 disables
    it. The averaged weights are evaluated and saved. At step n the decay is at most 1 -
    (n - 1)^(-2/3): it reaches 0.99 after 1,000 steps, and 0.999 after 31,600."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Mixed precision: bf16 and fp16 run matrix products and convolutions under autocast. fp16
    scales the loss; it is for GPUs without bf16."""
    grad_checkpointing: bool = False
    """Gradient checkpointing: recompute activations in the backward pass. Less memory, more time,
    the same result."""
    compile: bool = False
    """Compile the network with torch.compile. On a CPU this needs a C++ compiler."""
    sync_batchnorm: bool = False
    """Synchronise BatchNorm: compute its statistics over the batch of all processes instead of each
    process's share."""
    save_every: int = 0
    """Save a checkpoint every this many optimiser steps, in addition to one after each epoch; 0
    disables it."""
    keep_checkpoints: int = 2
    """Number of recent checkpoints to keep; the best epoch's is kept in addition."""
    skip_nonfinite: int = 3
    """Maximum number of batches between two checkpoints that are skipped because the loss or the
    gradient is not finite. One more rolls the run back to the last checkpoint; if that happens
    again, the run ends."""
    timeout: int = 600
    """Timeout of a collective operation in seconds, with several processes."""
    trackers: tuple[Literal["wandb", "mlflow", "trackio"], ...] = ()
    """Experiment trackers that also receive the metrics. Each must be installed, and is configured
    by its own environment variables."""
    project: str = "cvt"
    """Project (mlflow: experiment) name in the trackers."""
    device: str = "auto"
    """Device: cpu, cuda, cuda:1, ..., or auto (CUDA, XPU or MPS if available, else the CPU)."""
    seed: int = 0
    """Random seed of initialisation, data order, augmentation and dropout."""

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("epochs", "passes_per_epoch", "steps", "max_train_samples", "batch_size",
                     "keep_checkpoints", "timeout"):
            value = getattr(self, name)
            check(value is None or value >= 1, f"{name}={value} must be at least 1")
        for name in ("seed", "save_every", "skip_nonfinite", "patience"):
            check(getattr(self, name) >= 0, f"{name}={getattr(self, name)} must not be negative")
        check(0 <= self.ema < 1, f"ema={self.ema} must be in [0, 1)")
        if self.steps is not None and self.optim.warmup_steps is not None:
            check(self.optim.warmup_steps < self.steps, "optim.warmup_steps="
                  f"{self.optim.warmup_steps} leaves nothing of steps={self.steps}; make it "
                  "smaller")
        elif self.steps is None and self.optim.warmup_steps is None:
            check(self.optim.warmup_epochs < self.epochs,
                  f"optim.warmup_epochs={self.optim.warmup_epochs} leaves nothing of epochs="
                  f"{self.epochs}; make it smaller")
        accum_steps = self.optim.grad_accum_steps
        check(self.batch_size % accum_steps == 0, f"batch_size={self.batch_size} is not divisible "
              f"by optim.grad_accum_steps={accum_steps}; choose a divisor")
        check(not self.augment.mixes or self.batch_size % 2 == 0, f"batch_size={self.batch_size} "
              "is odd, but mixup and CutMix mix pairs of images; make it even")
        self._check_combinations()
        if self.weights is None:
            self.card(("",))  # raises for an unknown model and for too small an image

    def _check_combinations(self) -> None:
        """Reject options that are valid alone and have no meaning, or another one, together."""
        resnet = self.network == "resnet"
        check(self.weights is not None or not self.freeze.anything, "freeze keeps pretrained "
              "parameters, and there are none; give --weights")
        check(self.network == "cvt" or not (
            self.weights or self.freeze.anything or self.sync_batchnorm
            or self.optim.layer_decay < 1),
            f"network={self.network} starts from random weights and has no stages of a CvT; leave "
            "out weights, freeze, sync_batchnorm and optim.layer_decay")
        check(not (self.compile and self.network == "supernet"), "network=supernet changes at each "
              "step and would be compiled each time; leave out compile")
        check(not (self.compile and self.grad_checkpointing), "compile and grad_checkpointing "
              "exclude each other: a compiled network decides itself what to recompute; choose one")
        check(not (resnet and self.grad_checkpointing), "network=resnet with grad_checkpointing "
              "would count every batch twice in BatchNorm's statistics; leave out "
              "grad_checkpointing, and set optim.grad_accum_steps if memory is short")
        check(not (resnet and self.optim.name == "muon"), "network=resnet has no linear layer "
              "except its classifier, so optim.name=muon would train nothing by Muon; use adamw or "
              "sgd")
        check(not (self.sampling == "balanced" and self.class_weights == "balanced"),
              "sampling=balanced and class_weights=balanced would compensate for rare classes "
              "twice; choose one")
        for name in ("alpha", "temperature", "hard"):
            check_default(self.distill, name, self.distill.teacher is not None,
                          "there is no distill.teacher")
        check(not (self.distill.alpha == 1 and self.augment.label_smoothing), "distill.alpha=1 "
              "removes the labels from the loss, so augment.label_smoothing="
              f"{self.augment.label_smoothing} has no effect; leave one out")
        check(not (self.freeze.batchnorm and self.sync_batchnorm), "freeze.batchnorm uses no batch "
              "statistics, so sync_batchnorm has no effect; leave one out")
        if self.freeze.backbone:
            self.check_frozen("freeze.backbone")

    def check_frozen(self, cause: str) -> None:
        """Reject options for the stages if no stage is trained because of `cause`."""
        for option, given in (
                (f"drop_path_rate={self.drop_path_rate}", self.drop_path_rate),
                ("grad_checkpointing", self.grad_checkpointing),
                ("sync_batchnorm", self.sync_batchnorm),
                (f"optim.layer_decay={self.optim.layer_decay}", self.optim.layer_decay < 1),
                ("optim.name=muon", self.optim.name == "muon")):
            check(not given, f"{cause} trains no stage, so {option} has no effect; leave one out")

    @property
    def name(self) -> str:
        """The network's name, for titles."""
        name = self.model or self.weights or DEFAULT
        return name if self.network == "cvt" else f"{self.network} of the size of {name}"

    @property
    def label(self) -> str:
        """The network's name, for file names."""
        label = Path(self.model or self.weights or DEFAULT).stem
        return label if self.network == "cvt" else f"{label}_{self.network}"

    def card(self, classes: tuple[str, ...], preprocess: Preprocess | None = None,
             base: CvTConfig | None = None) -> ModelCard:
        """The card of the network to train.

        classes: of the dataset. preprocess: the preprocessing of the dataset or of the pretrained
        weights; this recipe's size and channels replace its own. base: the configuration of the
        pretrained weights; by default that of `model`. Raises InputError for an unknown variant or
        file, or an image size that leaves a stage empty.
        """
        base = base or find_config(self.model or DEFAULT)
        preprocess = preprocess or Preprocess(size=base.image_size)
        size = preprocess.size if self.image_size is None else self.image_size
        stages = base.stages
        if self.drop_path_rate is not None:
            check(not self.drop_path_rate or stages[-1].depth > 1
                  or self.network not in ("cvt", "supernet"),
                  f"drop_path_rate={self.drop_path_rate} increases from 0 in the first block of "
                  "the last stage, which has only one; leave it out")
            last = dataclasses.replace(stages[-1], drop_path_rate=self.drop_path_rate)
            stages = (*stages[:-1], last)
        return ModelCard(
            model=dataclasses.replace(base, stages=stages, in_chans=self.in_chans,
                                      num_classes=len(classes), image_size=size),
            preprocess=dataclasses.replace(preprocess.with_channels(self.in_chans), size=size),
            classes=classes, network=self.network)

    def with_absolute_paths(self) -> Recipe:
        """The recipe with absolute paths, so that it can be read from any directory."""
        def absolute(name: str | None) -> str | None:
            exists = name is not None and name not in VARIANTS and Path(name).exists()
            return str(Path(name).absolute()) if name and exists else name

        root = absolute(self.data.root)
        if root and self.data.name != "huggingface":  # which may be a name on the hub
            root = str(Path(root).absolute())
        return dataclasses.replace(
            self, model=absolute(self.model), weights=absolute(self.weights),
            data=dataclasses.replace(self.data, root=root),
            distill=dataclasses.replace(self.distill, teacher=absolute(self.distill.teacher)))

    def flat(self) -> dict[str, Any]:
        """All values by dotted name ("data.workers"); tuples are lists, as in JSON."""
        return {name: list(value) if isinstance(value, tuple) else value
                for name, value in _flat(self.to_dict())}

    def to_dict(self) -> dict[str, Any]:
        """Plain data that `from_dict` reads back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Recipe:
        """The recipe in `data`. Raises InputError for an unknown key or an invalid value."""
        parts = {"data": DataConfig, "augment": AugmentConfig, "optim": OptimConfig,
                 "freeze": FreezeConfig, "distill": DistillConfig}
        built = {key: from_mapping(parts[key], value, key) if key in parts else value
                 for key, value in data.items()}
        return from_mapping(cls, built, "the recipe")

    def save(self, path: Path) -> None:
        """Write the recipe as YAML (or JSON, by suffix)."""
        write_mapping(self.to_dict(), path)

    @classmethod
    def load(cls, path: Path, changes: Mapping[str, Any] | None = None) -> Recipe:
        """Read what `save` wrote, with other values by dotted name: {"data.workers": 4}."""
        data = read_mapping(path)
        for name, value in (changes or {}).items():
            *parts, last = name.split(".")
            section = data
            for part in parts:
                section = section.setdefault(part, {})
            section[last] = value
        return cls.from_dict(data)


def _flat(data: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in data.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
