"""A training run from start to report; read top to bottom."""

from __future__ import annotations

import math
import time
from pathlib import Path

import torch
from timm.utils import ModelEmaV3

from cvt.card import ModelCard
from cvt.data.augment import training_transform
from cvt.data.datasets import Dataset, load_dataset
from cvt.data.loader import TrainLoader, evaluation_batches
from cvt.data.randomness import seed_all
from cvt.device import device_name, pick_device
from cvt.errors import DivergedError, InputError
from cvt.evaluate.metrics import Evaluation
from cvt.evaluate.report import write_report
from cvt.evaluate.run import METRICS, RECIPE, REPORT, classify, evaluate
from cvt.machine import describe_machine
from cvt.model import CvT
from cvt.schema import write_mapping
from cvt.train.engine import Engine
from cvt.train.log import Log
from cvt.train.optim import build_optimizer, learning_rate
from cvt.train.recipe import Recipe
from cvt.train.state import LAST, STATE, State, clear_run, open_run
from cvt.weights.native import BEST
from cvt.weights.tensors import write_tensors
from cvt.zoo import load_model


def train(recipe: Recipe, output: str | Path, *, overwrite: bool = False, quiet: bool = False
          ) -> Evaluation:
    """Train as `recipe` says; the evaluation of the best weights on the validation pictures.

    The directory `output` gets config.json, best.safetensors and last.safetensors, recipe.yaml,
    state.pt (for `resume`), metrics.csv, metrics.jsonl and tensorboard/ (a row an epoch),
    metrics.json and report.html. Raises InputError where the recipe cannot be carried out or
    `output` holds a run already, unless `overwrite`; DivergedError where the loss stops being
    finite.
    """
    run = Path(output)
    dataset = load_dataset(recipe.data)  # before anything is written
    setting = _Setting(recipe, dataset)
    open_run(run, overwrite)
    try:
        recipe.save(run / RECIPE)
        setting.card.save(run)
        return _train(setting, run, None, quiet)
    except BaseException:
        if not (run / STATE).exists():  # nothing to go on from, so nothing is left in the way
            clear_run(run)
        raise


def resume(output: str | Path, *, quiet: bool = False) -> Evaluation:
    """Go on with the run in `output`, with its saved recipe, after its last whole epoch.

    On a CPU the weights are those of a run without the interruption, bit for bit. Raises InputError
    where there is nothing to go on from, or the pictures have other classes than before.
    """
    run = Path(output)
    if not (run / RECIPE).is_file():
        raise InputError(f"{run} has no {RECIPE}; give the --output of an earlier run")
    recipe, state = Recipe.load(run / RECIPE), State.load(run)
    if len(state.history) >= recipe.epochs and (run / METRICS).is_file():
        raise InputError(f"the run in {run} is complete ({recipe.epochs} epochs); start another "
                         "with --output")
    setting, card = _Setting(recipe, load_dataset(recipe.data)), ModelCard.load(run)
    if setting.card != card:
        was, now = card.classes, setting.card.classes
        what = f"the classes were {', '.join(was)} and are {', '.join(now)}" if was != now else (
            f"{recipe.model} or the preprocessing of {recipe.data.name} is not what it was")
        raise InputError(f"the run in {run} cannot go on: {what}. Put them back as they were, or "
                         "start another run with --output")
    return _train(setting, run, state, quiet)


class _Setting:
    """What a recipe comes to on a dataset; refuses what cannot be trained."""

    def __init__(self, recipe: Recipe, dataset: Dataset) -> None:
        self.recipe, self.dataset = recipe, dataset
        self.device = pick_device(recipe.device)
        preprocess = recipe.preprocess(dataset.preprocess)
        classes = dataset.train.classes
        self.card = ModelCard(model=recipe.config(len(classes), preprocess.size),
                              preprocess=preprocess, classes=classes)
        self.loader = TrainLoader(dataset.train, training_transform(preprocess, recipe.augment),
                                  batch_size=recipe.batch_size, seed=recipe.seed,
                                  workers=recipe.data.workers)


def _train(setting: _Setting, run: Path, state: State | None, quiet: bool) -> Evaluation:
    recipe, card, loader = setting.recipe, setting.card, setting.loader
    seed_all(recipe.seed)
    model = CvT(card.model).to(setting.device)
    model.set_grad_checkpointing(recipe.grad_checkpointing)
    ema = ModelEmaV3(model, decay=recipe.ema, use_warmup=True) if recipe.ema else None
    kept = ema.module if ema else model  # what is evaluated and written
    optimizer = build_optimizer(model, recipe.optim)
    if state:
        model.load_state_dict(state.model)
        optimizer.load_state_dict(state.optimizer)
        if state.ema:
            kept.load_state_dict(state.ema)
    history = list(state.history) if state else []
    engine = Engine(recipe, model, optimizer)
    steps = recipe.epochs * len(loader)

    with Log(run, epochs=recipe.epochs, steps=len(loader), history=history, quiet=quiet) as log:
        for epoch in range(len(history), recipe.epochs):
            start, losses = time.perf_counter(), []
            model.train()
            for step, batch in enumerate(loader.epoch(epoch), epoch * len(loader)):
                lr = learning_rate(recipe.optim, step, steps, len(loader))
                seed_all(recipe.seed, step)  # of mixup, dropout and stochastic depth
                loss = engine.step(batch, lr)
                if not math.isfinite(loss):
                    raise DivergedError(_diverged(loss, epoch, step, lr, recipe, run))
                if ema:
                    ema.update(model, step=step)
                losses.append(loss)
                log.step(step, loss, lr)

            val_loss, val_top1 = _validate(kept, setting)
            if not math.isfinite(val_loss):
                raise DivergedError(_diverged(val_loss, epoch, step, lr, recipe, run))
            history.append({"epoch": epoch + 1, "train_loss": sum(losses) / len(losses),
                            "val_loss": val_loss, "val_top1": val_top1, "lr": lr,
                            "seconds": time.perf_counter() - start})
            for name in (LAST, BEST) if _best(history) is history[-1] else (LAST,):
                write_tensors(kept.state_dict(), run / name)
            # The state comes last: what it tells of is then on the disk.
            State(model=model.state_dict(), ema=kept.state_dict() if ema else None,
                  optimizer=optimizer.state_dict(), history=history).save(run)
            log.epoch(history)

    return _finish(setting, run, history)


def _validate(model: torch.nn.Module, setting: _Setting) -> tuple[float, float]:
    """Cross entropy and top-1 on the validation pictures."""
    recipe = setting.recipe
    batches = evaluation_batches(setting.dataset.val, setting.card.preprocess,
                                 batch_size=recipe.batch_size, workers=recipe.data.workers)
    logits, labels = classify(model, batches, precision=recipe.precision)
    loss = torch.nn.functional.cross_entropy(logits, labels).item()
    return loss, (logits.argmax(1) == labels).double().mean().item()


def _best(history: list[dict[str, float]]) -> dict[str, float]:
    """The row of highest validation top-1, of lower loss among equals."""
    return max(history, key=lambda row: (row["val_top1"], -row["val_loss"]))


def _finish(setting: _Setting, run: Path, history: list[dict[str, float]]) -> Evaluation:
    """Evaluate the best weights as anyone would who loads them, and write metrics and report."""
    recipe, val = setting.recipe, setting.dataset.val
    model, card = load_model(run)
    evaluation = evaluate(model.to(setting.device), card, val, batch_size=recipe.batch_size,
                          workers=recipe.data.workers, precision=recipe.precision)
    seconds = sum(row["seconds"] for row in history)
    facts = {**describe_machine(), "device": device_name(setting.device),
             "precision": recipe.precision,
             "training time": f"{seconds:.0f} s for {len(history)} epochs",
             "training pictures": f"{len(setting.dataset.train):,}",
             "best epoch": f"{_best(history)['epoch']:.0f}"}
    write_report(run / REPORT, title=f"{recipe.model} on {recipe.data.name}",
                 evaluation=evaluation, read=val.read, history=history, facts=facts,
                 config=recipe.to_dict())
    # The last file to be written: a run without it is not complete.
    write_mapping({**evaluation.to_dict(), "facts": facts, "train_seconds": seconds},
                  run / METRICS)
    return evaluation


def _diverged(loss: float, epoch: int, step: int, lr: float, recipe: Recipe, run: Path) -> str:
    kept = (f"the weights of epoch {epoch} are in {run / LAST}" if epoch
            else "no epoch was finished, so no weights were written")
    return (f"the loss became {loss} in epoch {epoch + 1}, step {step + 1}, at a learning rate of "
            f"{lr:.2g}; {kept}. Try a smaller --optim.lr than {recipe.optim.lr:g}, "
            "--optim.clip_grad 1 or more --optim.warmup_epochs")
