"""The result of a search, and its file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cvt.config import CvTConfig
from cvt.networks.supernet import Choice, chosen
from cvt.studies.search.evolve import Scored, ranked
from cvt.system.errors import InputError
from cvt.system.schema import read_mapping, write_mapping

VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Result:
    """The result of a search, with every network that was scored."""

    options: Mapping[str, Any]
    """The options of search and recipe and the digest of the data, as plain data."""
    model: CvTConfig
    """The configuration that all networks share."""
    budget: int
    """Maximum number of multiply-adds."""
    size: tuple[int, int]
    """Image size (H, W) in pixels that multiply-adds are counted for."""
    min_multiply_adds: int
    """The cheapest network of the space."""
    max_multiply_adds: int
    """The most expensive one."""
    networks: int
    """Number of networks within the budget."""
    trained: int
    """Number of images that the supernet was trained on."""
    held_out: int
    """Number of other training images, which networks are scored on."""
    base: Scored | None
    """The recipe's network, which may exceed the budget; None if it is not in the space."""
    evolution: tuple[Scored, ...]
    """Networks scored by evolution, in order."""
    random: tuple[Scored, ...]
    """Networks scored by random search, in order."""

    @property
    def best(self) -> Scored:
        """The best network of evolution."""
        return ranked(self.evolution)[0]

    @property
    def best_random(self) -> Scored:
        """The best network of random search."""
        return ranked(self.random)[0]

    def config(self, scored: Scored) -> CvTConfig:
        """The configuration of a scored network."""
        return chosen(self.model, scored.choice)

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        write_mapping({"version": VERSION, **asdict(self), "model": self.model.to_dict()}, path)

    @classmethod
    def load(cls, path: Path) -> Result:
        """Read what `save` wrote. Raises InputError for another version or a corrupt file."""
        data = read_mapping(path)
        version = data.pop("version", None)
        if version != VERSION:
            raise InputError(f"{path} is a search of version {version}, this package writes "
                             f"{VERSION}; give another --output")
        try:
            return cls(**{
                **data, "model": CvTConfig.from_dict(data["model"]), "size": tuple(data["size"]),
                "base": _scored(data["base"]) if data["base"] else None,
                **{key: tuple(map(_scored, data[key])) for key in ("evolution", "random")}})
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path} is not a complete search ({error}); give another --output"
                             ) from None


def _scored(data: Mapping[str, Any]) -> Scored:
    choice: Choice = tuple((stride, ratio) for stride, ratio in data["choice"])
    return Scored(choice=choice, multiply_adds=data["multiply_adds"], top1=data["top1"])
