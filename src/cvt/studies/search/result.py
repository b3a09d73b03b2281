"""What a search found, and its file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cvt.config import CvTConfig
from cvt.networks.supernet import Choice, chosen
from cvt.studies.search.evolve import Scored, ranked
from cvt.system.errors import InputError
from cvt.system.files import replace_file
from cvt.system.schema import read_mapping

VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Result:
    """A search, with every network that was scored."""

    settings: Mapping[str, Any]
    """The search's and the recipe's options, as plain data."""
    model: CvTConfig
    """What all networks have in common."""
    budget: int
    """Multiply-adds, at most."""
    size: tuple[int, int]
    """(H, W) in pixels, for which they are counted."""
    least: int
    """The fewest multiply-adds of any network of the space."""
    most: int
    """The most."""
    networks: int
    """How many networks of the space meet the budget."""
    trained: int
    """Images that the supernet was trained on."""
    held_out: int
    """Other training images, that networks were scored on."""
    base: Scored | None
    """The network that the recipe names, which may be above the budget; None where it is not of the
    space."""
    evolution: tuple[Scored, ...]
    """In the order they were scored."""
    random: tuple[Scored, ...]
    """Of random search with as many evaluations."""

    @property
    def found(self) -> Scored:
        """The best of evolution."""
        return ranked(self.evolution)[0]

    @property
    def found_at_random(self) -> Scored:
        """The best of random search."""
        return ranked(self.random)[0]

    def config(self, scored: Scored) -> CvTConfig:
        """The network of `scored`."""
        return chosen(self.model, scored.choice)

    def save(self, path: Path) -> None:
        """Write all of it as JSON."""
        text = json.dumps({"version": VERSION, **asdict(self), "model": self.model.to_dict()})
        replace_file(path, lambda part: part.write_text(text + "\n", encoding="utf-8"))

    @classmethod
    def load(cls, path: Path) -> Result:
        """Read what `save` wrote. Raises InputError for a file of another version or content."""
        data = read_mapping(path)
        version = data.pop("version", None)
        if version != VERSION:
            raise InputError(f"{path} is a search of version {version}, and this is version "
                             f"{VERSION}; give another --output")
        try:
            return cls(**{
                **data, "model": CvTConfig.from_dict(data["model"]), "size": tuple(data["size"]),
                "base": _scored(data["base"]) if data["base"] else None,
                **{key: tuple(map(_scored, data[key])) for key in ("evolution", "random")}})
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path} is not a whole search ({error}); give another --output"
                             ) from None


def _scored(data: Mapping[str, Any]) -> Scored:
    choice: Choice = tuple((stride, ratio) for stride, ratio in data["choice"])
    return Scored(choice=choice, multiply_adds=data["multiply_adds"], top1=data["top1"])
