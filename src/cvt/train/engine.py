"""Where, by how many processes and in which precision a step is computed.

One process, or as many as `torchrun` starts: they hold the same weights, each computes its share of
every batch, and their gradients are averaged. Nothing else of this package knows of the others.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Any, Self, TypeVar, cast

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs
from timm.data import Mixup
from torch import Tensor, nn

from cvt.data.config import AugmentConfig
from cvt.data.loader import Batch
from cvt.data.randomness import seed_all
from cvt.fast.training import TrainingForm
from cvt.model import CvT
from cvt.networks.supernet import Supernet
from cvt.networks.surgery import swap
from cvt.system.device import autocast, free_cache, out_of_memory, pick_device
from cvt.system.errors import InputError, one_line
from cvt.system.extras import require
from cvt.train.heartbeat import Heartbeat
from cvt.train.loss import Loss
from cvt.train.optim import set_learning_rate
from cvt.train.recipe import Recipe
from cvt.train.sync import SyncedBatchNorm2d

_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class Step:
    """What became of one optimiser step."""

    loss: float
    """Mean over the batch of all processes, before the update."""
    norm: float
    """Of the whole gradient, before it is clipped."""
    updated: bool
    """Whether the weights moved: not where loss or gradient are infinite or NaN."""


class Engine:
    """The processes of a run, and one optimiser step of theirs: mix, forward, backward, update.

    device: where this process computes. rank, world: its number, and how many there are.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.world = int(os.environ.get("WORLD_SIZE", "1"))
        if recipe.batch_size % (self.world * recipe.optim.accumulate * (
                2 if recipe.augment.mixes else 1)):
            raise InputError(f"batch_size={recipe.batch_size} is shared by {self.world} processes "
                             f"in {recipe.optim.accumulate} parts each"
                             + (", in pairs to mix" if recipe.augment.mixes else "")
                             + "; make it a multiple of their product")
        if recipe.network == "supernet" and self.world > 1:
            raise InputError("network=supernet trains another part of its weights at each step, "
                             f"and {self.world} processes would wait for each other's; start one")
        for tracker in recipe.trackers:
            require(tracker, tracker)
        device = pick_device(recipe.device)
        if recipe.precision == "fp16" and device.type == "cpu":
            raise InputError("precision='fp16' is for GPUs; a CPU has bf16")
        autocast(device, recipe.precision)  # rejects what the device cannot compute
        if self.world > 1 and device.index is not None:
            raise InputError(f"device={recipe.device!r} cannot be shared by {self.world} processes;"
                             f" say {device.type}, and the launcher gives each its own")
        if self.world == 1:  # else the launcher says which of its devices is this process's
            os.environ["ACCELERATE_TORCH_DEVICE"] = str(device)
        try:
            self._accelerator = Accelerator(
                mixed_precision="no" if recipe.precision == "fp32" else recipe.precision,
                cpu=device.type == "cpu", log_with=list(recipe.trackers) or None, kwargs_handlers=[
                    InitProcessGroupKwargs(timeout=timedelta(seconds=recipe.timeout)),
                    # By default BatchNorm's statistics would be those of the main process.
                    DistributedDataParallelKwargs(broadcast_buffers=False)])
        finally:
            os.environ.pop("ACCELERATE_TORCH_DEVICE", None)
        self.device: torch.device = self._accelerator.device
        self.rank: int = self._accelerator.process_index
        self._heartbeat = Heartbeat(self.rank, self.world)
        self._turns = 0
        self.redrawn = 0
        """How many times the epoch was drawn anew, with other dropout and mixing at each step."""

    @property
    def main(self) -> bool:
        """Whether this is the process that writes and talks."""
        return self.rank == 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the other processes; without it the next engine would be of the same kind."""
        for tracker in self._accelerator.trackers:
            with contextlib.suppress(Exception):  # a client's; the run is over
                tracker.finish()
        self._accelerator.trackers = []
        self._heartbeat.stop()
        if dist.is_initialized():
            dist.destroy_process_group()
        AcceleratorState._reset_state(reset_partial_state=True)

    def prepare(self, model: nn.Module, optimizer: torch.optim.Optimizer, loss: Loss,
                num_classes: int, frozen: Sequence[nn.Module] = ()) -> None:
        """Train `model` with `optimizer`, which are on this engine's device, to lower `loss`.

        The modules `frozen` stay in evaluation.
        """
        recipe = self.recipe
        self._loss, self._frozen = loss.to(self.device), frozen
        if recipe.sync_batchnorm and self.world > 1:
            swap(model, nn.BatchNorm2d, SyncedBatchNorm2d.of)
        if recipe.grad_checkpointing:
            cast("Any", model).set_grad_checkpointing(True)
        self.model, self.parts = model, recipe.optim.accumulate
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._buffers = list(model.buffers())
        self._statistics = [bn for bn in model.modules() if isinstance(bn, nn.BatchNorm2d)
                            and not isinstance(bn, SyncedBatchNorm2d)]
        self._mix = _mix(recipe.augment, num_classes)
        form = TrainingForm(model) if isinstance(model, CvT) else model
        if recipe.compile:
            form = torch.compile(form)  # type: ignore[assignment]
        if self.world > 1:  # of depthwise kernels, whose strides may be written in two ways
            warnings.filterwarnings("ignore", message="Grad strides do not match bucket view")
        self._network, self._optimizer = self._accelerator.prepare(form, optimizer)

    def train_mode(self) -> None:
        """The network ready to be trained, after it was evaluated."""
        self.model.train()
        for module in self._frozen:
            module.eval()

    def step(self, batch: Batch, lr: float, step: int) -> Step:
        """Update the weights with learning rate `lr`, from this process's share of the batch.

        Its randomness is a function of the recipe's seed, of `step` and of `redrawn`. Where memory
        runs out the batch is computed once more, in twice as many parts, and so are those after it;
        where that is not possible either, InputError. BatchNorm's statistics are brought together,
        so that all processes hold the same network after it.
        """
        before = [buffer.clone() for buffer in self._buffers]
        found = self._attempt(batch, step)
        if found is None and self._may_split(len(batch[0])):
            self.parts *= 2
            self._restore(before)
            self._optimizer.zero_grad()
            free_cache(self.device)
            found = self._attempt(batch, step)
        if found is None:
            raise InputError(
                f"out of memory with {len(batch[0]) // self.parts} images at a time; make "
                "batch_size smaller or optim.accumulate larger, or set grad_checkpointing")
        done = self._update(*found, lr)
        if done.updated:
            self._average_statistics()
        else:
            self._restore(before)  # BatchNorm has averaged what was not finite
        return done

    def scales(self, step: Step) -> bool:
        """Whether fp16's scale was too large for a step: it shrinks, which is no fault.

        Below 1 it cannot be that any more: the gradient itself is not finite.
        """
        scaler = self._accelerator.scaler
        return scaler is not None and math.isfinite(step.loss) and scaler.get_scale() >= 1

    def any(self, flag: bool) -> bool:
        """Whether `flag` is set in any process."""
        return self.sums([float(flag)])[0] > 0

    def sums(self, values: Sequence[float]) -> list[float]:
        """Each value summed over the processes."""
        if self.world == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return [float(v) for v in total.tolist()]

    def exchange_seconds(self) -> float | None:
        """Of the sum of all gradients over the processes, alone; None with one process."""
        if self.world == 1:
            return None
        numbers = torch.zeros(sum(p.numel() for p in self._parameters), device=self.device)
        seconds = []
        for _ in range(5):
            start = time.perf_counter()
            dist.all_reduce(numbers)
            self.sums([0.0])  # waits for the device
            seconds.append(time.perf_counter() - start)
        return median(seconds)

    def gathered(self, value: _T) -> list[_T]:
        """The value of each process, in their order; empty in all but the main one."""
        if self.world == 1:
            return [value]
        each: list[_T | None] | None = [None] * self.world if self.main else None
        dist.gather_object(value, each)
        return cast("list[_T]", each or [])

    def agreed(self, value: _T) -> _T:
        """The main process's value, in all."""
        if self.world == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values)
        return values[0]

    def open_trackers(self, run: Path) -> None:
        """Start the recipe's trackers for a run that begins or goes on.

        Raises InputError where one does not answer.
        """
        if not self.recipe.trackers:
            return
        name = {"name": run.name}
        config = {key: value if isinstance(value, (str, int, float)) else str(value)
                  for key, value in self.recipe.flat().items()}
        try:
            self._accelerator.init_trackers(
                self.recipe.project, config,
                {"wandb": {**name, "dir": str(run)}, "trackio": name,
                 "mlflow": {"run_name": run.name}})
        except Exception as error:  # whatever their clients raise
            raise InputError(f"trackers={','.join(self.recipe.trackers)} cannot be started: "
                             f"{one_line(error)}") from None

    def track(self, values: Mapping[str, float], step: int) -> None:
        """Give the trackers figures, after `step` steps; the main process's count."""
        if self.recipe.trackers:
            self._accelerator.log(dict(values), step=step)

    def on_main(self, action: Callable[[], _T]) -> _T | None:
        """What `action` returns, called in the main process alone; the others wait, however long.

        They wait beside the network's collectives, whose patience is for steps.
        """
        if self.world == 1:
            return action()
        self._turns += 1
        with self._heartbeat.turn(self._turns):
            return action() if self.main else None

    def state(self) -> dict[str, float]:
        """What the gradient scaler of fp16 must remember; empty in other precisions."""
        scaler = self._accelerator.scaler
        return dict(scaler.state_dict()) if scaler is not None else {}

    def load_state(self, state: dict[str, float]) -> None:
        """Go on with what `state` gave."""
        if state and self._accelerator.scaler is not None:
            self._accelerator.scaler.load_state_dict(state)

    def _attempt(self, batch: Batch, step: int) -> tuple[Tensor, Tensor] | None:
        """What `_compute` gives, or None where memory ran out."""
        try:
            return self._compute(batch, step)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            return None  # and the traceback, which holds the tensors, is gone
        except ValueError as error:
            # PyTorch's, of BatchNorm on maps of one place.
            if "Expected more than 1 value per channel" not in str(error):
                raise
            raise InputError(
                "BatchNorm cannot train on one image at a time where a map has one place alone: "
                f"batch_size={self.recipe.batch_size} in {self.parts} parts on {self.world} "
                "processes; make batch_size larger, optim.accumulate smaller or image_size larger, "
                "or set freeze.batchnorm") from None

    def _may_split(self, images: int) -> bool:
        """Once, and with one process: others would wait for gradients that do not come."""
        return (self.world == 1 and self.parts == self.recipe.optim.accumulate
                and images % (2 * self.parts) == 0)

    def _compute(self, batch: Batch, step: int) -> tuple[Tensor, Tensor]:
        """The gradients of a batch; its loss here, and the norm of the gradients."""
        redrawn = (0, self.redrawn) if self.redrawn else ()
        # Of mixup, and then of dropout and stochastic depth.
        seed_all(self.recipe.seed, step, *redrawn)
        # A copy, for mixing is done in place, and the batch may be needed again.
        images, labels = (t.to(self.device, non_blocking=True, copy=True) for t in batch)
        images, targets = self._mix(images, labels)
        if self.rank:
            seed_all(self.recipe.seed, step, self.rank, *redrawn[1:])
        if isinstance(self.model, Supernet):  # once a step, for all parts of the batch
            self.model.draw()
        total = torch.zeros((), device=self.device)
        parts = list(zip(images.chunk(self.parts), targets.chunk(self.parts), strict=True))
        for i, (x, target) in enumerate(parts, 1):
            with self._unsynchronised(i < len(parts)):
                loss = self._loss(x, self._network(x), target) / len(parts)
                self._accelerator.backward(loss)
            total += loss.detach()
        self._accelerator.unscale_gradients(self._optimizer)
        return total, nn.utils.get_total_norm(
            [p.grad for p in self._parameters if p.grad is not None])

    def _update(self, loss: Tensor, norm: Tensor, lr: float) -> Step:
        """Change the weights. It is tried once: an optimiser that runs out of memory, which is
        where it makes its state, has changed some of them."""
        value, length = self._means(loss, norm)
        updated = math.isfinite(value) and math.isfinite(length)
        if updated and self.recipe.optim.clip_grad:
            nn.utils.clip_grads_with_norm_(self._parameters, self.recipe.optim.clip_grad, norm)
        set_learning_rate(self._optimizer, lr)
        if updated or self._accelerator.scaler is not None:  # which skips the update itself
            try:
                self._optimizer.step()
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
                raise InputError("out of memory for the optimiser's state, whatever the batch; "
                                 "train a smaller network, or take optim.name=sgd") from None
        self._optimizer.zero_grad()
        return Step(loss=value, norm=length, updated=updated)

    def _means(self, loss: Tensor, norm: Tensor) -> tuple[float, float]:
        """Loss over all processes, and the gradient's norm, which is theirs already."""
        both = torch.stack([loss, norm])
        if self.world > 1:
            both = both.double()  # which MPS does not have, where there is but one process
            dist.all_reduce(both)
            both /= self.world
        value, length = both.tolist()  # waits for the device, so once a step
        return value, length

    def _unsynchronised(self, yes: bool) -> contextlib.AbstractContextManager[None]:
        return self._accelerator.no_sync(self._network) if yes else contextlib.nullcontext()

    @torch.no_grad()
    def _average_statistics(self) -> None:
        """Give each BatchNorm the mean of the processes' running statistics.

        A running mean is linear in the batches, so this at every step is what once at the end would
        be, and a checkpoint between two steps holds all there is.
        """
        tensors = [t for bn in self._statistics if bn.training
                   for t in (bn.running_mean, bn.running_var) if t is not None]
        if self.world == 1 or not tensors:
            return
        mean = torch.cat([t.flatten() for t in tensors])
        dist.all_reduce(mean)
        mean /= self.world
        torch._foreach_copy_(tensors, mean.split([t.numel() for t in tensors]))

    @torch.no_grad()
    def _restore(self, before: list[Tensor]) -> None:
        for buffer, was in zip(self._buffers, before, strict=True):
            buffer.copy_(was)


def _mix(augment: AugmentConfig, num_classes: int) -> Callable[[Tensor, Tensor], Batch]:
    """Mixup and CutMix of a batch, labels becoming probabilities (B, K); or neither."""
    if not augment.mixes:
        return lambda images, labels: (images, labels)
    return Mixup(
        mixup_alpha=augment.mixup, cutmix_alpha=augment.cutmix, prob=augment.mix_prob,
        label_smoothing=0.0, num_classes=num_classes)
