"""A training run from start to report; read top to bottom."""

from __future__ import annotations

import contextlib
import math
import signal
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from cvt.card import CONFIG, ModelCard
from cvt.data.loader import Batch, evaluation_batches
from cvt.device import device_name
from cvt.errors import DivergedError, InputError, StoppedError
from cvt.evaluate.metrics import Evaluation
from cvt.evaluate.report import write_report
from cvt.evaluate.run import METRICS, RECIPE, REPORT, classify, evaluate
from cvt.machine import describe_machine
from cvt.networks import load_network
from cvt.runtime.manifest import sha256
from cvt.schema import write_mapping
from cvt.train.engine import Engine, Step
from cvt.train.log import Log
from cvt.train.optim import learning_rate, warmup_steps
from cvt.train.recipe import Recipe
from cvt.train.setting import Setting
from cvt.train.state import (
    CHECKPOINTS,
    DIVERGED,
    LAST,
    Progress,
    Weights,
    clear_run,
    lock_run,
    open_run,
)
from cvt.train.stop import Stop, requeue
from cvt.train.store import Store
from cvt.weights.native import BEST
from cvt.weights.tensors import write_tensors


def train(recipe: Recipe, output: str | Path, *, overwrite: bool = False, quiet: bool = False
          ) -> Evaluation | None:
    """Train as `recipe` says; the evaluation of the best weights on the validation pictures.

    The directory `output` gets config.json, best.safetensors and last.safetensors, recipe.yaml,
    checkpoints/ (for `resume`), metrics.csv, metrics.jsonl and tensorboard/ (a row an epoch),
    metrics.json and report.html. Under torchrun every process calls it; the main one writes, and
    the others get None. Raises InputError where the recipe cannot be carried out or `output` holds
    a run already, unless `overwrite`; DivergedError where the loss stops being finite; StoppedError
    after a signal.
    """
    run = Path(output)
    with Engine(recipe) as engine:
        setting = Setting(recipe, engine)  # before anything is written
        lock = engine.on_main(lambda: open_run(run, overwrite))
        try:
            if engine.main:
                recipe.save(run / RECIPE)
                setting.card.save(run)
            return _train(setting, run, quiet)
        except BaseException:
            # With nothing to go on from, nothing is left in the way.
            if engine.main and not (run / CHECKPOINTS).exists():
                clear_run(run)
            raise
        finally:
            if lock:
                lock.release()


def resume(output: str | Path, *, quiet: bool = False) -> Evaluation | None:
    """Go on with the run in `output`, with its saved recipe, from its newest whole checkpoint.

    On a CPU the weights are those of a run without the interruption, bit for bit. Raises InputError
    where there is nothing to go on from, or the pictures have other classes than before; else as
    `train`.
    """
    run = Path(output)
    if not (run / RECIPE).is_file():
        raise InputError(f"{run} has no {RECIPE}; give the --output of an earlier run")
    recipe = Recipe.load(run / RECIPE)
    if (run / METRICS).is_file():
        raise InputError(f"the run in {run} is complete; start another with --output")
    with Engine(recipe) as engine:
        begun = recipe.weights and Store(run / CHECKPOINTS).newest_step() is not None
        setting = Setting(recipe, engine, run if begun else None)
        lock = engine.on_main(lambda: lock_run(run))
        try:
            _check_same(setting, run)
            return _train(setting, run, quiet)
        finally:
            if lock:
                lock.release()


def _check_same(setting: Setting, run: Path) -> None:
    if not (run / CONFIG).exists():  # it was killed while it wrote its first files
        if setting.engine.main:
            setting.card.save(run)
        return
    before, now = ModelCard.load(run), setting.dataset.train.classes
    if before != setting.card or before.classes != now:
        what = (f"the classes were {', '.join(before.classes)} and are {', '.join(now)}"
                if before.classes != now else f"{setting.recipe.name} or the preprocessing of "
                f"{setting.recipe.data.name} is not what it was")
        raise InputError(f"the run in {run} cannot go on: {what}. Put them back as they were, or "
                         "start another run with --output")


def _train(setting: Setting, run: Path, quiet: bool) -> Evaluation | None:
    recipe, engine, loader = setting.recipe, setting.engine, setting.loader
    store = Store(run / CHECKPOINTS, recipe.keep)
    weights, started = setting.build()
    progress, complaints = _restore(store, weights, engine)
    rolled_back = -1  # the checkpoint that it went back to

    with Stop() as stop, Log(run if engine.main else None, epochs=setting.epochs,
                             total=setting.steps, progress=progress, quiet=quiet,
                             track=engine.track) as log:
        engine.open_trackers(run, recipe.to_dict())
        if started and not progress.step:
            log.say(str(started))
        for complaint in complaints:
            log.say(complaint)
        if (warmup := warmup_steps(recipe.optim, len(loader))) >= setting.steps:
            log.say(f"the learning rate rises for {warmup} steps, and the run has "
                    f"{setting.steps}: it never reaches {recipe.optim.lr:g}; set "
                    "optim.warmup_steps")
        while not _complete(progress, setting):
            try:
                _epoch(progress, setting, weights, store, stop, log, run)
            except _NotFiniteError as error:
                newest = store.newest_step()
                if newest in (None, rolled_back):
                    _dump(error, run, engine)
                    raise DivergedError(_diverged(error, recipe, len(loader), run)) from None
                progress, _ = _restore(store, weights, engine)
                rolled_back = progress.step
                log.say(f"{recipe.skip_nonfinite + 1} batches were not finite; back to step "
                         f"{progress.step}, with the learning rate as it was")
                log.back_to(progress)

    return engine.on_main(lambda: _finish(setting, run, progress, store))


def _complete(progress: Progress, setting: Setting) -> bool:
    """Whether all epochs are done, or too many have passed since the best."""
    history, patience = progress.history, setting.recipe.patience
    if len(history) == setting.epochs or not (patience and history):
        return len(history) == setting.epochs
    return len(history) - _best(history, setting.recipe)["epoch"] >= patience


def _epoch(progress: Progress, setting: Setting, weights: Weights, store: Store, stop: Stop,
           log: Log, run: Path) -> None:
    """The rest of an epoch; `progress` moves with it."""
    recipe, engine, loader = setting.recipe, setting.engine, setting.loader
    steps = setting.steps
    epoch, start = len(progress.history), time.perf_counter() - progress.seconds
    engine.train_mode()
    with contextlib.closing(loader.epoch(epoch, progress.step - epoch * len(loader))) as batches:
        for batch in batches:
            step = progress.step
            lr = learning_rate(recipe.optim, step, steps, len(loader))
            parts = engine.parts
            done = engine.step(batch, lr, step)
            progress.step += 1
            if engine.parts > parts:
                log.say(f"out of memory: from step {step + 1} on a batch is computed in "
                         f"{engine.parts} parts, of which BatchNorm sees one at a time")
            if done.updated:
                if weights.ema is not None:
                    weights.ema.update(weights.model, step=step)
                progress.loss += done.loss
                progress.losses += 1
                log.step(step, done.loss, lr)
            elif not engine.scales(done):
                progress.skipped += 1
                if progress.skipped > recipe.skip_nonfinite:
                    raise _NotFiniteError(step, done, lr, batch)
                log.say(f"step {step + 1}: loss {done.loss}, gradient norm {done.norm}; the batch "
                         f"is skipped ({progress.skipped} of at most {recipe.skip_nonfinite})")
            progress.seconds = time.perf_counter() - start
            if engine.any(stop.asked is not None):
                _save(progress, weights, engine, store)
                _stopped(stop, progress, run)
            if recipe.save_every and progress.step % recipe.save_every == 0:
                _save(progress, weights, engine, store)
            if progress.step == steps:
                break

    lr = learning_rate(recipe.optim, progress.step - 1, steps, len(loader))
    val_loss, val_top1, val_recall = _validate(weights.kept, setting)
    if not math.isfinite(val_loss):
        done = Step(loss=val_loss, norm=math.nan, updated=False)
        raise _NotFiniteError(progress.step - 1, done, lr, None)
    progress.history.append({
        "epoch": epoch + 1, "train_loss": progress.loss / max(1, progress.losses),
        "val_loss": val_loss, "val_top1": val_top1, "val_recall": val_recall, "lr": lr,
        "seconds": time.perf_counter() - start})
    progress.loss, progress.losses, progress.seconds = 0.0, 0, 0.0
    unreadable = {"train": loader.unreadable, "val": setting.unreadable}
    log.unreadable(engine.gathered([(split, *row) for split, found in unreadable.items()
                                    for row in found.rows()]))
    engine.on_main(lambda: _write_weights(progress, weights, recipe, run))
    _save(progress, weights, engine, store)
    log.epoch(progress.history, progress.step)
    if engine.any(stop.asked is not None) and not _complete(progress, setting):
        _stopped(stop, progress, run)


def _validate(model: torch.nn.Module, setting: Setting) -> tuple[float, float, float]:
    """Cross entropy, top-1 and mean recall on the validation pictures, each looked at by one
    process.

    One that cannot be read counts as wrong.
    """
    recipe, engine, val = setting.recipe, setting.engine, setting.dataset.val
    loss, n, right = 0.0, 0, torch.zeros(len(val.classes), dtype=torch.int64)
    if engine.rank < len(val):
        logits, labels = classify(model, evaluation_batches(
            val, setting.card.preprocess, workers=recipe.data.workers,
            batch_size=max(1, recipe.batch_size // engine.world), rank=engine.rank,
            world=engine.world, unreadable=setting.unreadable), precision=recipe.precision)
        if n := len(labels):
            loss = F.cross_entropy(logits.double(), labels, reduction="sum").item()
            right = labels[logits.argmax(1) == labels].bincount(minlength=len(right))
    loss, read, *hits = engine.sums([loss, n, *right.tolist()])
    counts = np.bincount(val.labels, minlength=len(hits))
    recalls = [hit / count for hit, count in zip(hits, counts.tolist(), strict=True) if count]
    return loss / max(1, read), sum(hits) / len(val), sum(recalls) / len(recalls)


def _restore(store: Store, weights: Weights, engine: Engine) -> tuple[Progress, list[str]]:
    """Where the newest whole checkpoint leaves off, and what is wrong with newer ones."""
    complaints = engine.on_main(store.repair) or []
    checkpoint = store.newest()
    if checkpoint is None:
        return Progress(parts=engine.parts), complaints
    progress = weights.restore(checkpoint)
    engine.parts = progress.parts
    engine.load_state(progress.scaler)
    return progress, complaints


def _save(progress: Progress, weights: Weights, engine: Engine, store: Store) -> None:
    progress.skipped, progress.parts, progress.scaler = 0, engine.parts, engine.state()
    engine.on_main(lambda: store.save(weights.checkpoint(progress), progress.best.get("step")))


def _write_weights(progress: Progress, weights: Weights, recipe: Recipe, run: Path) -> None:
    """The weights of the last epoch and, if it is that, of the best."""
    tensors = weights.kept.state_dict()
    write_tensors(tensors, run / LAST)
    if _best(progress.history, recipe) is progress.history[-1]:
        write_tensors(tensors, run / BEST)
        progress.best = {"step": progress.step, "sha256": sha256(run / BEST)}


def _best(history: list[dict[str, float]], recipe: Recipe) -> dict[str, float]:
    """The best row by what the recipe says, of lower loss among equals."""
    sign = -1 if recipe.best_by == "val_loss" else 1
    return max(history, key=lambda row: (sign * row[recipe.best_by], -row["val_loss"]))


def _stopped(stop: Stop, progress: Progress, run: Path) -> None:
    """Raise StoppedError, after a signal that some process got."""
    number = stop.asked or signal.SIGTERM
    job = requeue() if stop.asked is not None and stop.asked.name == "SIGUSR1" else None
    raise StoppedError(
        f"stopped by {number.name} after step {progress.step}, which is saved; "
        + (f"job {job} is queued again" if job else f"go on with cvt train --resume {run}"),
        0 if job else 128 + number)


def _finish(setting: Setting, run: Path, progress: Progress, store: Store) -> Evaluation:
    """Evaluate the best weights as anyone would who loads them, and write metrics and report."""
    recipe, val, history = setting.recipe, setting.dataset.val, progress.history
    if not (run / BEST).is_file() or sha256(run / BEST) != progress.best["sha256"]:
        kept = store.read(progress.best["step"]).tensors
        write_tensors(kept.get("ema", kept["model"]), run / BEST)
    model, card = load_network(run)
    evaluation = evaluate(model.to(setting.engine.device), card, val, batch_size=recipe.batch_size,
                          workers=recipe.data.workers, precision=recipe.precision,
                          max_unreadable=recipe.data.max_unreadable)
    seconds = sum(row["seconds"] for row in history)
    facts = {**describe_machine(), "device": device_name(setting.engine.device),
             "precision": recipe.precision,
             "training time": f"{seconds:.0f} s for {len(history)} epochs",
             "training pictures": f"{len(setting.dataset.train):,}",
             "best epoch": f"{_best(history, recipe)['epoch']:.0f}"}
    write_report(run / REPORT, title=f"{recipe.name} on {recipe.data.name}",
                 evaluation=evaluation, read=val.read, history=history, facts=facts,
                 config=recipe.to_dict())
    # The last file to be written: a run without it is not complete.
    write_mapping({**evaluation.to_dict(), "facts": facts, "train_seconds": seconds},
                  run / METRICS)
    return evaluation


class _NotFiniteError(Exception):
    """More batches than may be skipped had a loss or a gradient that is not finite."""

    def __init__(self, step: int, done: Step, lr: float, batch: Batch | None) -> None:
        super().__init__(step)
        self.step, self.done, self.lr, self.batch = step, done, lr, batch


def _dump(error: _NotFiniteError, run: Path, engine: Engine) -> None:
    """This process's share of the batch that failed, for whoever looks for the cause."""
    if error.batch is None:
        return
    path = run / DIVERGED / f"step-{error.step + 1:08d}-process-{engine.rank}.safetensors"
    path.parent.mkdir(exist_ok=True)
    write_tensors(dict(zip(("images", "labels"), error.batch, strict=True)), path)


def _diverged(error: _NotFiniteError, recipe: Recipe, steps: int, run: Path) -> str:
    epoch, done = error.step // steps, error.done
    kept = f"the weights of epoch {epoch} are in {run / LAST}" if epoch else (
        "no epoch was finished, so no weights were written")
    what, dumped = f"the validation loss became {done.loss}", ""
    if error.batch is not None:
        what = f"the loss became {done.loss} and the gradient's norm {done.norm}"
        dumped = f"; the batch is in {run / DIVERGED}"
    return (f"{what} in epoch {epoch + 1}, step "
            f"{error.step + 1}, at a learning rate of {error.lr:.2g}; {kept}{dumped}. Try a "
            f"smaller --optim.lr than {recipe.optim.lr:g}, --optim.clip_grad 1 or more "
            "--optim.warmup_epochs")

