"""Everything that decides a search beside the recipe of its supernet, as data. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from cvt.system.schema import check, check_types


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """How many networks are scored, and on what."""

    budget: int
    """Multiply-adds of one image that a network may take at most."""
    population: int = 20
    """Networks scored in each generation; the better half of all so far are the parents of the
    next, and the first is drawn at random."""
    generations: int = 5
    """How many; random search scores as many networks in all."""
    held_out: int | None = None
    """Training images that the supernet does not see, and that networks are scored on. They stay
    in memory. By default a fifth of the training images, at most 2,000."""
    calibration: int = 512
    """Training images from which BatchNorm's statistics are computed anew for each network."""

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("budget", "generations", "calibration"):
            check(getattr(self, name) >= 1, f"{name}={getattr(self, name)} must be at least 1")
        check(self.population >= 2, f"population={self.population} has no two parents; make it at "
              "least 2")
        check(self.held_out is None or self.held_out >= 1,
              f"held_out={self.held_out} must be at least 1")

    @property
    def evaluations(self) -> int:
        """Networks that each of the two methods scores."""
        return self.population * self.generations
