"""What may be trained by one recipe: the CvT of a card, or what stands in its place."""

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
from cvt.weights.native import BEST
from cvt.weights.tensors import read_tensors

NETWORKS: Mapping[Network, Callable[[CvTConfig], nn.Module]] = {
    "cvt": CvT,
    "vit": vit,
    "vit_without_position": partial(vit, pos_embed=False),
    "resnet": resnet,
    "supernet": Supernet,
}


def build_network(card: ModelCard) -> nn.Module:
    """What `card` describes, with new weights: images (B, in_chans, H, W) to logits.

    Raises InputError where there is no such network of the CvT's size.
    """
    return NETWORKS[card.network](card.model)


def load_network(directory: Path) -> tuple[nn.Module, ModelCard]:
    """The network that `cvt train` wrote to `directory`, in evaluation mode, and its card."""
    card = ModelCard.load(directory)
    network = build_network(card)
    network.load_state_dict(read_tensors(directory / BEST))
    return network.eval(), card
