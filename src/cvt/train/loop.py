"""A training run from start to report; read top to bottom."""

from __future__ import annotations

import contextlib
import math
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import Any

from cvt.data.loader import Batch
from cvt.deploy.manifest import sha256
from cvt.evaluate.metrics import Evaluation
from cvt.evaluate.run import METRICS, RECIPE
from cvt.networks.build import load_network
from cvt.system.errors import DivergedError, InputError, StoppedError
from cvt.train.checkpoints import CheckpointStore
from cvt.train.directory import CHECKPOINTS, DIVERGED, LAST, clear_run, create_run, lock_run
from cvt.train.engine import Engine, Step
from cvt.train.log import Log
from cvt.train.optim import learning_rate, warmup_steps
from cvt.train.recipe import LENGTH, MACHINE, PLACES, Recipe
from cvt.train.setup import Setup
from cvt.train.state import compare_identity
from cvt.train.stop import Stop, requeue
from cvt.train.validation import best_epoch, evaluate, validate, write_results
from cvt.weights.tensors import BEST, write_tensors


@dataclass(frozen=True, kw_only=True)
class _Run:
    """A run in progress: its directory, its setup with the training state, its checkpoints."""

    directory: Path
    setup: Setup
    accept_data_changes: bool = False

    @property
    def store(self) -> CheckpointStore:
        return CheckpointStore(self.directory / CHECKPOINTS, self.setup.recipe.keep_checkpoints)


def train(recipe: Recipe, output: str | Path, *, overwrite: bool = False, quiet: bool = False
          ) -> Evaluation | None:
    """Train `recipe`; returns the evaluation of the best weights on the validation images.

    Writes to the directory `output`: config.json, best.safetensors and last.safetensors,
    recipe.yaml, checkpoints/ (for `resume`), metrics.csv, metrics.jsonl and tensorboard/ (a row per
    epoch), metrics.json and report.html. Under torchrun every process calls it; the main process
    writes, and the others return None. Raises InputError if the recipe cannot be trained or
    `output` already holds a run, unless `overwrite`; DivergedError if the loss is not finite any
    more; StoppedError after a signal.
    """
    directory, recipe = Path(output), recipe.with_absolute_paths()
    with Engine(recipe) as engine:
        setup = Setup(recipe, engine, identify=True)  # before anything is written
        run = _Run(directory=directory, setup=setup)
        lock = engine.on_main(lambda: create_run(directory, overwrite))
        try:
            return _train(run, [], quiet=quiet)
        except BaseException:
            # A run that cannot be resumed is removed, so that it is not in the way.
            if engine.main and not (directory / CHECKPOINTS).exists():
                clear_run(directory)
            raise
        finally:
            if lock:
                lock.release()


def resume(output: str | Path, *, changes: Mapping[str, Any] | None = None,
           accept_data_changes: bool = False, quiet: bool = False) -> Evaluation | None:
    """Resume the run in `output`, with its saved recipe, from its latest intact checkpoint.

    On a CPU the weights are bit for bit those of a run without the interruption. changes: other
    values of the recipe, by name ("data.workers"): of `LENGTH`, which also extends a complete run,
    of `MACHINE` and of `PLACES`. The learning rate then follows the schedule of a run of the new
    length from the next step on. accept_data_changes: resume although the images differ from those
    at the start of the run; the current epoch is restarted.

    Raises InputError if there is nothing to resume from or nothing to do, and for any other
    difference from the start of the run; otherwise as `train`.
    """
    directory, changes = Path(output), changes or {}
    if not (directory / RECIPE).is_file():
        raise InputError(f"{directory} has no {RECIPE}; give the --output of an earlier run")
    complete = (directory / METRICS).is_file()
    if complete and not LENGTH & changes.keys():
        raise InputError(f"the run in {directory} is complete; extend it with --epochs, or start "
                         "another with --output")
    recipe = _changed_recipe(directory, changes)
    with Engine(recipe) as engine:
        lock = engine.on_main(lambda: lock_run(directory))
        try:
            store = CheckpointStore(directory / CHECKPOINTS)
            repaired = engine.on_main(store.repair) or []
            latest = engine.broadcast(store.latest_step())
            setup = Setup(recipe, engine, identify=True, resumed=(
                directory if recipe.weights and latest is not None else None))
            run = _Run(directory=directory, setup=setup, accept_data_changes=accept_data_changes)
            if latest is not None:
                _restore(run, latest)
            _check_extended(run, complete)
            if engine.main:
                (directory / METRICS).unlink(missing_ok=True)  # no longer complete
            return _train(run, repaired, quiet=quiet)
        finally:
            if lock:
                lock.release()


def _changed_recipe(directory: Path, changes: Mapping[str, Any]) -> Recipe:
    """The saved recipe with `changes`. Raises InputError for those that make it another run."""
    for name in changes:
        if name not in LENGTH | MACHINE | PLACES:
            raise InputError(f"{name} would make it another run; a resumed run may change only "
                             f"{', '.join(sorted(LENGTH | MACHINE | PLACES))}")
    recipe = Recipe.load(directory / RECIPE, changes)
    if "epochs" in changes and "steps" not in changes and recipe.steps is not None:
        raise InputError(f"the length of the run is steps={recipe.steps}, so epochs would be "
                         "ignored; give --steps")
    return recipe.with_absolute_paths()


def _check_extended(run: _Run, complete: bool) -> None:
    """Raise InputError if more is done than the recipe requests, or nothing is left to do."""
    progress, (epochs, steps) = run.setup.state.progress, run.setup.length()
    done = len(progress.history)
    if complete and not progress.step:
        raise InputError(f"the run in {run.directory} is complete and has no checkpoint to resume "
                         f"from; start another from its weights, with --weights {run.directory}")
    if steps < progress.step or epochs < done:
        raise InputError(f"{done} epochs and {progress.step} steps of the run in {run.directory} "
                         "are done, more than its recipe requests; give a larger --epochs or "
                         "--steps")
    if complete and _complete(run):
        patience = run.setup.recipe.patience
        raise InputError(f"the run in {run.directory} is complete, with {done} epochs; give more "
                         + ("--epochs" if done == epochs else
                            f"--patience than {patience}, by which it ended, or 0"))


def _restore(run: _Run, step: int) -> None:
    """Restore the checkpoint of `step`.

    Raises InputError if its identity is not that of the run, except for accepted data changes.
    """
    setup, recipe, engine = run.setup, run.setup.recipe, run.setup.engine
    checkpoint = run.store.read(step)
    before = checkpoint.state["identity"]
    data_changes = compare_identity(before, setup.identity, run.directory,
                                    accept_data_changes=run.accept_data_changes)
    setup.state.restore(checkpoint)
    progress = setup.state.progress
    engine.load_scaler_state(progress.scaler)
    if recipe.batch_size // engine.world_size % progress.accum_steps == 0:  # else more processes
        engine.accum_steps = progress.accum_steps
    if data_changes:
        progress.begin_epoch()
        progress.notes.append(
            f"from step {step} on with changed data: {'; '.join(data_changes)}. Epoch "
            f"{len(progress.history) + 1} restarts, with {len(setup.loader)} steps")
    epochs, steps = setup.length()
    if data_changes or any(before["recipe"][name] != setup.identity["recipe"][name]
                           for name in ("epochs", "steps")):
        lr = learning_rate(recipe.optim, step, steps, len(setup.loader))
        progress.notes.append(
            f"from step {step} on the learning rate follows the schedule of a run of {epochs} "
            f"epochs, {steps} steps, starting at {lr:.3g}")


def _train(run: _Run, repaired: Sequence[str], *, quiet: bool) -> Evaluation | None:
    """Train to the end, from where the training state is."""
    setup, recipe, engine, state = run.setup, run.setup.recipe, run.setup.engine, run.setup.state
    if engine.main:
        recipe.save(run.directory / RECIPE)
        setup.card.save(run.directory)
    rolled_back_to = -1
    epochs, steps = setup.length()

    with Stop() as stop, Log(run.directory if engine.main else None, epochs=epochs, steps=steps,
                             progress=state.progress, quiet=quiet, track=engine.track) as log:
        engine.open_trackers(run.directory)
        report = [str(setup.load_report)] if setup.load_report else []
        for text in (*setup.dataset.messages, *repaired, *report, *state.progress.notes):
            log.message(text)
        if (warmup := warmup_steps(recipe.optim, len(setup.loader))) >= steps:
            log.message(f"the warm-up takes {warmup} steps, and the run has {steps}: the learning "
                        f"rate never reaches {recipe.optim.lr:g}; set optim.warmup_steps")
        while not _complete(run):
            try:
                _epoch(run, stop, log)
            except _NotFiniteError as error:
                latest = engine.broadcast(run.store.latest_step())
                if latest is None or latest == rolled_back_to:
                    _dump_batch(error, run)
                    raise DivergedError(_divergence(error, run)) from None
                _restore(run, latest)
                rolled_back_to, progress = latest, state.progress
                progress.reshuffles.append(progress.epoch_step)
                progress.notes.append(
                    f"{recipe.skip_nonfinite + 1} batches up to step {error.step + 1} were not "
                    f"finite; rolled back to step {latest}, with the same learning rate and the "
                    "rest of the epoch reshuffled")
                log.message(progress.notes[-1])
                log.rolled_back(progress)

    return _finish(run)


def _complete(run: _Run) -> bool:
    """Whether all epochs are done, or `patience` epochs have passed since the best one."""
    recipe, history = run.setup.recipe, run.setup.state.progress.history
    epochs, _ = run.setup.length()
    if len(history) >= epochs or not (recipe.patience and history):
        return len(history) >= epochs
    return len(history) - best_epoch(history, recipe)["epoch"] >= recipe.patience


def _epoch(run: _Run, stop: Stop, log: Log) -> None:
    """Train the rest of the current epoch, validate and save."""
    setup, recipe, engine, state = run.setup, run.setup.recipe, run.setup.engine, run.setup.state
    loader, progress = setup.loader, state.progress
    epoch, start = len(progress.history), perf_counter() - progress.seconds
    _, steps = setup.length()
    engine.train_mode()
    engine.reshuffles = len(progress.reshuffles)
    batches = loader.epoch(epoch, progress.epoch_step, progress.reshuffles)
    with contextlib.closing(batches):
        for batch in islice(batches, steps - progress.step):
            step, accum_steps = progress.step, engine.accum_steps
            lr = learning_rate(recipe.optim, step, steps, len(loader))
            done = engine.step(batch, lr, step)
            progress.step += 1
            progress.epoch_step += 1
            if engine.accum_steps > accum_steps:
                log.message(f"out of memory: from step {step + 1} on a batch is computed in "
                            f"{engine.accum_steps} micro-batches; BatchNorm sees one at a time")
            if done.updated:
                if state.ema is not None:
                    state.ema.update(state.model, step=step)
                progress.loss += done.loss
                progress.losses += 1
                log.step(step, done.loss, lr)
            elif not engine.scale_too_large(done):
                progress.skipped += 1
                if progress.skipped > recipe.skip_nonfinite:
                    raise _NotFiniteError(step, done, lr, batch)
                log.message(f"step {step + 1}: loss {done.loss}, gradient norm {done.norm}; the "
                            f"batch is skipped ({progress.skipped} of at most "
                            f"{recipe.skip_nonfinite})")
            progress.seconds = perf_counter() - start
            if engine.any(stop.received is not None):
                _save(run)
                _exit_stopped(stop, run)
            if recipe.save_every and progress.step % recipe.save_every == 0:
                _save(run)

    lr = learning_rate(recipe.optim, progress.step - 1, steps, len(loader))
    val_loss, val_top1, val_recall = validate(state.eval_model, setup)
    if not math.isfinite(val_loss):
        done = Step(loss=val_loss, norm=math.nan, updated=False)
        raise _NotFiniteError(progress.step - 1, done, lr, None)
    progress.history.append({
        "epoch": epoch + 1, "train_loss": progress.loss / max(1, progress.losses),
        "val_loss": val_loss, "val_top1": val_top1, "val_recall": val_recall, "lr": lr,
        "seconds": perf_counter() - start})
    progress.begin_epoch()
    unreadable = {"train": loader.unreadable, "val": setup.val_unreadable}
    rows = engine.gather([(split, *row) for split, images in unreadable.items()
                          for row in images.rows()])
    log.unreadable([row for share in rows for row in share])
    engine.on_main(lambda: _write_weights(run))
    _save(run)
    log.epoch(progress.history, progress.step)
    if engine.any(stop.received is not None) and not _complete(run):
        _exit_stopped(stop, run)


def _save(run: _Run) -> None:
    """Write a checkpoint, in the main process."""
    engine, state = run.setup.engine, run.setup.state
    progress = state.progress
    progress.skipped, progress.accum_steps = 0, engine.accum_steps
    progress.scaler = engine.scaler_state()
    checkpoint = state.checkpoint(run.setup.identity)
    engine.on_main(lambda: run.store.save(checkpoint, progress.best.get("step")))


def _write_weights(run: _Run) -> None:
    """Write the weights of the last epoch, also as the best ones if they are."""
    state, progress = run.setup.state, run.setup.state.progress
    tensors = state.eval_model.state_dict()
    write_tensors(tensors, run.directory / LAST)
    if best_epoch(progress.history, run.setup.recipe) is progress.history[-1]:
        write_tensors(tensors, run.directory / BEST)
        progress.best = {"step": progress.step, "sha256": sha256(run.directory / BEST)}


def _exit_stopped(stop: Stop, run: _Run) -> None:
    """Raise StoppedError, after a signal to any of the processes."""
    number = stop.received or signal.SIGTERM
    job = requeue() if stop.received is not None and stop.received.name == "SIGUSR1" else None
    raise StoppedError(
        f"stopped by {number.name} after step {run.setup.state.progress.step}, which is saved; "
        + (f"job {job} is requeued" if job else
           f"continue with cvt train --resume {run.directory}"), 0 if job else 128 + number)


def _finish(run: _Run) -> Evaluation | None:
    """Evaluate the best weights, loaded from their file, and write metrics and report."""
    engine = run.setup.engine
    engine.on_main(lambda: _restore_best(run))
    model, _ = load_network(run.directory)
    evaluation = evaluate(model.to(engine.device), run.setup)
    return engine.on_main(lambda: write_results(run.setup, run.directory, evaluation))


def _restore_best(run: _Run) -> None:
    """Write best.safetensors again from its checkpoint if it is missing or corrupt."""
    path, best = run.directory / BEST, run.setup.state.progress.best
    if not path.is_file() or sha256(path) != best["sha256"]:
        tensors = run.store.read(best["step"]).tensors
        write_tensors(tensors.get("ema", tensors["model"]), path)


class _NotFiniteError(Exception):
    """Loss or gradient were not finite in more batches than may be skipped."""

    def __init__(self, step: int, done: Step, lr: float, batch: Batch | None) -> None:
        super().__init__(step)
        self.step, self.done, self.lr, self.batch = step, done, lr, batch


def _dump_batch(error: _NotFiniteError, run: _Run) -> None:
    """Write this process's share of the batch that failed, for debugging."""
    if error.batch is None:
        return
    rank = run.setup.engine.rank
    path = run.directory / DIVERGED / f"step-{error.step + 1:08d}-process-{rank}.safetensors"
    path.parent.mkdir(exist_ok=True)
    write_tensors(dict(zip(("images", "labels"), error.batch, strict=True)), path)


def _divergence(error: _NotFiniteError, run: _Run) -> str:
    epoch, done = len(run.setup.state.progress.history), error.done
    kept = f"the weights of epoch {epoch} are in {run.directory / LAST}" if epoch else (
        "no epoch was finished, so no weights were written")
    what, dumped = f"the validation loss became {done.loss}", ""
    if error.batch is not None:
        what = f"the loss became {done.loss} and the gradient norm {done.norm}"
        dumped = f"; the batch is in {run.directory / DIVERGED}"
    return (f"{what} in epoch {epoch + 1}, step {error.step + 1}, at a learning rate of "
            f"{error.lr:.2g}; {kept}{dumped}. Try --optim.lr below "
            f"{run.setup.recipe.optim.lr:g}, --optim.clip_grad 1 or a longer "
            "--optim.warmup_epochs")
