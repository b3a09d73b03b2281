"""The search space: cost, uniform sampling, mutation and crossover of its networks."""

from __future__ import annotations

import dataclasses
from random import Random

import numpy as np

from cvt.config import CvTConfig, Grid
from cvt.networks.complexity import multiply_adds
from cvt.networks.supernet import GENES, RATIOS, STRIDES, Choice, Gene, chosen
from cvt.system.errors import InputError

# Mutation probability per block (Guo et al., 2020, Sec. 4).
MUTATION = 0.1
_CHEAPEST: Gene = (max(STRIDES), min(RATIOS))


class Space:
    """All networks that differ from `config` only in strides and ratios, for images of `size`.

    The multiply-adds of a block depend only on its own gene, so those of a choice are an exact sum,
    and choices within a budget can be counted and drawn uniformly.
    """

    def __init__(self, config: CvTConfig, size: Grid) -> None:
        self.config, self.size = config, size
        self.min_cost = multiply_adds(chosen(config, (_CHEAPEST,) * sum(
            stage.depth for stage in config.stages)), size)
        # Cost of every gene above the cheapest, by block: counted in a stage of one block.
        n = len(config.stages)
        shallow = dataclasses.replace(config, stages=tuple(s.block(0) for s in config.stages))
        base = multiply_adds(chosen(shallow, (_CHEAPEST,) * n), size)
        self._extra: list[dict[Gene, int]] = []
        for i, stage in enumerate(config.stages):
            self._extra += stage.depth * [{_CHEAPEST: 0} | {gene: multiply_adds(chosen(
                shallow, tuple(gene if i == j else _CHEAPEST for j in range(n))), size) - base
                for gene in GENES if gene != _CHEAPEST}]
        self.max_cost = self.min_cost + sum(max(extra.values()) for extra in self._extra)
        self._ways = _ways(self._extra)

    def multiply_adds(self, choice: Choice) -> int:
        """Multiply-adds of the network of `choice`, equal to those of `cvt.networks.complexity`."""
        return self.min_cost + sum(
            extra[gene] for extra, gene in zip(self._extra, choice, strict=True))

    def count(self, budget: int) -> int:
        """Number of choices that cost at most `budget`; rounded above 2**53."""
        return int(_at_most(self._ways[0], budget - self.min_cost))

    def check(self, budget: int) -> None:
        """Raise InputError if no choice costs at most `budget`."""
        if budget < self.min_cost:
            raise InputError(f"no network meets a budget of {budget:,} multiply-adds; the cheapest "
                             f"takes {self.min_cost:,} at {self.size[0]}x{self.size[1]} pixels")

    def draw(self, rng: Random, budget: int) -> Choice:
        """Draw a choice of at most `budget`, uniformly."""
        self.check(budget)
        left, choice = budget - self.min_cost, []
        for extra, ways in zip(self._extra, self._ways[1:], strict=True):
            weights = [_at_most(ways, left - extra[gene]) for gene in GENES]
            choice += rng.choices(GENES, weights)
            left -= extra[choice[-1]]
        return tuple(choice)

    def mutate(self, choice: Choice, rng: Random) -> Choice:
        """Change the gene of one block, and of every other with a probability of `MUTATION`."""
        always = rng.randrange(len(choice))
        return tuple(
            rng.choice([other for other in GENES if other != gene])
            if i == always or rng.random() < MUTATION else gene for i, gene in enumerate(choice))

    def crossover(self, one: Choice, other: Choice, rng: Random) -> Choice:
        """Draw the gene of each block from either of two choices."""
        return tuple(rng.choice(pair) for pair in zip(one, other, strict=True))


# Possible costs of some blocks, ascending, and the number of choices of at most each cost.
_Ways = tuple[np.ndarray, np.ndarray]


def _ways(extra: list[dict[Gene, int]]) -> list[_Ways]:
    """The costs above the cheapest of all blocks, of all but the first, and so on to none."""
    costs, choices = np.zeros(1, np.int64), np.ones(1)
    ways: list[_Ways] = [(costs, choices)]
    for block in reversed(extra):
        sums = np.add.outer(list(block.values()), costs).ravel()
        costs, index = np.unique(sums, return_inverse=True)
        choices = np.bincount(index, np.tile(choices, len(block))).astype(np.float64)
        ways.append((costs, choices.cumsum()))
    return ways[::-1]


def _at_most(ways: _Ways, cost: int) -> float:
    costs, choices = ways
    index = int(np.searchsorted(costs, cost, "right"))
    return float(choices[index - 1]) if index else 0.0
