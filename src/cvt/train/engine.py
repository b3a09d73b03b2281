"""One optimiser step, in the processes, on the device and in the precision of a recipe.

One process, or as many as `torchrun` starts: they hold the same weights, each computes its share of
every batch, and their gradients are averaged.
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
from typing import Any, Self, cast

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
from cvt.train.loss import Loss
from cvt.train.optim import set_learning_rate
from cvt.train.processes import Processes, SyncBatchNorm2d
from cvt.train.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class Step:
    """The result of one optimiser step."""

    loss: float
    """Mean over the batch of all processes, before the update."""
    norm: float
    """Norm of the whole gradient, before clipping."""
    updated: bool
    """Whether the weights were updated: not if loss or gradient are infinite or NaN."""


class Engine(Processes):
    """The processes of a run and their optimiser step: mix, forward, backward, update."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        world_size = int(os.environ.get("WORLD_SIZE", "1"))
        accum_steps = recipe.optim.grad_accum_steps
        if recipe.batch_size % (world_size * accum_steps * (2 if recipe.augment.mixes else 1)):
            raise InputError(f"batch_size={recipe.batch_size} is shared by {world_size} processes "
                             f"in {accum_steps} micro-batches each"
                             + (", in pairs to mix" if recipe.augment.mixes else "")
                             + "; make it a multiple of their product")
        if recipe.network == "supernet" and world_size > 1:
            raise InputError("network=supernet trains another part of its weights at each step, "
                             f"and {world_size} processes would wait for each other's; start one")
        for tracker in recipe.trackers:
            require(tracker, tracker)
        device = pick_device(recipe.device)
        if recipe.precision == "fp16" and device.type == "cpu":
            raise InputError("precision='fp16' is for GPUs; a CPU has bf16")
        autocast(device, recipe.precision)  # rejects what the device cannot compute
        if world_size > 1 and device.index is not None:
            raise InputError(f"device={recipe.device!r} cannot be shared by {world_size} "
                             f"processes; use {device.type}, and the launcher gives each its own")
        if world_size == 1:  # else the launcher assigns a device to each process
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
        super().__init__(self._accelerator.process_index, world_size, self._accelerator.device)
        self.reshuffles = 0
        """How often the epoch was reshuffled; dropout and mixing at each step depend on it."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for tracker in self._accelerator.trackers:
            with contextlib.suppress(Exception):  # of a client; the run is over
                tracker.finish()
        self._accelerator.trackers = []
        self.leave()
        # Otherwise the next engine of this process would have the same device and precision.
        AcceleratorState._reset_state(reset_partial_state=True)

    def prepare(self, model: nn.Module, optimizer: torch.optim.Optimizer, loss: Loss,
                num_classes: int, frozen: Sequence[nn.Module] = ()) -> None:
        """Train `model` with `optimizer`, which are on this engine's device, to minimise `loss`.

        The modules `frozen` stay in evaluation mode.
        """
        recipe = self.recipe
        self._loss, self._frozen = loss.to(self.device), frozen
        if recipe.sync_batchnorm and self.world_size > 1:
            swap(model, nn.BatchNorm2d, SyncBatchNorm2d.of)
        if recipe.grad_checkpointing:
            cast("Any", model).set_grad_checkpointing(True)
        self.model, self.accum_steps = model, recipe.optim.grad_accum_steps
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._buffers = list(model.buffers())
        self._batchnorms = [bn for bn in model.modules() if isinstance(bn, nn.BatchNorm2d)
                            and not isinstance(bn, SyncBatchNorm2d)]
        self._mix = _mix(recipe.augment, num_classes)
        form = TrainingForm(model) if isinstance(model, CvT) else model
        if recipe.compile:
            form = torch.compile(form)  # type: ignore[assignment]
        if self.world_size > 1:  # of depthwise kernels, whose strides may be written in two ways
            warnings.filterwarnings("ignore", message="Grad strides do not match bucket view")
        self._network, self._optimizer = self._accelerator.prepare(form, optimizer)

    @property
    def micro_batch_size(self) -> int:
        """Images that a process passes through the network at a time."""
        return max(1, self.recipe.batch_size // self.world_size // self.accum_steps)

    def train_mode(self) -> None:
        """Put the network into training mode, except its frozen modules."""
        self.model.train()
        for module in self._frozen:
            module.eval()

    def step(self, batch: Batch, lr: float, step: int) -> Step:
        """Update the weights with learning rate `lr`, from this process's share of the batch.

        Its randomness is a function of the recipe's seed, `step` and `reshuffles`. If memory runs
        out, the batch is computed once more in twice as many micro-batches, and so are those after
        it; if that is not possible or not enough, InputError. BatchNorm's statistics are averaged,
        so that all processes hold the same network afterwards.
        """
        before = [buffer.clone() for buffer in self._buffers]
        gradients = self._try_gradients(batch, step)
        if gradients is None and self._can_split(len(batch[0])):
            self.accum_steps *= 2
            self._restore(before)
            self._optimizer.zero_grad()
            free_cache(self.device)
            gradients = self._try_gradients(batch, step)
        if gradients is None:
            raise InputError(
                f"out of memory with a micro-batch of {len(batch[0]) // self.accum_steps} images; "
                "decrease batch_size, increase optim.grad_accum_steps, or set grad_checkpointing")
        done = self._update(*gradients, lr)
        if done.updated:
            self._average_statistics()
        else:
            self._restore(before)  # BatchNorm has averaged what was not finite
        return done

    def scale_too_large(self, step: Step) -> bool:
        """Whether a step failed because fp16's loss scale was too large; it then shrinks.

        Below 1 that is no longer the reason: the gradient itself is not finite.
        """
        scaler = self._accelerator.scaler
        return scaler is not None and math.isfinite(step.loss) and scaler.get_scale() >= 1

    def exchange_seconds(self) -> float | None:
        """Time of one all-reduce of all gradients; None with one process."""
        if self.world_size == 1:
            return None
        numbers = torch.zeros(sum(p.numel() for p in self._parameters), device=self.device)
        seconds = []
        for _ in range(5):
            start = time.perf_counter()
            dist.all_reduce(numbers)
            self.all_reduce_sum([0.0])  # waits for the device
            seconds.append(time.perf_counter() - start)
        return median(seconds)

    def open_trackers(self, run: Path) -> None:
        """Start the recipe's trackers. Raises InputError if one does not respond."""
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
        """Log the main process's values to the trackers, after `step` steps."""
        if self.recipe.trackers:
            self._accelerator.log(dict(values), step=step)

    def scaler_state(self) -> dict[str, float]:
        """State of the fp16 gradient scaler; empty in other precisions."""
        scaler = self._accelerator.scaler
        return dict(scaler.state_dict()) if scaler is not None else {}

    def load_scaler_state(self, state: dict[str, float]) -> None:
        """Restore what `scaler_state` returned."""
        if state and self._accelerator.scaler is not None:
            self._accelerator.scaler.load_state_dict(state)

    def _try_gradients(self, batch: Batch, step: int) -> tuple[Tensor, Tensor] | None:
        """The result of `_gradients`, or None if memory runs out."""
        try:
            return self._gradients(batch, step)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            return None  # and the traceback, which holds the tensors, is gone
        except ValueError as error:
            # PyTorch's, of BatchNorm on 1x1 maps.
            if "Expected more than 1 value per channel" not in str(error):
                raise
            raise InputError(
                "BatchNorm cannot train on a micro-batch of one image with 1x1 maps: batch_size="
                f"{self.recipe.batch_size} in {self.accum_steps} micro-batches on "
                f"{self.world_size} processes; make batch_size larger, optim.grad_accum_steps "
                "smaller or image_size larger, or set freeze.batchnorm") from None

    def _can_split(self, images: int) -> bool:
        """Once, and with one process: others would wait for gradients that do not come."""
        return (self.world_size == 1 and self.accum_steps == self.recipe.optim.grad_accum_steps
                and images % (2 * self.accum_steps) == 0)

    def _gradients(self, batch: Batch, step: int) -> tuple[Tensor, Tensor]:
        """Compute the gradients of a batch; its loss in this process, and the gradients' norm."""
        reshuffled = (0, self.reshuffles) if self.reshuffles else ()
        # First for mixup, then for dropout and stochastic depth.
        seed_all(self.recipe.seed, step, *reshuffled)
        # A copy, for mixing is done in place, and the batch may be needed again.
        images, labels = (t.to(self.device, non_blocking=True, copy=True) for t in batch)
        images, targets = self._mix(images, labels)
        if self.rank:
            seed_all(self.recipe.seed, step, self.rank, *reshuffled[1:])
        if isinstance(self.model, Supernet):  # once a step, for all micro-batches
            self.model.draw()
        total = torch.zeros((), device=self.device)
        micro_batches = list(zip(images.chunk(self.accum_steps), targets.chunk(self.accum_steps),
                                 strict=True))
        for i, (x, target) in enumerate(micro_batches, 1):
            with (self._accelerator.no_sync(self._network) if i < len(micro_batches)
                  else contextlib.nullcontext()):
                loss = self._loss(x, self._network(x), target) / len(micro_batches)
                self._accelerator.backward(loss)
            total += loss.detach()
        self._accelerator.unscale_gradients(self._optimizer)
        return total, nn.utils.get_total_norm(
            [p.grad for p in self._parameters if p.grad is not None])

    def _update(self, loss: Tensor, norm: Tensor, lr: float) -> Step:
        """Update the weights. It is tried once: an optimiser that runs out of memory, which
        happens when it creates its state, has changed some of them."""
        # The loss over all processes; the gradient's norm is the same in all.
        both = torch.stack([loss, norm])
        if self.world_size > 1:
            both = both.double()  # MPS has no float64, and but one process
            dist.all_reduce(both)
            both /= self.world_size
        mean_loss, total_norm = both.tolist()  # waits for the device, so once a step
        updated = math.isfinite(mean_loss) and math.isfinite(total_norm)
        if updated and self.recipe.optim.clip_grad:
            nn.utils.clip_grads_with_norm_(self._parameters, self.recipe.optim.clip_grad, norm)
        set_learning_rate(self._optimizer, lr)
        if updated or self._accelerator.scaler is not None:  # which skips the update itself
            try:
                self._optimizer.step()
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
                raise InputError("out of memory for the optimiser's state, at any batch size; "
                                 "train a smaller network, or use optim.name=sgd") from None
        self._optimizer.zero_grad()
        return Step(loss=mean_loss, norm=total_norm, updated=updated)

    @torch.no_grad()
    def _average_statistics(self) -> None:
        """Average the running statistics of each BatchNorm over the processes.

        A running mean is linear in the batches, so averaging at every step equals averaging once at
        the end, and a checkpoint between two steps is complete.
        """
        tensors = [t for bn in self._batchnorms if bn.training
                   for t in (bn.running_mean, bn.running_var) if t is not None]
        if self.world_size == 1 or not tensors:
            return
        mean = torch.cat([t.flatten() for t in tensors])
        dist.all_reduce(mean)
        mean /= self.world_size
        torch._foreach_copy_(tensors, mean.split([t.numel() for t in tensors]))

    @torch.no_grad()
    def _restore(self, before: list[Tensor]) -> None:
        for buffer, was in zip(self._buffers, before, strict=True):
            buffer.copy_(was)


def _mix(augment: AugmentConfig, num_classes: int) -> Callable[[Tensor, Tensor], Batch]:
    """Mixup and CutMix of a batch, which turn labels into probabilities (B, K); or the identity."""
    if not augment.mixes:
        return lambda images, labels: (images, labels)
    return Mixup(
        mixup_alpha=augment.mixup, cutmix_alpha=augment.cutmix, prob=augment.mix_prob,
        label_smoothing=0.0, num_classes=num_classes)
