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
from cvt.weights.card import Network, find_config

DEFAULT = "cvt_nano"

LENGTH = frozenset(("epochs", "steps", "patience"))
"""Options that decide how long a run is: a run that goes on may be given others."""
MACHINE = frozenset(("device", "timeout", "trackers", "project", "keep", "save_every",
                     "data.workers", "data.max_unreadable"))
"""Options that say how a run is computed, and change nothing of what it comes to."""
PLACES = frozenset(("data.root", "model", "distill.teacher"))
"""Options that say where something lies: of a run that goes on, what lies there is compared."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A training run.

    Raises InputError for values that are nonsense or exclude each other.
    """

    model: str | None = None
    """A variant (cvt_13, cvt_21, cvt_w24, cvt_nano), a .json or .yaml file with a configuration of
    this package or of microsoft/CvT, or the directory of a trained model, for its configuration. By
    default that of `weights`, without them cvt_nano."""
    network: Network = "cvt"
    """The CvT itself, or in its place, to compare it under the same recipe, another network of its
    size: a ViT (for cvt_13 it is DeiT-S), that without position embedding, or a ResNet. supernet:
    all networks among which `cvt search` chooses, in one."""
    weights: str | None = None
    """Where to start from, for fine-tuning: a tag of `cvt zoo`, the directory of a model in any
    format, a file, or hf-hub:org/name. Images are then prepared as for these weights. The head is
    kept where it is for the same classes, matched by name; for others it is new. By default the
    weights are random."""
    in_chans: Literal[1, 3] = 3
    """Channels of the network's input: 3 for RGB, 1 for gray."""
    image_size: int | None = None
    """Side in pixels of the network's input; by default that of `weights`, without them the
    dataset's own (224 for your own images)."""
    drop_path_rate: float | None = None
    """Stochastic depth of the last stage, which rises from 0 in its first block to this in its
    last; of a ViT or ResNet in place of the CvT, of the whole network. By default the model's
    own."""
    data: DataConfig = field(default_factory=DataConfig)
    """The images."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """How training images are varied."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """The optimiser and its schedule."""
    freeze: FreezeConfig = field(default_factory=FreezeConfig)
    """What is not trained, of a network that starts from weights."""
    distill: DistillConfig = field(default_factory=DistillConfig)
    """A teacher to learn from."""
    epochs: int = 30
    """From one validation and checkpoint to the next; an epoch passes over the training images
    `passes` times."""
    passes: int = 1
    """Passes over the training images in an epoch; more where they are so few that to validate
    and save would take most of the time."""
    steps: int | None = None
    """Optimiser steps of the whole run, in place of epochs; the last epoch may be a part of one."""
    max_train_samples: int | None = None
    """Train on so many images only, the same share of each class, chosen by data.split_seed."""
    sampling: Literal["shuffled", "balanced"] = "shuffled"
    """balanced: an epoch's images are drawn with replacement, each class as likely as any other, so
    that images of rare classes come several times. Not together with class_weights."""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced: an image's loss counts in inverse proportion to how often its class is trained on,
    the teacher's share included; that of a mixed image by its classes' weights, mixed as its target
    is. The prediction that is best for an image does not depend on the weights. Not together with
    sampling=balanced, which would make up for rare classes twice."""
    best_by: Literal["val_top1", "val_recall", "val_loss"] = "val_top1"
    """By which the best epoch is chosen; val_recall is the mean over the classes, for those whose
    numbers differ."""
    patience: int = 0
    """End the run after so many epochs without a better one; 0 for never."""
    batch_size: int = 64
    """Images of one optimiser step."""
    ema: float = 0.0
    """Decay of the exponential moving average of the weights and BatchNorm's statistics; 0 disables
    it. The averaged weights are evaluated and saved. At step n the decay is at most 1 -
    (n - 1)^(-2/3), so 0.99 takes 1,000 steps to be reached, and 0.999 31,600."""
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
    trackers: tuple[Literal["wandb", "mlflow", "trackio"], ...] = ()
    """Services that get the figures besides; each must be installed. Where they send them is
    theirs to know, by their own environment variables."""
    project: str = "cvt"
    """What the trackers call the project, or the experiment, that the run is one of."""
    device: str = "auto"
    """auto (CUDA where there is one, else the CPU), cpu, cuda, cuda:1, ..."""
    seed: int = 0
    """Seed of weights, order, augmentation and dropout."""

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("epochs", "passes", "batch_size", "keep", "timeout"):
            check(getattr(self, name) >= 1, f"{name}={getattr(self, name)} must be at least 1")
        for name in ("steps", "max_train_samples"):
            value = getattr(self, name)
            check(value is None or value >= 1, f"{name}={value} must be at least 1")
        if self.steps is not None and self.optim.warmup_steps is not None:
            check(self.optim.warmup_steps < self.steps, "optim.warmup_steps="
                  f"{self.optim.warmup_steps} leaves nothing of steps={self.steps}; make it "
                  "smaller")
        elif self.steps is None and self.optim.warmup_steps is None:
            check(self.optim.warmup_epochs < self.epochs,
                  f"optim.warmup_epochs={self.optim.warmup_epochs} leaves nothing of epochs="
                  f"{self.epochs}; make it smaller")
        check(self.weights is not None or not self.freeze.anything, "freeze keeps what `weights` "
              "have learnt, and there are none; give --weights")
        check(self.network == "cvt" or not (
            self.weights or self.freeze.anything or self.sync_batchnorm
            or self.optim.layer_decay < 1),
            f"network={self.network} starts from random weights and has no stages of a CvT; leave "
            "out weights, freeze, sync_batchnorm and optim.layer_decay")
        check(not (self.compile and self.network == "supernet"), "network=supernet is another at "
              "each step, which would be compiled anew each time; leave out compile")
        check(not (self.compile and self.grad_checkpointing), "compile and grad_checkpointing do "
              "not go together, for a compiled network decides itself what to compute again; "
              "choose one")
        self._check_pairs()
        check(0 <= self.ema < 1, f"ema={self.ema} must be in [0, 1)")
        for name in ("seed", "save_every", "skip_nonfinite", "patience"):
            check(getattr(self, name) >= 0, f"{name}={getattr(self, name)} must not be negative")
        check(self.batch_size % self.optim.accumulate == 0,
              f"batch_size={self.batch_size} cannot be passed in optim.accumulate="
              f"{self.optim.accumulate} equal parts; choose a divisor")
        check(not self.augment.mixes or self.batch_size % 2 == 0,
              f"batch_size={self.batch_size} is odd, but mixup and CutMix mix pairs; make it even")
        if self.weights is None:
            self.config(num_classes=1)  # refuses an unknown model and too small an image

    def _check_pairs(self) -> None:
        """Reject two options that are each right and together would do what neither says."""
        resnet = self.network == "resnet"
        check(not (resnet and self.grad_checkpointing), "network=resnet with grad_checkpointing "
              "would count every batch twice in BatchNorm's statistics; leave out "
              "grad_checkpointing, and set optim.accumulate where memory is short")
        check(not (resnet and self.optim.name == "muon"), "network=resnet has no linear layer but "
              "its classifier, so optim.name=muon would train nothing by Muon; take adamw or sgd")
        check(not (self.sampling == "balanced" and self.class_weights == "balanced"),
              "sampling=balanced and class_weights=balanced would make up for rare classes twice; "
              "choose one")
        for name in ("share", "temperature", "hard"):
            check_default(self.distill, name, self.distill.teacher is not None,
                          "there is no distill.teacher")
        check(not (self.distill.share == 1 and self.augment.label_smoothing), "distill.share=1 "
              "leaves the labels no part in the loss, so augment.label_smoothing="
              f"{self.augment.label_smoothing} has no effect; leave one out")
        check(not (self.freeze.batchnorm and self.sync_batchnorm), "freeze.batchnorm takes no "
              "statistics of a batch, so sync_batchnorm has no effect; leave one out")
        if self.freeze.trunk:
            self.check_frozen("freeze.trunk")

    def check_frozen(self, what: str) -> None:
        """Reject options that are for the stages, where none is trained because of `what`."""
        for option, given in (
                (f"drop_path_rate={self.drop_path_rate}", self.drop_path_rate),
                ("grad_checkpointing", self.grad_checkpointing),
                ("sync_batchnorm", self.sync_batchnorm),
                (f"optim.layer_decay={self.optim.layer_decay}", self.optim.layer_decay < 1),
                ("optim.name=muon", self.optim.name == "muon")):
            check(not given, f"{what} trains no stage, so {option} has no effect; leave one out")

    @property
    def name(self) -> str:
        """What to call the network."""
        name = self._own_name
        return name if self.network == "cvt" else f"{self.network} of the size of {name}"

    @property
    def label(self) -> str:
        """The same as a part of a file's name."""
        label = Path(self._own_name).stem
        return label if self.network == "cvt" else f"{label}_{self.network}"

    @property
    def _own_name(self) -> str:
        return self.model or self.weights or DEFAULT

    def config(self, num_classes: int, size: int | None = None, own: CvTConfig | None = None
               ) -> CvTConfig:
        """The network to train, for `num_classes` classes and images of `size` pixels a side.

        own: that of the weights to start from. Raises InputError for an unknown variant or file, or
        a size that leaves a stage empty.
        """
        config = own or find_config(self.model or DEFAULT)
        stages, own_size = config.stages, size or config.image_size
        if self.drop_path_rate is not None:
            check(not self.drop_path_rate or stages[-1].depth > 1
                  or self.network not in ("cvt", "supernet"),
                  f"drop_path_rate={self.drop_path_rate} rises from 0 in the first block of the "
                  "last stage, which has no other; leave it out")
            last = dataclasses.replace(stages[-1], drop_path_rate=self.drop_path_rate)
            stages = (*stages[:-1], last)
        return dataclasses.replace(
            config, stages=stages, in_chans=self.in_chans, num_classes=num_classes,
            image_size=own_size if self.image_size is None else self.image_size)

    def preprocess(self, own: Preprocess) -> Preprocess:
        """The dataset's `own` preprocessing at this recipe's size and number of channels."""
        size = own.size if self.image_size is None else self.image_size
        return dataclasses.replace(own.with_channels(self.in_chans), size=size)

    def with_absolute_paths(self) -> Recipe:
        """The same recipe from whichever directory it is read: what is a path here, from the
        root."""
        def absolute(name: str | None) -> str | None:
            there = name is not None and name not in VARIANTS and Path(name).exists()
            return str(Path(name).absolute()) if name and there else name

        root = absolute(self.data.root)
        if root and self.data.name != "huggingface":  # which may be a name on the hub
            root = str(Path(root).absolute())
        return dataclasses.replace(
            self, model=absolute(self.model), weights=absolute(self.weights),
            data=dataclasses.replace(self.data, root=root),
            distill=dataclasses.replace(self.distill, teacher=absolute(self.distill.teacher)))

    def changed(self, values: Mapping[str, Any]) -> Recipe:
        """With other values; a dot leads into a part: {"data.workers": 4}."""
        return self.from_dict(_changed(self.to_dict(), values))

    def flat(self) -> dict[str, Any]:
        """Every value by its name, a dot leading into a part; tuples as lists, as JSON has them."""
        return {name: list(value) if isinstance(value, tuple) else value
                for name, value in _flat(self.to_dict())}

    def to_dict(self) -> dict[str, Any]:
        """Plain data that `from_dict` reads back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Recipe:
        """The recipe `data` describes. Raises InputError for an unknown key or a wrong value."""
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
        """Read what `save` wrote, with the values of `changes` as in `changed`: so that a file
        that the recipe names may have moved."""
        return cls.from_dict(_changed(read_mapping(path), changes or {}))


def _changed(data: dict[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    for name, value in values.items():
        *parts, last = name.split(".")
        place = data
        for part in parts:
            place = place.setdefault(part, {})
        place[last] = value
    return data


def _flat(data: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in data.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
