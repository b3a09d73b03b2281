"""Configuration of a search, besides the recipe of its supernet. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from cvt.system.schema import check, check_types


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """Number of networks to score, and the images for it."""

    budget: int
    """Maximum multiply-adds per image."""
    population: int = 20
    """Networks per generation. The first generation is drawn at random; the best half a population
    of all networks so far are the parents of the next."""
    generations: int = 5
    """Number of generations; random search scores as many networks in total."""
    held_out: int | None = None
    """Training images that networks are scored on and the supernet is not trained on; kept in
    memory. By default a fifth of the training images, at most 2,000."""
    calibration: int = 512
    """Training images that BatchNorm's statistics of each network are recomputed from."""

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("budget", "generations", "calibration"):
            check(getattr(self, name) >= 1, f"{name}={getattr(self, name)} must be at least 1")
        check(self.population >= 2, f"population={self.population} must be at least 2, for "
              "two parents")
        check(self.held_out is None or self.held_out >= 1,
              f"held_out={self.held_out} must be at least 1")

    @property
    def evaluations(self) -> int:
        """Number of networks that each of the two methods scores."""
        return self.population * self.generations
