"""Validation of a run: its metrics after each epoch, and the evaluation and report at its end."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cvt.data.loader import evaluation_batches
from cvt.data.unreadable import UnreadableImages
from cvt.evaluate.metrics import Evaluation
from cvt.evaluate.report import write_report
from cvt.evaluate.run import METRICS, REPORT, classify, score_logits
from cvt.system.device import device_name
from cvt.system.machine import describe_machine
from cvt.system.schema import write_mapping
from cvt.train.recipe import Recipe
from cvt.train.setup import Setup


def validate(model: nn.Module, setup: Setup) -> tuple[float, float, float]:
    """Cross entropy, top-1 accuracy and mean recall on the validation images.

    The processes share the images. Unreadable images count as wrong.
    """
    engine, val = setup.engine, setup.dataset.val
    loss, hits = 0.0, torch.zeros(len(val.classes), dtype=torch.int64)
    logits, labels = _predict(model, setup, setup.val_unreadable)
    if len(labels):
        loss = F.cross_entropy(logits.double(), labels, reduction="sum").item()
        hits = labels[logits.argmax(1) == labels].bincount(minlength=len(hits))
    loss, n, *total = engine.all_reduce_sum([loss, len(labels), *hits.tolist()])
    counts = np.bincount(val.labels, minlength=len(total)).tolist()
    recalls = [hit / count for hit, count in zip(total, counts, strict=True) if count]
    return loss / max(1, n), sum(total) / len(val), sum(recalls) / len(recalls)


def evaluate(model: nn.Module, setup: Setup) -> Evaluation | None:
    """The evaluation on the validation images, which the processes share; for the main process."""
    engine, val, limit = setup.engine, setup.dataset.val, setup.recipe.data.max_unreadable
    own = UnreadableImages(val, limit)
    logits, labels = _predict(model, setup, own)
    shares = engine.gather((logits, labels, dict(own)))
    if not shares:
        return None
    unreadable = UnreadableImages(val, limit)
    for _, _, reasons in shares:
        unreadable.update(reasons)
    indices = torch.tensor([i for rank in range(engine.world_size)
                            for i in range(rank, len(val), engine.world_size)
                            if i not in unreadable])
    order = indices.argsort()
    return score_logits(val, torch.cat([share[0] for share in shares])[order],
                         torch.cat([share[1] for share in shares])[order], unreadable)


def _predict(model: nn.Module, setup: Setup, unreadable: UnreadableImages) -> tuple[Tensor, Tensor]:
    """Logits and labels of this process's share of the validation images."""
    recipe, engine = setup.recipe, setup.engine
    return classify(model, evaluation_batches(
        setup.dataset.val, setup.card.preprocess, batch_size=engine.micro_batch_size,
        workers=recipe.data.workers, rank=engine.rank, world=engine.world_size,
        unreadable=unreadable), precision=recipe.precision)


def best_epoch(history: list[dict[str, float]], recipe: Recipe) -> dict[str, float]:
    """The best row by the recipe's metric; among equals, that of the lowest loss."""
    sign = -1 if recipe.best_by == "val_loss" else 1
    return max(history, key=lambda row: (sign * row[recipe.best_by], -row["val_loss"]))


def write_results(setup: Setup, run: Path, evaluation: Evaluation | None) -> Evaluation:
    """Write report.html and metrics.json of a finished run, in the main process."""
    assert evaluation is not None  # the main process has it
    recipe, progress = setup.recipe, setup.state.progress
    seconds = sum(row["seconds"] for row in progress.history)
    facts = {**describe_machine(), "device": device_name(setup.engine.device),
             "precision": recipe.precision,
             "training time": f"{seconds:.0f} s for {len(progress.history)} epochs",
             "training images": f"{len(setup.dataset.train):,}",
             "best epoch": f"{best_epoch(progress.history, recipe)['epoch']:.0f}",
             **({"notes": "; ".join(progress.notes)} if progress.notes else {})}
    write_report(run / REPORT, title=f"{recipe.name} on {recipe.data.name}",
                 evaluation=evaluation, read=setup.dataset.val.read, history=progress.history,
                 facts=facts, config=recipe.to_dict())
    # The last file to be written: a run without it is not complete.
    write_mapping({**evaluation.to_dict(), "facts": facts, "train_seconds": seconds},
                  run / METRICS)
    return evaluation
