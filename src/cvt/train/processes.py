"""Several processes of one run: collectives, a heartbeat, BatchNorm over the global batch."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Self, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_gather

from cvt.system.errors import InputError

_T = TypeVar("_T")

_INTERVAL = 2.0  # seconds between two heartbeats
_TIMEOUT = 15.0  # seconds without one; torchrun takes up to 30 more to end a frozen process
_POLL = 0.02


class Processes:
    """The processes of a run that `torchrun` started, or a single one.

    device: where this process computes. rank, world_size: its number, and how many there are.

    With several, a thread sends a heartbeat to the launcher's key-value store, independently of the
    collectives, and ends this process when another one is frozen.
    """

    def __init__(self, rank: int, world_size: int, device: torch.device) -> None:
        self.rank, self.world_size, self.device = rank, world_size, device
        self._actions = 0
        self._left = threading.Event()
        if world_size > 1:
            self._store = dist.distributed_c10d._get_default_store().clone()
            self._thread = threading.Thread(target=self._watch, name="cvt-heartbeat", daemon=True)
            self._thread.start()

    @property
    def main(self) -> bool:
        """Whether this is the process that writes files and logs."""
        return self.rank == 0

    def any(self, flag: bool) -> bool:
        """Whether `flag` is set in any process."""
        return self.all_reduce_sum([float(flag)])[0] > 0

    def all_reduce_sum(self, values: Sequence[float]) -> list[float]:
        """Each value summed over the processes, in all of them."""
        if self.world_size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return [float(v) for v in total.tolist()]

    def gather(self, value: _T) -> list[_T]:
        """The value of each process, by rank; empty in all but the main process."""
        if self.world_size == 1:
            return [value]
        each: list[_T | None] | None = [None] * self.world_size if self.main else None
        dist.gather_object(value, each)
        return cast("list[_T]", each or [])

    def broadcast(self, value: _T) -> _T:
        """The main process's value, in all processes."""
        if self.world_size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values)
        return values[0]

    def on_main(self, action: Callable[[], _T]) -> _T | None:
        """Call `action` in the main process only, and return its result there.

        The others wait without a timeout: not in a collective, whose timeout is for steps. Raises
        InputError in them if it fails in the main process.
        """
        if self.world_size == 1:
            return action()
        self._actions += 1
        key = f"action/{self._actions}"
        if self.main:
            try:
                result = action()
            except BaseException:
                self._store.set(key, "failed")
                raise
            self._store.set(key, "done")
            return result
        while not self._store.check([key]):
            time.sleep(_POLL)
        if self._store.get(key) != b"done":
            raise InputError("the main process failed; see its error")
        return None

    def leave(self) -> None:
        """Leave the process group; the others no longer wait for this process."""
        if self.world_size > 1 and not self._left.is_set():
            self._left.set()
            self._thread.join()
            with contextlib.suppress(RuntimeError):  # the launcher, and its store, may be gone
                self._store.set(f"beat/{self.rank}", "done")
        if dist.is_initialized():
            dist.destroy_process_group()

    def _watch(self) -> None:
        beats = 0
        others = [rank for rank in range(self.world_size) if rank != self.rank]
        seen = {rank: (b"", time.monotonic()) for rank in others}
        try:
            while not self._left.wait(_INTERVAL):
                beats += 1
                self._store.set(f"beat/{self.rank}", str(beats))
                now = time.monotonic()
                for rank in others:
                    key = f"beat/{rank}"
                    beat = self._store.get(key) if self._store.check([key]) else b""
                    if beat != seen[rank][0]:
                        seen[rank] = beat, now
                    elif beat != b"done" and now - seen[rank][1] > _TIMEOUT:
                        self._end(f"process {rank} has sent no heartbeat for {_TIMEOUT:.0f} s: it "
                                  "or its machine is frozen")
        except (RuntimeError, OSError) as error:  # those of the store
            if not self._left.is_set():
                self._end(f"the launcher cannot be reached any more ({error})")

    def _end(self, reason: str) -> None:
        sys.stderr.write(f"cvt train: {reason}; process {self.rank} of {self.world_size} ends "
                         "too. Continue with cvt train --resume DIR\n")
        sys.stderr.flush()
        os._exit(1)  # the main thread may wait in a collective that never completes


class SyncBatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` with the mean and variance of the global batch in training.

    PyTorch's own SyncBatchNorm has no CPU implementation. All processes have the same number of
    images, so the mean is the mean of their means, and the variance the mean of their variances
    plus the variance of their means.
    """

    @classmethod
    def of(cls, bn: nn.BatchNorm2d) -> Self:
        """The same layer with the same parameters and statistics."""
        synced = cls(bn.num_features, bn.eps, bn.momentum, bn.affine, bn.track_running_stats,
                     device=bn.weight.device, dtype=bn.weight.dtype)
        synced.weight, synced.bias = bn.weight, bn.bias
        synced.running_mean, synced.running_var = bn.running_mean, bn.running_var
        synced.num_batches_tracked = bn.num_batches_tracked
        return synced

    def forward(self, x: Tensor) -> Tensor:
        """Normalised maps (B, C, H, W)."""
        if not self.training:
            return super().forward(x)
        own = torch.stack(torch.var_mean(x.float(), (0, 2, 3), correction=0))  # (2, C)
        variances, means = torch.stack(list(all_gather(own))).unbind(1)  # (processes, C) each
        mean = means.mean(0)
        var = variances.mean(0) + (means - mean).square().mean(0)
        with torch.no_grad():
            n = x.numel() // x.shape[1] * dist.get_world_size()
            if self.num_batches_tracked is not None:  # None where checkpointing recomputes it
                self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, self.momentum)  # type: ignore[union-attr, arg-type]
            self.running_var.lerp_(var * n / (n - 1), self.momentum)  # type: ignore[union-attr, arg-type]
        scale = self.weight * torch.rsqrt(var + self.eps)
        shift = self.bias - mean * scale
        return torch.addcmul(shift[:, None, None], x, scale[:, None, None].to(x.dtype))
