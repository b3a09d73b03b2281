"""The networks of a search: what each costs, and how they are drawn, mutated and crossed."""

from __future__ import annotations

import dataclasses
from random import Random

import numpy as np

from cvt.config import CvTConfig, Grid
from cvt.networks.complexity import multiply_adds
from cvt.networks.supernet import GENES, RATIOS, STRIDES, Choice, Gene, chosen
from cvt.system.errors import InputError

# Of a mutation: the probability that a block other than the one surely changed gets a new gene
# (Guo et al., 2020, Sec. 4).
MUTATION = 0.1
_CHEAPEST: Gene = (max(STRIDES), min(RATIOS))


class Space:
    """All networks that differ from `config` in strides and ratios alone, for images of `size`.

    What a block adds to the multiply-adds depends on its own gene only, so those of a choice are a
    sum, exact, and the choices within a budget can be counted and drawn uniformly.
    """

    def __init__(self, config: CvTConfig, size: Grid) -> None:
        self.config, self.size = config, size
        self.least = multiply_adds(chosen(config, (_CHEAPEST,) * sum(
            stage.depth for stage in config.stages)), size)
        # For each block, what a gene costs above the cheapest: counted in a stage of one block.
        n = len(config.stages)
        shallow = dataclasses.replace(config, stages=tuple(s.block(0) for s in config.stages))
        base = multiply_adds(chosen(shallow, (_CHEAPEST,) * n), size)
        self._more: list[dict[Gene, int]] = []
        for i, stage in enumerate(config.stages):
            self._more += stage.depth * [{_CHEAPEST: 0} | {gene: multiply_adds(chosen(
                shallow, tuple(gene if i == j else _CHEAPEST for j in range(n))), size) - base
                for gene in GENES if gene != _CHEAPEST}]
        self.most = self.least + sum(max(more.values()) for more in self._more)
        self._ways = _ways(self._more)

    def multiply_adds(self, choice: Choice) -> int:
        """As `cvt.networks.complexity` counts them for the network of `choice`."""
        return self.least + sum(more[gene] for more, gene in zip(self._more, choice, strict=True))

    def count(self, budget: int) -> int:
        """How many choices cost at most `budget`; rounded above 2**53."""
        return int(_at_most(self._ways[0], budget - self.least))

    def check(self, budget: int) -> None:
        """Raise InputError where no choice costs at most `budget`."""
        if budget < self.least:
            raise InputError(f"no network meets a budget of {budget:,} multiply-adds; the cheapest "
                             f"takes {self.least:,} at {self.size[0]}x{self.size[1]} pixels")

    def draw(self, rng: Random, budget: int) -> Choice:
        """A choice of at most `budget`, each as likely as any other."""
        self.check(budget)
        left, choice = budget - self.least, []
        for more, ways in zip(self._more, self._ways[1:], strict=True):
            weights = [_at_most(ways, left - more[gene]) for gene in GENES]
            choice += rng.choices(GENES, weights)
            left -= more[choice[-1]]
        return tuple(choice)

    def mutate(self, choice: Choice, rng: Random) -> Choice:
        """One block gets another gene, and each other one with a probability of `MUTATION`."""
        sure = rng.randrange(len(choice))
        return tuple(
            rng.choice([other for other in GENES if other != gene])
            if i == sure or rng.random() < MUTATION else gene for i, gene in enumerate(choice))

    def cross(self, one: Choice, other: Choice, rng: Random) -> Choice:
        """Each block's gene from either of two choices."""
        return tuple(rng.choice(pair) for pair in zip(one, other, strict=True))


# Possible costs of some blocks, rising, and for each how many choices cost as much or less.
_Ways = tuple[np.ndarray, np.ndarray]


def _ways(more: list[dict[Gene, int]]) -> list[_Ways]:
    """For the blocks from each on, and for none: their costs above the cheapest."""
    costs, choices = np.zeros(1, np.int64), np.ones(1)
    ways: list[_Ways] = [(costs, choices)]
    for block in reversed(more):
        sums = np.add.outer(list(block.values()), costs).ravel()
        costs, place = np.unique(sums, return_inverse=True)
        choices = np.bincount(place, np.tile(choices, len(block))).astype(np.float64)
        ways.append((costs, choices.cumsum()))
    return ways[::-1]


def _at_most(ways: _Ways, cost: int) -> float:
    costs, choices = ways
    place = int(np.searchsorted(costs, cost, "right"))
    return float(choices[place - 1]) if place else 0.0
