"""BatchNorm over the batch of all processes. PyTorch's own has no CPU implementation."""

from __future__ import annotations

from typing import Self

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_gather


class SyncedBatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` with mean and variance of all processes' images, in training.

    Processes have equally many, so the mean is that of their means, and the variance the mean of
    their variances plus the variance of their means.
    """

    @classmethod
    def of(cls, bn: nn.BatchNorm2d) -> Self:
        """The same layer, of the same parameters and statistics."""
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
            if self.num_batches_tracked is not None:  # None where checkpointing computes it again
                self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, self.momentum)  # type: ignore[union-attr, arg-type]
            self.running_var.lerp_(var * n / (n - 1), self.momentum)  # type: ignore[union-attr, arg-type]
        scale = self.weight * torch.rsqrt(var + self.eps)
        shift = self.bias - mean * scale
        return torch.addcmul(shift[:, None, None], x, scale[:, None, None].to(x.dtype))
