"""What goes with a model's weights: `config.json`, which rebuilds the model. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from cvt.config import VARIANTS, CvTConfig, Preprocess
from cvt.system.errors import InputError, did_you_mean
from cvt.system.schema import check_types, from_mapping, read_mapping, write_mapping

CONFIG = "config.json"

Network = Literal["cvt", "vit", "vit_without_position", "resnet", "supernet"]


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """What classifying an image needs beside the weights; the content of config.json."""

    model: CvTConfig
    """The network."""
    preprocess: Preprocess
    """The way from an image to its input."""
    classes: tuple[str, ...]
    """The name of each logit."""
    network: Network = "cvt"
    """The CvT of `model`, or what was trained in its place to compare it with."""

    def __post_init__(self) -> None:
        check_types(self)
        if len(self.classes) != self.model.num_classes:
            raise InputError(f"{len(self.classes)} class names for a classifier of "
                             f"{self.model.num_classes}; give one name a class")
        if self.preprocess.channels != self.model.in_chans:
            raise InputError(f"preprocessing gives {self.preprocess.channels} channels, the model "
                             f"takes in_chans={self.model.in_chans}; give mean and std that many "
                             "entries")
        self.model.grids((self.preprocess.size, self.preprocess.size))

    def to_dict(self) -> dict[str, Any]:
        """The content of config.json."""
        other = {} if self.network == "cvt" else {"network": self.network}
        return {"model": self.model.to_dict(), "preprocess": asdict(self.preprocess),
                "classes": list(self.classes), **other}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ModelCard:
        """The card that `data` describes. Raises InputError for a missing or unknown key."""
        if "preprocess" not in data:  # its fields all have defaults, which may not be this model's
            raise InputError("it lacks the key 'preprocess'")
        return from_mapping(cls, {
            **data,
            "model": CvTConfig.from_dict(data.get("model", {})),
            "preprocess": from_mapping(Preprocess, data["preprocess"], "preprocess"),
        }, "it")

    def save(self, directory: str | Path) -> None:
        """Write config.json into `directory`, which exists."""
        write_mapping(self.to_dict(), Path(directory) / CONFIG)

    @classmethod
    def load(cls, directory: str | Path) -> ModelCard:
        """Read config.json. Raises InputError where it is absent or says nonsense."""
        path = Path(directory) / CONFIG
        if not path.is_file():
            raise InputError(f"{directory} has no {CONFIG}; a model is the directory that "
                             "`cvt train --output` wrote")
        try:
            return cls.from_dict(read_mapping(path))
        except InputError as error:
            raise InputError(f"{path}: {str(error).removeprefix(f'{path} ')}") from None


def find_config(name: str) -> CvTConfig:
    """The configuration that `name` stands for.

    A variant, a .json or .yaml file of this package or of microsoft/CvT, or the directory of a
    trained model. Raises InputError where it is none of these.
    """
    path = Path(name)
    if name in VARIANTS:
        return VARIANTS[name]
    if path.is_dir():
        return ModelCard.load(path).model
    if path.suffix in (".json", ".yaml", ".yml"):
        if not path.is_file():
            raise InputError(f"{name} is not there; give a configuration file or one of "
                             f"{', '.join(VARIANTS)}")
        official = "MODEL" in read_mapping(path)
        return CvTConfig.from_official_yaml(path) if official else CvTConfig.load(path)
    raise InputError(f"{name!r} is neither a variant nor a configuration file; "
                     f"{did_you_mean(name, VARIANTS)}")
