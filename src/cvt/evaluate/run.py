"""A model on labelled images."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
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
    """Score `model` on `images`, prepared as its card says, on the device it is on.

    Images that cannot be read count as wrong, as `score` has it. Raises InputError where more
    than the fraction `max_unreadable` cannot be, or the images have a class that the model does
    not know.
    """
    images = relabel(images, card.classes)
    unreadable = UnreadableImages(images, max_unreadable)
    batches = evaluation_batches(images, card.preprocess, batch_size=batch_size, workers=workers,
                                 unreadable=unreadable)
    logits, labels = classify(model, batches, precision=precision)
    return evaluation_of(images, logits, labels, unreadable)


def evaluation_of(images: LabeledImages, logits: Tensor, labels: Tensor,
                  unreadable: UnreadableImages) -> Evaluation:
    """What `classify` gave of `images` in their order, but those that are `unreadable`, scored.

    Raises InputError where none can be read.
    """
    if not len(labels):
        raise InputError(f"none of {len(images)} images can be read; the first: "
                         f"{unreadable[0]}")
    loss = F.cross_entropy(logits, labels).item()
    return score(logits.softmax(1), labels, images.names, images.classes, loss, unreadable)


def classify(model: nn.Module, batches: Iterable[Batch], *,
             precision: str = "fp32") -> tuple[Tensor, Tensor]:
    """Logits (n, K) float32 and labels (n,) of all batches, on the CPU; `model` in evaluation.

    Where memory runs out a batch is computed in smaller parts, and so are those after it. Raises
    InputError where it does not suffice for one image.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    logits, labels = [torch.empty(0)], [torch.empty(0, dtype=torch.int64)]
    at_a_time: int | None = None  # images; None for whole batches
    with torch.inference_mode(), autocast(device, precision):
        for images, target in batches:
            images = images.to(device, non_blocking=True)
            while (out := _logits(model, images.split(at_a_time or len(images)))) is None:
                if at_a_time == 1 or len(images) == 1:
                    raise InputError("out of memory with one image at a time; take a smaller "
                                     "network, smaller images or another device")
                at_a_time = -(-min(at_a_time or len(images), len(images)) // 2)
            logits.append(out)
            labels.append(target)
    model.train(was_training)
    return torch.cat(logits), torch.cat(labels)


def _logits(model: nn.Module, parts: Iterable[Tensor]) -> Tensor | None:
    """Those of all parts together; None where memory runs out."""
    try:
        return torch.cat([model(part).float().cpu() for part in parts])
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        return None  # and the traceback, which holds the tensors, is gone


def evaluate_model(model: str | Path, *, output: Path | None = None, data: DataConfig | None = None,
                   split: Literal["val", "train", "all"] = "val", batch_size: int = 64,
                   precision: str = "fp32", device: str = "auto", act: Act | None = None
                   ) -> tuple[Evaluation, Path]:
    """Score a model; its evaluation, and where metrics.json and report.html went.

    `model` and `act` are as for `cvt.load_model`. `data` is by default what the model was trained
    with, as recipe.yaml beside it says; `output` is evaluation/ beside it, for the zoo's and the
    hub's runs/NAME/evaluation. Raises InputError where model or images cannot be used.
    """
    network, card = load_model(model, act=act)
    named = str(model) in ZOO or not Path(model).exists()
    home = Path("runs") / Path(model).name if named else Path(model)
    home = home.parent if home.is_file() else home
    data = data or _trained_with(shipped(model) or home)
    dataset = load_dataset(data)
    images: LabeledImages = getattr(dataset, split)
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
        raise InputError(f"{home} has no {RECIPE} that says which images it was trained with; "
                         "name them with --data.name and --data.root")
    return from_mapping(DataConfig, read_mapping(path).get("data", {}), f"data in {path}")
