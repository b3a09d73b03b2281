"""A training run from start to report; read top to bottom."""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from cvt.data.loader import Batch, Faults, evaluation_batches
from cvt.deploy.manifest import sha256
from cvt.evaluate.metrics import Evaluation
from cvt.evaluate.report import write_report
from cvt.evaluate.run import METRICS, RECIPE, REPORT, classify, score_logits
from cvt.networks.build import load_network
from cvt.system.device import device_name
from cvt.system.errors import DivergedError, InputError, StoppedError
from cvt.system.machine import describe_machine
from cvt.system.schema import write_mapping
from cvt.train.engine import Engine, Step
from cvt.train.identity import compare
from cvt.train.log import Log
from cvt.train.optim import learning_rate, warmup_steps
from cvt.train.recipe import LENGTH, MACHINE, PLACES, Recipe
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
    """Train as `recipe` says; the evaluation of the best weights on the validation images.

    The directory `output` gets config.json, best.safetensors and last.safetensors, recipe.yaml,
    checkpoints/ (for `resume`), metrics.csv, metrics.jsonl and tensorboard/ (a row an epoch),
    metrics.json and report.html. Under torchrun every process calls it; the main one writes, and
    the others get None. Raises InputError where the recipe cannot be carried out or `output` holds
    a run already, unless `overwrite`; DivergedError where the loss stops being finite; StoppedError
    after a signal.
    """
    run, recipe = Path(output), recipe.with_absolute_paths()
    with Engine(recipe) as engine:
        setting = Setting(recipe, engine)  # before anything is written
        setting.identify()
        lock = engine.on_main(lambda: open_run(run, overwrite))
        try:
            if engine.main:
                recipe.save(run / RECIPE)
                setting.card.save(run)
            weights, started = setting.build()
            said = [str(started)] if started else []
            return _train(setting, weights, Progress(parts=engine.parts), run, said, quiet=quiet)
        except BaseException:
            # With nothing to go on from, nothing is left in the way.
            if engine.main and not (run / CHECKPOINTS).exists():
                clear_run(run)
            raise
        finally:
            if lock:
                lock.release()


def resume(output: str | Path, *, changes: Mapping[str, Any] | None = None,
           accept_data_changes: bool = False, quiet: bool = False) -> Evaluation | None:
    """Go on with the run in `output`, with its saved recipe, from its newest whole checkpoint.

    On a CPU the weights are those of a run without the interruption, bit for bit. changes: other
    values of the recipe, by name ("data.workers"), such as may change: `LENGTH`, by which a run
    that is complete goes on too, `MACHINE` and `PLACES`. The learning rate then follows the
    schedule of a run of the new length from the next step on. accept_data_changes: go on although
    the images are not those that the run was begun with, at the beginning of the epoch in hand.

    Raises InputError where there is nothing to go on from, or to do, and for all that differs from
    what the run was begun with; else as `train`.
    """
    run, changes = Path(output), changes or {}
    if not (run / RECIPE).is_file():
        raise InputError(f"{run} has no {RECIPE}; give the --output of an earlier run")
    complete = (run / METRICS).is_file()
    if complete and not LENGTH & changes.keys():
        raise InputError(f"the run in {run} is complete; train it for longer with --epochs, or "
                         "start another with --output")
    recipe = _changed(run, changes)
    with Engine(recipe) as engine:
        lock = engine.on_main(lambda: lock_run(run))
        try:
            store = Store(run / CHECKPOINTS, recipe.keep)
            said = engine.on_main(store.repair) or []
            begun = engine.agreed(store.newest_step()) is not None
            setting = Setting(recipe, engine, run if recipe.weights and begun else None)
            setting.identify()
            weights, started = setting.build()
            progress = _restore(store, weights, setting, run, accept=accept_data_changes)
            if started:
                said.append(str(started))
            _check_goes_on(progress, setting, run, complete)
            if engine.main:
                (run / METRICS).unlink(missing_ok=True)  # it is not complete any more
                recipe.save(run / RECIPE)
                setting.card.save(run)
            return _train(setting, weights, progress, run, [*said, *progress.notes], quiet=quiet,
                          accept=accept_data_changes)
        finally:
            if lock:
                lock.release()


def _changed(run: Path, changes: Mapping[str, Any]) -> Recipe:
    """The saved recipe with `changes`. Raises InputError for those that make it another run."""
    for name in changes:
        if name not in LENGTH | MACHINE | PLACES:
            raise InputError(f"{name} would make it another run; of one that goes on these may "
                             f"change: {', '.join(sorted(LENGTH | MACHINE | PLACES))}")
    recipe = Recipe.load(run / RECIPE, changes)
    if "epochs" in changes and "steps" not in changes and recipe.steps is not None:
        raise InputError(f"the run is as long as steps={recipe.steps} says, so epochs would be "
                         "ignored; give --steps")
    return recipe.with_absolute_paths()


def _check_goes_on(progress: Progress, setting: Setting, run: Path, complete: bool) -> None:
    """Raise InputError for a run that has more behind it than its recipe says, or nothing to do."""
    epochs, steps = setting.length(progress)
    done = len(progress.history)
    if complete and not progress.step:
        raise InputError(f"the run in {run} is complete and has no checkpoint to go on from; start "
                         f"another from its weights, with --weights {run}")
    if steps < progress.step or epochs < done:
        raise InputError(f"{done} epochs and {progress.step} steps of the run in {run} are done, "
                         f"more than its recipe asks for; give a larger --epochs or --steps")
    if complete and _complete(progress, setting):
        raise InputError(f"the run in {run} is complete, with {done} epochs; give more "
                         + ("--epochs" if done == epochs else
                            f"--patience than {setting.recipe.patience}, by which it ended, or 0"))


def _restore(store: Store, weights: Weights, setting: Setting, run: Path, *, accept: bool
             ) -> Progress:
    """Put back the newest checkpoint, if there is one; where the run goes on from.

    Raises InputError where it was begun with something else than is here, unless `accept` takes it.
    """
    engine, recipe = setting.engine, setting.recipe
    newest = engine.agreed(store.newest_step())
    if newest is None:
        return Progress(parts=engine.parts)
    checkpoint = store.read(newest)
    before = checkpoint.state["identity"]
    other = compare(before, setting.identity, run, accept=accept)
    weights.restore(checkpoint)
    progress = Progress(**checkpoint.state["progress"])
    engine.load_state(progress.scaler)
    if recipe.batch_size // engine.world % progress.parts == 0:  # else more processes share it now
        engine.parts = progress.parts
    if other:
        progress.begin_epoch()
        progress.notes.append(
            f"from step {newest} on with other data: {'; '.join(other)}. Epoch "
            f"{len(progress.history) + 1} begins anew, with {len(setting.loader)} steps")
    epochs, steps = setting.length(progress)
    values = recipe.flat()
    if other or any(before["recipe"][name] != values[name] for name in ("epochs", "steps")):
        now = learning_rate(recipe.optim, newest, steps, len(setting.loader))
        progress.notes.append(
            f"from step {newest} on the learning rate is that of a run of {epochs} epochs, {steps} "
            f"steps, and begins with {now:.3g}")
    return progress


def _train(setting: Setting, weights: Weights, progress: Progress, run: Path, said: Sequence[str],
           *, quiet: bool, accept: bool = False) -> Evaluation | None:
    recipe, engine, loader = setting.recipe, setting.engine, setting.loader
    store = Store(run / CHECKPOINTS, recipe.keep)
    rolled_back = -1  # the checkpoint that it went back to
    epochs, steps = setting.length(progress)

    with Stop() as stop, Log(run if engine.main else None, epochs=epochs, total=steps,
                             progress=progress, quiet=quiet, track=engine.track) as log:
        engine.open_trackers(run)
        for what in said:
            log.say(what)
        if (warmup := warmup_steps(recipe.optim, len(loader))) >= steps:
            log.say(f"the learning rate rises for {warmup} steps, and the run has {steps}: it "
                    f"never reaches {recipe.optim.lr:g}; set optim.warmup_steps")
        while not _complete(progress, setting):
            try:
                _epoch(progress, setting, weights, store, stop, log, run)
            except _NotFiniteError as error:
                newest = engine.agreed(store.newest_step())
                if newest in (None, rolled_back):
                    _dump(error, run, engine)
                    raise DivergedError(_diverged(error, recipe, progress, run)) from None
                progress = _restore(store, weights, setting, run, accept=accept)
                rolled_back = progress.step
                progress.redraws.append(progress.epoch_step)
                progress.notes.append(
                    f"{recipe.skip_nonfinite + 1} batches up to step {error.step + 1} were not "
                    f"finite; back to step {progress.step}, with the learning rate as it was and "
                    "the rest of the epoch drawn anew")
                log.say(progress.notes[-1])
                log.back_to(progress)

    return _finish(setting, run, progress, store)


def _complete(progress: Progress, setting: Setting) -> bool:
    """Whether all epochs are done, or too many have passed since the best."""
    history, patience = progress.history, setting.recipe.patience
    epochs, _ = setting.length(progress)
    if len(history) >= epochs or not (patience and history):
        return len(history) >= epochs
    return len(history) - _best(history, setting.recipe)["epoch"] >= patience


def _epoch(progress: Progress, setting: Setting, weights: Weights, store: Store, stop: Stop,
           log: Log, run: Path) -> None:
    """The rest of an epoch; `progress` moves with it."""
    recipe, engine, loader = setting.recipe, setting.engine, setting.loader
    epoch, start = len(progress.history), time.perf_counter() - progress.seconds
    _, steps = setting.length(progress)
    engine.train_mode()
    engine.redrawn = len(progress.redraws)
    with contextlib.closing(loader.epoch(epoch, progress.epoch_step, progress.redraws)) as batches:
        for batch in islice(batches, steps - progress.step):
            step = progress.step
            lr = learning_rate(recipe.optim, step, steps, len(loader))
            parts = engine.parts
            done = engine.step(batch, lr, step)
            progress.step += 1
            progress.epoch_step += 1
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
                _save(progress, weights, setting, store)
                _stopped(stop, progress, run)
            if recipe.save_every and progress.step % recipe.save_every == 0:
                _save(progress, weights, setting, store)

    lr = learning_rate(recipe.optim, progress.step - 1, steps, len(loader))
    val_loss, val_top1, val_recall = _validate(weights.kept, setting)
    if not math.isfinite(val_loss):
        done = Step(loss=val_loss, norm=math.nan, updated=False)
        raise _NotFiniteError(progress.step - 1, done, lr, None)
    progress.history.append({
        "epoch": epoch + 1, "train_loss": progress.loss / max(1, progress.losses),
        "val_loss": val_loss, "val_top1": val_top1, "val_recall": val_recall, "lr": lr,
        "seconds": time.perf_counter() - start})
    progress.begin_epoch()
    unreadable = {"train": loader.unreadable, "val": setting.unreadable}
    rows = engine.gathered([(split, *row) for split, found in unreadable.items()
                            for row in found.rows()])
    log.unreadable([row for share in rows for row in share])
    engine.on_main(lambda: _write_weights(progress, weights, recipe, run))
    _save(progress, weights, setting, store)
    log.epoch(progress.history, progress.step)
    if engine.any(stop.asked is not None) and not _complete(progress, setting):
        _stopped(stop, progress, run)


def _validate(model: torch.nn.Module, setting: Setting) -> tuple[float, float, float]:
    """Cross entropy, top-1 and mean recall on the validation images, each looked at by one
    process.

    One that cannot be read counts as wrong.
    """
    recipe, engine, val = setting.recipe, setting.engine, setting.dataset.val
    loss, n, right = 0.0, 0, torch.zeros(len(val.classes), dtype=torch.int64)
    if engine.rank < len(val):
        logits, labels = classify(model, evaluation_batches(
            val, setting.card.preprocess, workers=recipe.data.workers,
            batch_size=setting.at_a_time, rank=engine.rank, world=engine.world,
            unreadable=setting.unreadable), precision=recipe.precision)
        if n := len(labels):
            loss = F.cross_entropy(logits.double(), labels, reduction="sum").item()
            right = labels[logits.argmax(1) == labels].bincount(minlength=len(right))
    loss, read, *hits = engine.sums([loss, n, *right.tolist()])
    counts = np.bincount(val.labels, minlength=len(hits))
    recalls = [hit / count for hit, count in zip(hits, counts.tolist(), strict=True) if count]
    return loss / max(1, read), sum(hits) / len(val), sum(recalls) / len(recalls)


def _save(progress: Progress, weights: Weights, setting: Setting, store: Store) -> None:
    engine = setting.engine
    progress.skipped, progress.parts, progress.scaler = 0, engine.parts, engine.state()
    checkpoint = weights.checkpoint(progress, setting.identity)
    engine.on_main(lambda: store.save(checkpoint, progress.best.get("step")))


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


def _finish(setting: Setting, run: Path, progress: Progress, store: Store) -> Evaluation | None:
    """Evaluate the best weights as anyone would who loads them, and write metrics and report."""
    engine = setting.engine
    engine.on_main(lambda: _best_on_disk(run, progress, store))
    model, _ = load_network(run)
    evaluation = _evaluate(model.to(engine.device), setting)
    return engine.on_main(lambda: _write_report(setting, run, progress, evaluation))


def _best_on_disk(run: Path, progress: Progress, store: Store) -> None:
    if not (run / BEST).is_file() or sha256(run / BEST) != progress.best["sha256"]:
        kept = store.read(progress.best["step"]).tensors
        write_tensors(kept.get("ema", kept["model"]), run / BEST)


def _evaluate(model: torch.nn.Module, setting: Setting) -> Evaluation | None:
    """The evaluation on the validation images, each classified by one process; for the main one."""
    recipe, engine, val = setting.recipe, setting.engine, setting.dataset.val
    own = Faults(val, recipe.data.max_unreadable)
    logits, labels = classify(model, evaluation_batches(
        val, setting.card.preprocess, batch_size=setting.at_a_time, workers=recipe.data.workers,
        rank=engine.rank, world=engine.world, unreadable=own), precision=recipe.precision)
    shares = engine.gathered((logits, labels, dict(own)))
    if not shares:
        return None
    unreadable = Faults(val, recipe.data.max_unreadable)
    for _, _, reasons in shares:
        unreadable.update(reasons)
    order = torch.tensor([i for rank in range(engine.world)
                          for i in range(rank, len(val), engine.world) if i not in unreadable])
    place = order.argsort()
    return score_logits(val, torch.cat([share[0] for share in shares])[place],
                         torch.cat([share[1] for share in shares])[place], unreadable)


def _write_report(setting: Setting, run: Path, progress: Progress, evaluation: Evaluation | None
                  ) -> Evaluation:
    assert evaluation is not None  # the main process has it
    recipe, history = setting.recipe, progress.history
    seconds = sum(row["seconds"] for row in history)
    facts = {**describe_machine(), "device": device_name(setting.engine.device),
             "precision": recipe.precision,
             "training time": f"{seconds:.0f} s for {len(history)} epochs",
             "training images": f"{len(setting.dataset.train):,}",
             "best epoch": f"{_best(history, recipe)['epoch']:.0f}",
             **({"to note": "; ".join(progress.notes)} if progress.notes else {})}
    write_report(run / REPORT, title=f"{recipe.name} on {recipe.data.name}",
                 evaluation=evaluation, read=setting.dataset.val.read, history=history,
                 facts=facts, config=recipe.to_dict())
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


def _diverged(error: _NotFiniteError, recipe: Recipe, progress: Progress, run: Path) -> str:
    epoch, done = len(progress.history), error.done
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

