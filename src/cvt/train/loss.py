"""The training loss: cross entropy, weighted by class, and distillation from a teacher."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cvt.config import Preprocess
from cvt.data.classes import class_order
from cvt.data.dataset import LabeledImages
from cvt.system.device import autocast
from cvt.system.errors import InputError, one_line
from cvt.train.config import DistillConfig
from cvt.train.recipe import Recipe
from cvt.weights.card import ModelCard
from cvt.weights.checkpoint import build
from cvt.weights.models import open_checkpoint
from cvt.weights.timm import label_names

TIMM = "timm:"


class Loss(nn.Module):
    """Mean loss in nats of logits (B, K) for labels (B,) or probabilities (B, K).

    For image i with class weight w_i, target distribution y_i and distillation weight alpha (0
    without a teacher):

        w_i * ((1 - alpha) * cross_entropy(logits_i, smoothed(y_i))
               + alpha * distillation_loss(logits_i, teacher_i))

    w_i is the weight of the image's class; for a mixed image, the mean of its classes' weights by
    their proportions. It multiplies the whole, so the optimal logits for an image depend on its own
    target only. The mean is over the images and not over their weights, so that micro-batches add
    up. Raises InputError if `recipe` balances the classes and one has no training image.
    """

    def __init__(self, recipe: Recipe, card: ModelCard, images: LabeledImages) -> None:
        super().__init__()
        self.smoothing = recipe.augment.label_smoothing
        if recipe.sampling == "balanced":  # it balances the mean of this loss, as weights do
            _class_counts(images, "sampling")
        weight = balanced_weights(images) if recipe.class_weights == "balanced" else None
        self.weight: Tensor | None
        self.register_buffer("weight", weight)
        self.distill = recipe.distill
        self.teacher = Teacher(recipe.distill, card, recipe.precision) if (
            recipe.distill.teacher) else None

    def forward(self, x: Tensor, logits: Tensor, target: Tensor) -> Tensor:
        """The loss of images x (B, C, H, W), a scalar."""
        logits = logits.float()
        # Not the `weight` of F.cross_entropy: it multiplies the entries of the smoothed or mixed
        # target, so that the optimal prediction for an image of a frequent class would be a rare
        # one.
        loss = F.cross_entropy(logits, target, label_smoothing=self.smoothing,
                               reduction="none")  # (B,)
        if self.teacher is not None:
            alpha = self.distill.alpha
            loss = (1 - alpha) * loss + alpha * distillation_loss(logits, self.teacher(x),
                                                                  self.distill)
        if self.weight is not None:
            loss = loss * (self.weight[target] if target.ndim == 1 else target @ self.weight)
        return loss.mean()


def balanced_weights(images: LabeledImages) -> Tensor:
    """Class weights (K,), inversely proportional to the number of images; their mean over the
    images is 1.

    Raises InputError if a class has no image.
    """
    counts = _class_counts(images, "class_weights")
    return torch.tensor(len(images) / (len(counts) * counts), dtype=torch.float32)


def _class_counts(images: LabeledImages, option: str) -> np.ndarray:
    """Images per class (K,). Raises InputError, naming `option`, if a class has none."""
    counts = np.bincount(images.labels, minlength=len(images.classes))
    if not counts.all():
        raise InputError(f"{option}=balanced, and the class "
                         f"{images.classes[int(counts.argmin())]!r} has no training image")
    return counts


def distillation_loss(logits: Tensor, teacher: Tensor, config: DistillConfig) -> Tensor:
    """Distance (B,) in nats between logits (B, K) and the teacher's logits (B, K).

    Hard: cross entropy with the teacher's most probable class. Soft: Kullback-Leibler divergence
    at the temperature, times its square, which preserves the scale of the gradient (Hinton et al.,
    2015).
    """
    if config.hard:
        return F.cross_entropy(logits, teacher.argmax(1), reduction="none")
    t = config.temperature
    return F.kl_div((logits / t).log_softmax(1), (teacher / t).log_softmax(1), log_target=True,
                    reduction="none").sum(1) * t**2


class Teacher(nn.Module):
    """A trained network that predicts the student's images, with its own preprocessing."""

    def __init__(self, config: DistillConfig, card: ModelCard, precision: str) -> None:
        super().__init__()
        self.precision = precision
        name = str(config.teacher)
        load = _load_timm if name.startswith(TIMM) else _load_cvt
        self.network, own, order = load(name, card)
        if own.channels != card.preprocess.channels:
            raise InputError(f"the teacher {name} takes {own.channels} channels, the network "
                             f"{card.preprocess.channels}; set in_chans={own.channels}")
        self.network.eval().requires_grad_(False)
        self.order = None if order == list(range(len(order))) else order
        # From the student's normalisation to the teacher's: scale * x + shift.
        (mean, std), (mean_t, std_t) = (
            (torch.tensor(p.mean).view(-1, 1, 1), torch.tensor(p.std).view(-1, 1, 1))
            for p in (card.preprocess, own))
        self.scale: Tensor
        self.shift: Tensor
        self.register_buffer("scale", std / std_t)
        self.register_buffer("shift", (mean - mean_t) / std_t)
        self.size = own.size

    def train(self, mode: bool = True) -> Teacher:  # noqa: ARG002
        """Stay in evaluation mode."""
        return self

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, K) of the student's images (B, C, H, W), in the order of its classes."""
        x = torch.addcmul(self.shift, x, self.scale)
        if x.shape[-1] != self.size:
            x = F.interpolate(x, (self.size, self.size), mode="bicubic", antialias=True)
        with autocast(x.device, self.precision):
            logits = self.network(x).float()
        return logits if self.order is None else logits[:, self.order]


def _load_cvt(name: str, card: ModelCard) -> tuple[nn.Module, Preprocess, Sequence[int]]:
    checkpoint = open_checkpoint(name)
    own = checkpoint.card
    order = _class_order(name, card, own.classes if checkpoint.has_class_names else None)
    return build(checkpoint)[0], own.preprocess, order


def _load_timm(name: str, card: ModelCard) -> tuple[nn.Module, Preprocess, Sequence[int]]:
    try:
        model = timm.create_model(name.removeprefix(TIMM), pretrained=True)
    # Whatever timm, the hub and the file raise: they share no exception.
    except Exception as error:
        raise InputError(f"the teacher {name} cannot be loaded from timm: {one_line(error)}"
                         ) from None
    names = model.pretrained_cfg.get("label_names")
    subset = timm.data.infer_imagenet_subset(model)
    # Inferred from their number, which is right for timm's own models only, not for those from a
    # directory or the hub.
    if not names and subset and ":" not in name.removeprefix(TIMM):
        names = timm.data.ImageNetInfo(subset).label_names()
    known = label_names(names) if names and len(names) == model.num_classes else None
    data = timm.data.resolve_model_data_config(model)
    own = dataclasses.replace(card.preprocess, size=data["input_size"][1],
                              mean=tuple(data["mean"]), std=tuple(data["std"]))
    return model, own, _class_order(name, card, known)


def _class_order(name: str, card: ModelCard, known: Sequence[str] | None) -> list[int]:
    """The teacher's index of each of the card's classes, matched by name."""
    if known is None:
        raise InputError(f"the teacher {name} does not name its classes, so they cannot be matched "
                         "with those of the images; add them to its config.json")
    order = class_order(card.classes, known)
    if isinstance(order, str):
        raise InputError(f"the teacher {name} and the images have different classes, such as "
                         f"{order!r}; use a teacher with the same classes")
    return order
