"""Two ways to search under a budget with the same number of evaluations: evolution, and chance."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from random import Random

from cvt.networks.supernet import Choice
from cvt.studies.search.space import Space

Score = Callable[[Choice], float]

# Children that are tried before a network is drawn anew: too dear ones, and known ones.
_TRIES = 100


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A choice and what it is worth."""

    choice: Choice
    multiply_adds: int
    top1: float
    """With the supernet's weights, in [0, 1]."""


def random_search(space: Space, budget: int, score: Score, *, evaluations: int, seed: int
                  ) -> list[Scored]:
    """Networks drawn uniformly among all of at most `budget` multiply-adds, in their order.

    None comes twice; there are as many as `evaluations`, or all where the space has fewer. Raises
    InputError where no network meets the budget.
    """
    search = _Search(space, budget, score, evaluations, seed)
    while search.goes_on:
        search.draw()
    return search.found


def evolve(space: Space, budget: int, score: Score, *, evaluations: int, population: int, seed: int
           ) -> list[Scored]:
    """The same by evolution (Guo et al., 2020, Alg. 1), in their order.

    The first `population` networks are those of `random_search` with the same `seed`. Then each
    generation has as many children of the best half a population so far, by mutation and by
    crossover in turns.
    """
    search = _Search(space, budget, score, evaluations, seed)
    while search.goes_on and len(search.found) < population:
        search.draw()
    while search.goes_on:
        parents = [scored.choice for scored in ranked(search.found)[:max(2, population // 2)]]
        for i in range(population):
            if search.goes_on:
                search.breed(parents, crossed=i % 2 == 1)
    return search.found


def ranked(found: Iterable[Scored]) -> list[Scored]:
    """The best first; of equals the one of fewer multiply-adds."""
    return sorted(found, key=lambda scored: (-scored.top1, scored.multiply_adds))


class _Search:
    """The networks found so far, and the ways to one more."""

    def __init__(self, space: Space, budget: int, score: Score, evaluations: int, seed: int
                 ) -> None:
        space.check(budget)
        self.space, self.budget, self.score = space, budget, score
        self.rng = Random(seed)
        self.found: list[Scored] = []
        self._known: set[Choice] = set()
        self._goal = min(evaluations, space.count(budget))

    @property
    def goes_on(self) -> bool:
        return len(self.found) < self._goal

    def draw(self) -> None:
        choice = self.space.draw(self.rng, self.budget)
        while choice in self._known:
            choice = self.space.draw(self.rng, self.budget)
        self._add(choice)

    def breed(self, parents: list[Choice], *, crossed: bool) -> None:
        for _ in range(_TRIES):
            one, other = self.rng.sample(parents, 2)
            child = (self.space.cross(one, other, self.rng) if crossed
                     else self.space.mutate(one, self.rng))
            if child not in self._known and self.space.multiply_adds(child) <= self.budget:
                return self._add(child)
        return self.draw()

    def _add(self, choice: Choice) -> None:
        self._known.add(choice)
        self.found.append(Scored(choice=choice, multiply_adds=self.space.multiply_adds(choice),
                                 top1=self.score(choice)))
