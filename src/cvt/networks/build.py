"""Build the network of a model card: the CvT, a baseline or the supernet."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from torch import nn

from cvt.config import CvTConfig
from cvt.model import CvT
from cvt.networks.baselines import resnet, vit
from cvt.networks.supernet import Supernet
from cvt.weights.card import ModelCard, Network
from cvt.weights.tensors import BEST, read_tensors

NETWORKS: Mapping[Network, Callable[[CvTConfig], nn.Module]] = {
    "cvt": CvT,
    "vit": vit,
    "vit_without_position": partial(vit, pos_embed=False),
    "resnet": resnet,
    "supernet": Supernet,
}


def build_network(card: ModelCard) -> nn.Module:
    """The network of `card`, newly initialised: images (B, in_chans, H, W) to logits.

    Raises InputError if there is no such network of the size of the CvT.
    """
    return NETWORKS[card.network](card.model)


def load_network(directory: Path) -> tuple[nn.Module, ModelCard]:
    """Load a network saved by `cvt train` in evaluation mode, and its card."""
    card = ModelCard.load(directory)
    network = build_network(card)
    network.load_state_dict(read_tensors(directory / BEST))
    return network.eval(), card
