"""Two search methods under a budget with the same number of evaluations: evolution and random."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from random import Random

from cvt.networks.supernet import Choice
from cvt.studies.search.space import Space

Score = Callable[[Choice], float]

# Attempts to breed a child that is new and within the budget, before a network is drawn instead.
_ATTEMPTS = 100


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A network with its cost and score."""

    choice: Choice
    multiply_adds: int
    top1: float
    """With the supernet's weights, in [0, 1]."""


def random_search(space: Space, budget: int, score: Score, *, evaluations: int, seed: int
                  ) -> list[Scored]:
    """Score networks drawn uniformly among those of at most `budget` multiply-adds.

    Returns them in the order of evaluation, without repetitions: `evaluations` networks, or all if
    the space has fewer. Raises InputError if no network meets the budget.
    """
    search = _Search(space, budget, score, evaluations, seed)
    while not search.done:
        search.draw()
    return search.scored


def evolve(space: Space, budget: int, score: Score, *, evaluations: int, population: int, seed: int
           ) -> list[Scored]:
    """The same by evolution (Guo et al., 2020, Alg. 1).

    The first `population` networks are those of `random_search` with the same `seed`. Every later
    generation has as many children of the best `population / 2` networks so far, alternately by
    mutation and by crossover.
    """
    search = _Search(space, budget, score, evaluations, seed)
    while not search.done and len(search.scored) < population:
        search.draw()
    while not search.done:
        parents = [scored.choice for scored in ranked(search.scored)[:max(2, population // 2)]]
        for i in range(population):
            if not search.done:
                search.breed(parents, crossover=i % 2 == 1)
    return search.scored


def ranked(networks: Iterable[Scored]) -> list[Scored]:
    """The networks from best to worst; ties go to the one with fewer multiply-adds."""
    return sorted(networks, key=lambda scored: (-scored.top1, scored.multiply_adds))


class _Search:
    """The networks scored so far, and the ways to another one."""

    def __init__(self, space: Space, budget: int, score: Score, evaluations: int, seed: int
                 ) -> None:
        space.check(budget)
        self.space, self.budget, self.score = space, budget, score
        self.rng = Random(seed)
        self.scored: list[Scored] = []
        self._seen: set[Choice] = set()
        self._evaluations = min(evaluations, space.count(budget))

    @property
    def done(self) -> bool:
        return len(self.scored) >= self._evaluations

    def draw(self) -> None:
        choice = self.space.draw(self.rng, self.budget)
        while choice in self._seen:
            choice = self.space.draw(self.rng, self.budget)
        self._add(choice)

    def breed(self, parents: list[Choice], *, crossover: bool) -> None:
        for _ in range(_ATTEMPTS):
            one, other = self.rng.sample(parents, 2)
            child = (self.space.crossover(one, other, self.rng) if crossover
                     else self.space.mutate(one, self.rng))
            if child not in self._seen and self.space.multiply_adds(child) <= self.budget:
                return self._add(child)
        return self.draw()

    def _add(self, choice: Choice) -> None:
        self._seen.add(choice)
        self.scored.append(Scored(choice=choice, multiply_adds=self.space.multiply_adds(choice),
                                  top1=self.score(choice)))
