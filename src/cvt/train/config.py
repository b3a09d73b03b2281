"""The parts of a recipe: optimiser and schedule, frozen parameters, distillation. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cvt.system.schema import check, check_default, check_types


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Optimiser and learning rate schedule; the learning rate is updated at every step.

    The official recipe is lr 0.002 for a batch of 2,048, weight decay 0.05 (CvT-13) or 0.1, five
    warm-up epochs from 1e-6, a floor of 1e-5 and no clipping (microsoft/CvT, experiments). The
    paper fine-tunes with SGD, momentum 0.9 (Sec. 4.1).
    """

    name: Literal["adamw", "sgd", "muon"] = "adamw"
    """Optimiser: AdamW (Loshchilov and Hutter, 2019), SGD with momentum, or Muon (Jordan et al.,
    2024). Muon updates the weight matrices of linear layers, scaled to AdamW's learning rates (Liu
    et al., 2025); AdamW updates all other parameters."""
    lr: float = 1e-3
    """Peak learning rate, after the warm-up."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Learning rate schedule after the warm-up: cosine or linear decay to min_lr, or constant."""
    weight_decay: float = 0.05
    """Weight decay of weight matrices and kernels. Norms, biases, class token and position
    embeddings are not decayed. Decoupled in AdamW and Muon (weights are multiplied by 1 - learning
    rate * decay at each step); in SGD decay * weight is added to the gradient after clipping."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's coefficients of the running averages of the gradient and its square. With Muon, for
    the parameters that AdamW updates. Not for SGD."""
    momentum: float = 0.9
    """Momentum of SGD, and Nesterov momentum of Muon. Not for AdamW."""
    layer_decay: float = 1.0
    """Layer-wise learning rate decay, in (0, 1]: the learning rate of a layer as a fraction of that
    of the layer above (Bao et al., 2022). A layer is the stem, a block, or the final norm and the
    head. Typical values for fine-tuning are 0.65 to 0.9."""
    warmup_epochs: float = 2.0
    """Epochs of linear warm-up; may be fractional."""
    warmup_steps: int | None = None
    """Steps of linear warm-up, in place of warmup_epochs."""
    warmup_lr: float = 1e-6
    """Learning rate of the first warm-up step. Without warm-up, the first learning rate is lr."""
    min_lr: float = 1e-5
    """Final learning rate of the cosine and linear schedules."""
    clip_grad: float = 0.0
    """Gradient clipping: maximum norm of the gradient of all parameters together, over the whole
    batch; 0 disables it."""
    grad_accum_steps: int = 1
    """Gradient accumulation: number of equal micro-batches per optimiser step, each with its own
    forward and backward pass. More take less memory; BatchNorm sees one micro-batch at a time."""

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("lr", "warmup_lr", "min_lr", "weight_decay", "warmup_epochs", "clip_grad"):
            check(getattr(self, name) >= 0, f"{name}={getattr(self, name)} must not be negative")
        check_default(self, "momentum", self.name != "adamw",
                      "optim.name=adamw has betas instead")
        check_default(self, "betas", self.name != "sgd",
                      "optim.name=sgd has momentum instead")
        check_default(self, "min_lr", self.schedule != "constant",
                      "optim.schedule=constant never decays")
        for name in ("warmup_lr", "min_lr"):
            check(getattr(self, name) <= self.lr
                  or (name == "min_lr" and self.schedule == "constant"),
                  f"{name}={getattr(self, name)} is above lr={self.lr}; make it smaller")
        check(all(0 <= b < 1 for b in self.betas), f"betas={self.betas} must be in [0, 1)")
        check(0 <= self.momentum < 1, f"momentum={self.momentum} must be in [0, 1)")
        check(0 < self.layer_decay <= 1, f"layer_decay={self.layer_decay} must be in (0, 1]")
        check(self.warmup_steps is None or self.warmup_steps >= 0,
              f"warmup_steps={self.warmup_steps} must not be negative")
        check(self.grad_accum_steps >= 1,
              f"grad_accum_steps={self.grad_accum_steps} must be at least 1")


@dataclass(frozen=True, kw_only=True)
class FreezeConfig:
    """Parts of a pretrained network that are not trained; dropout is off in frozen parts."""

    backbone: bool = False
    """Freeze everything except the head: a linear probe."""
    stages: int = 0
    """Number of stages to freeze, from the first."""
    batchnorm: bool = False
    """Freeze every BatchNorm, including its running statistics, for fine-tuning with small
    batches."""

    def __post_init__(self) -> None:
        check_types(self)
        check(self.stages >= 0, f"stages={self.stages} must not be negative")

    @property
    def anything(self) -> bool:
        """Whether any part is frozen."""
        return self.backbone or self.stages > 0 or self.batchnorm


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """Knowledge distillation from a trained teacher (Hinton et al., 2015)."""

    teacher: str | None = None
    """Teacher: a CvT (a directory, a tag of `cvt zoo`, hf-hub:org/name), or timm:NAME for a model
    of timm, such as timm:regnety_160.deit_in1k. Default: no distillation. The teacher must have the
    same classes, in any order; they are matched by name. ImageNet's may be WordNet ids or
    descriptions. A timm model from a directory or the hub must name its classes (label_names)."""
    alpha: float = 0.5
    """Weight of the distillation loss, in (0, 1]; the loss on the labels, smoothed and mixed, has
    weight 1 - alpha. The teacher sees the same augmented and mixed images as the network, and its
    predictions are not smoothed."""
    temperature: float = 1.0
    """Temperature of soft distillation: the logits of both networks are divided by it."""
    hard: bool = False
    """Hard distillation: learn the teacher's most probable class (Touvron et al., 2021) instead of
    its probabilities."""

    def __post_init__(self) -> None:
        check_types(self)
        check_default(self, "temperature", not self.hard,
                      "distill.hard takes the most probable class, at any temperature the same")
        check(0 < self.alpha <= 1, f"alpha={self.alpha} must be in (0, 1]")
        check(self.temperature > 0, f"temperature={self.temperature} must be above 0")
