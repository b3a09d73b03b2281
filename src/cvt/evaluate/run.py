"""Evaluate a model on labelled images."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cvt.config import Act
from cvt.data.config import DataConfig
from cvt.data.dataset import LabeledImages, relabel
from cvt.data.load import load_dataset
from cvt.data.loader import Batch, evaluation_batches
from cvt.data.unreadable import UnreadableImages
from cvt.evaluate.metrics import Evaluation, score
from cvt.evaluate.report import write_report
from cvt.system.device import autocast, device_name, out_of_memory, pick_device
from cvt.system.errors import InputError
from cvt.system.machine import describe_machine
from cvt.system.schema import from_mapping, read_mapping, write_mapping
from cvt.weights.card import ModelCard
from cvt.weights.models import load_model
from cvt.zoo import ZOO, shipped

METRICS, REPORT, RECIPE, EVALUATION = "metrics.json", "report.html", "recipe.yaml", "evaluation"


def evaluate(model: nn.Module, card: ModelCard, images: LabeledImages, *, batch_size: int = 64,
             workers: int = 0, precision: str = "fp32", max_unreadable: float = 0.0) -> Evaluation:
    """Evaluate `model` on `images`, preprocessed as in `card`, on the model's device.

    Unreadable images count as wrong; see `score`. Raises InputError if more than the fraction
    `max_unreadable` of the images are unreadable, or if the images have a class that the model does
    not have.
    """
    images = relabel(images, card.classes)
    unreadable = UnreadableImages(images, max_unreadable)
    batches = evaluation_batches(images, card.preprocess, batch_size=batch_size, workers=workers,
                                 unreadable=unreadable)
    logits, labels = classify(model, batches, precision=precision)
    return score_logits(images, logits, labels, unreadable)


def score_logits(images: LabeledImages, logits: Tensor, labels: Tensor,
                 unreadable: UnreadableImages) -> Evaluation:
    """Evaluate the result of `classify` for `images`, in order and without those `unreadable`.

    Raises InputError if all images are unreadable.
    """
    if not len(labels):
        raise InputError(f"none of {len(images)} images can be read; the first: "
                         f"{unreadable[0]}")
    loss = F.cross_entropy(logits, labels).item()
    return score(logits.softmax(1), labels, images.names, images.classes, loss, unreadable)


def classify(model: nn.Module, batches: Iterable[Batch], *,
             precision: str = "fp32") -> tuple[Tensor, Tensor]:
    """Logits (n, K) float32 and labels (n,) of all batches, on the CPU; `model` in evaluation mode.

    When memory runs out, this batch and the next ones are split into smaller parts. Raises
    InputError if memory is too small for one image.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    logits, labels = [torch.empty(0)], [torch.empty(0, dtype=torch.int64)]
    part_size: int | None = None  # images; None for whole batches
    with torch.inference_mode(), autocast(device, precision):
        for images, target in batches:
            images = images.to(device, non_blocking=True)
            while (out := _logits(model, images.split(part_size or len(images)))) is None:
                if part_size == 1 or len(images) == 1:
                    raise InputError("out of memory with one image at a time; use a smaller "
                                     "network, smaller images or another device")
                part_size = -(-min(part_size or len(images), len(images)) // 2)
            logits.append(out)
            labels.append(target)
    model.train(was_training)
    return torch.cat(logits), torch.cat(labels)


def _logits(model: nn.Module, parts: Iterable[Tensor]) -> Tensor | None:
    """Logits of all parts; None if memory runs out."""
    try:
        return torch.cat([model(part).float().cpu() for part in parts])
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        return None  # outside of the handler the traceback no longer keeps tensors alive


def evaluate_model(model: str | Path, *, output: Path | None = None, data: DataConfig | None = None,
                   split: Literal["val", "train", "all"] | None = None, batch_size: int = 64,
                   precision: str = "fp32", device: str = "auto", act: Act | None = None,
                   report: Callable[[str], object] | None = None) -> tuple[Evaluation, Path]:
    """Evaluate a model; returns its evaluation and the directory of metrics.json and report.html.

    model, act: as for `cvt.load_model`. data: by default the data that the model was trained with,
    from recipe.yaml in its directory. split: by default the validation images; of `data` without a
    split of its own all images, which may be of a single class. report: called with each line
    about what was left out and how the data was read. output: by default evaluation/ in the model's
    directory, or runs/NAME/evaluation for models of the zoo and the hub. Raises InputError if the
    model or the images cannot be used.
    """
    network, card = load_model(model, act=act)
    by_name = str(model) in ZOO or not Path(model).exists()
    home = Path("runs") / Path(model).name if by_name else Path(model)
    home = home.parent if home.is_file() else home
    given = data is not None
    data = data or _trained_with(shipped(model) or home)
    # Who gives a fraction or its seed asks for the part that is held out.
    fraction = (data.val_fraction, data.split_seed) != (
        DataConfig.val_fraction, DataConfig.split_seed)
    dataset = load_dataset(data, hold_out=not given or split in ("val", "train")
                           or (split is None and fraction))
    messages = list(dataset.messages)
    if split is None and not len(dataset.train):
        messages.append(f"scores all {len(dataset.val):,} images of {data.root}, which has no "
                        "split of its own; --split val scores the part that training holds out")
    if report:
        for message in messages:
            report(message)
    split = split or ("val" if len(dataset.train) else "all")
    images: LabeledImages = getattr(dataset, split)
    if not len(images):
        raise InputError(f"{data.root or data.name} has no images in the split {split}")
    place = pick_device(device)
    evaluation = evaluate(network.to(place), card, images, batch_size=batch_size,
                          workers=data.workers, precision=precision,
                          max_unreadable=data.max_unreadable)
    output = output or home / EVALUATION
    output.mkdir(parents=True, exist_ok=True)
    facts = {**describe_machine(), "device": device_name(place), "precision": precision}
    write_mapping({**evaluation.to_dict(), "facts": facts}, output / METRICS)
    write_report(output / REPORT, title=f"{model} on {data.name}, {split}", evaluation=evaluation,
                 read=images.read, facts=facts,
                 config={"model": card.model.to_dict(), "data": dataclasses.asdict(data)})
    return evaluation, output


def _trained_with(home: Path) -> DataConfig:
    path = home / RECIPE
    if not path.is_file():
        raise InputError(f"{home} has no {RECIPE} with the data that the model was trained with; "
                         "give --data.name and --data.root")
    return from_mapping(DataConfig, read_mapping(path).get("data", {}), f"data in {path}")
