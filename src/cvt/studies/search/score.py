"""How good a network of a supernet is, from images that the supernet was not trained on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cvt.data.loader import Batch
from cvt.evaluate.run import classify
from cvt.networks.supernet import Choice, Supernet


class Scorer:
    """Top-1 in [0, 1] of a choice on `held_out`, with the weights of `supernet`.

    BatchNorm's statistics in the supernet are those of all networks together, so each network's are
    computed anew from `calibration`, which are training images.
    """

    def __init__(self, supernet: Supernet, calibration: Sequence[Batch], held_out: Sequence[Batch]
                 ) -> None:
        self.supernet, self.held_out = supernet.eval(), held_out
        self._images = [images for images, _ in calibration]

    def __call__(self, choice: Choice) -> float:
        """The top-1 of `choice`."""
        network = self.supernet.extract(choice)
        renew_statistics(network, self._images)
        logits, labels = classify(network, self.held_out)
        return (logits.argmax(1) == labels).double().mean().item()


@torch.no_grad()
def renew_statistics(network: nn.Module, batches: Sequence[Tensor]) -> None:
    """Let every BatchNorm have the mean over `batches` (B, C, H, W) of each one's statistics.

    All else computes as in evaluation, in which `network` is left.
    """
    network.eval()
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    kept = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean
        norm.train()
    device = next(network.parameters()).device
    for images in batches:
        network(images.to(device))
    for norm, momentum in zip(norms, kept, strict=True):
        norm.momentum = momentum
    network.eval()
