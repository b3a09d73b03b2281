"""The parts of a recipe: optimiser and schedule, what is frozen, who teaches. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cvt.system.schema import check, check_default, check_types


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The optimiser, a linear warm-up, then a schedule; the learning rate moves at every step.

    The official recipe is lr 0.002 for a batch of 2,048, weight decay 0.05 (CvT-13) or 0.1, five
    warm-up epochs from 1e-6, a floor of 1e-5 and no clipping (microsoft/CvT, experiments). The
    paper fine-tunes with SGD, momentum 0.9 (Sec. 4.1).
    """

    name: Literal["adamw", "sgd", "muon"] = "adamw"
    """AdamW (Loshchilov and Hutter, 2019), SGD with momentum, or Muon (Jordan et al., 2024) for the
    matrices of linear layers, scaled so that AdamW's learning rates suit it (Liu et al., 2025),
    with AdamW for all else."""
    lr: float = 1e-3
    """Learning rate after the warm-up."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How it falls to min_lr after the warm-up; constant: it does not."""
    weight_decay: float = 0.05
    """Decay of weight matrices and kernels; norms, biases, class token and position embeddings
    have none. AdamW and Muon multiply by 1 - learning rate * decay at each step (decoupled), SGD
    adds decay * weight to the gradient after it is clipped."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's moment decays, also of what Muon leaves to it; not for SGD."""
    momentum: float = 0.9
    """SGD's and Muon's (Nesterov's); not for AdamW."""
    layer_decay: float = 1.0
    """Each layer's learning rate as a fraction of that of the layer above it, in (0, 1], throughout
    the schedule; a layer is the stem, a block, or the final norm and the head (Bao et al., 2022).
    For fine-tuning, 0.65 to 0.9 are usual."""
    warmup_epochs: float = 2.0
    """Epochs of linear warm-up; may be a fraction."""
    warmup_steps: int | None = None
    """Steps of linear warm-up, in place of warmup_epochs."""
    warmup_lr: float = 1e-6
    """Learning rate of the first step of the warm-up; a run without one starts with lr."""
    min_lr: float = 1e-5
    """Learning rate at the end, of a schedule that falls."""
    clip_grad: float = 0.0
    """Max norm of the gradient of all weights together, over all parts of the batch; 0 for no
    clipping."""
    accumulate: int = 1
    """Equal parts in which a batch passes the network before the optimiser's step; more parts take
    less memory, and BatchNorm sees one part at a time."""

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("lr", "warmup_lr", "min_lr", "weight_decay", "warmup_epochs", "clip_grad"):
            check(getattr(self, name) >= 0, f"{name}={getattr(self, name)} must not be negative")
        check_default(self, "momentum", self.name != "adamw",
                      "optim.name=adamw has betas in its place")
        check_default(self, "betas", self.name != "sgd",
                      "optim.name=sgd has momentum in their place")
        check_default(self, "min_lr", self.schedule != "constant",
                      "optim.schedule=constant never falls to it")
        for name in ("warmup_lr", "min_lr"):
            check(getattr(self, name) <= self.lr
                  or (name == "min_lr" and self.schedule == "constant"),
                  f"{name}={getattr(self, name)} is above lr={self.lr}; make it smaller")
        check(all(0 <= b < 1 for b in self.betas), f"betas={self.betas} must be in [0, 1)")
        check(0 <= self.momentum < 1, f"momentum={self.momentum} must be in [0, 1)")
        check(0 < self.layer_decay <= 1, f"layer_decay={self.layer_decay} must be in (0, 1]")
        check(self.warmup_steps is None or self.warmup_steps >= 0,
              f"warmup_steps={self.warmup_steps} must not be negative")
        check(self.accumulate >= 1, f"accumulate={self.accumulate} must be at least 1")


@dataclass(frozen=True, kw_only=True)
class FreezeConfig:
    """What of the network stays as `weights` have it; what is frozen has no dropout either."""

    trunk: bool = False
    """All but the head: a linear probe."""
    stages: int = 0
    """So many stages, from the first."""
    batchnorm: bool = False
    """Every BatchNorm, its statistics included: for fine-tuning on small batches."""

    def __post_init__(self) -> None:
        check_types(self)
        check(self.stages >= 0, f"stages={self.stages} must not be negative")

    @property
    def anything(self) -> bool:
        """Whether something is frozen."""
        return self.trunk or self.stages > 0 or self.batchnorm


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """A trained network whose answers are learnt from, beside the labels (Hinton et al., 2015)."""

    teacher: str | None = None
    """A CvT (a directory, a tag, hf-hub:org/name), or timm:NAME for a model of timm, such as
    timm:regnety_160.deit_in1k; None for no teacher. It has the same classes, in any order, matched
    by name. ImageNet's may be WordNet ids or descriptions; a model of timm from a directory or the
    hub must name its classes (label_names)."""
    share: float = 0.5
    """Of each image's loss, what the teacher has in it, in (0, 1]; the labels, smoothed and mixed,
    have the rest. The teacher sees what the network sees, augmented and mixed, and its answers are
    not smoothed."""
    temperature: float = 1.0
    """By which both networks' logits are divided before their probabilities are compared; not for
    hard."""
    hard: bool = False
    """Learn the teacher's most probable class (Touvron et al., 2021), not its probabilities."""

    def __post_init__(self) -> None:
        check_types(self)
        check_default(self, "temperature", not self.hard,
                      "distill.hard takes the most probable class, at any temperature the same")
        check(0 < self.share <= 1, f"share={self.share} must be in (0, 1]")
        check(self.temperature > 0, f"temperature={self.temperature} must be above 0")
