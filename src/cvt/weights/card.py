"""The `config.json` of a trained model: network, preprocessing and classes. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from cvt.config import VARIANTS, CvTConfig, Preprocess
from cvt.system.errors import InputError, did_you_mean
from cvt.system.schema import check_types, from_mapping, read_mapping, write_mapping
from cvt.weights.official import from_official_yaml

CONFIG = "config.json"

Network = Literal["cvt", "vit", "vit_without_position", "resnet", "supernet"]


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """Everything but the weights that is needed to classify an image; saved as config.json."""

    model: CvTConfig
    """Configuration of the network."""
    preprocess: Preprocess
    """Preprocessing from an image to the input of the network."""
    classes: tuple[str, ...]
    """Class names, in the order of the logits."""
    network: Network = "cvt"
    """The CvT of `model`, or a baseline that was trained instead."""

    def __post_init__(self) -> None:
        check_types(self)
        if len(self.classes) != self.model.num_classes:
            raise InputError(f"{len(self.classes)} class names for a classifier of "
                             f"{self.model.num_classes} classes; give one name per class")
        if self.preprocess.channels != self.model.in_chans:
            raise InputError(f"preprocessing gives {self.preprocess.channels} channels, the model "
                             f"takes in_chans={self.model.in_chans}; mean and std need one value "
                             "per channel")
        self.model.grids((self.preprocess.size, self.preprocess.size))

    def to_dict(self) -> dict[str, Any]:
        """Content of config.json."""
        network = {} if self.network == "cvt" else {"network": self.network}
        return {"model": self.model.to_dict(), "preprocess": asdict(self.preprocess),
                "classes": list(self.classes), **network}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ModelCard:
        """Card from plain data. Raises InputError for a missing or unknown key."""
        if "preprocess" not in data:  # all its fields have defaults, which may be wrong here
            raise InputError("it lacks the key 'preprocess'")
        return from_mapping(cls, {
            **data,
            "model": CvTConfig.from_dict(data.get("model", {})),
            "preprocess": from_mapping(Preprocess, data["preprocess"], "preprocess"),
        }, "it")

    def save(self, directory: str | Path) -> None:
        """Write config.json into `directory`, which must exist."""
        write_mapping(self.to_dict(), Path(directory) / CONFIG)

    @classmethod
    def load(cls, directory: str | Path) -> ModelCard:
        """Read config.json. Raises InputError if it is missing or invalid."""
        path = Path(directory) / CONFIG
        if not path.is_file():
            raise InputError(f"{directory} has no {CONFIG}; give a directory written by "
                             "`cvt train --output`")
        try:
            return cls.from_dict(read_mapping(path))
        except InputError as error:
            raise InputError(f"{path}: {str(error).removeprefix(f'{path} ')}") from None


def find_config(name: str) -> CvTConfig:
    """Configuration of a variant, of a .json or .yaml file of this package or of microsoft/CvT, or
    of the directory of a trained model. Raises InputError for any other name."""
    path = Path(name)
    if name in VARIANTS:
        return VARIANTS[name]
    if path.is_dir():
        return ModelCard.load(path).model
    if path.suffix in (".json", ".yaml", ".yml"):
        if not path.is_file():
            raise InputError(f"{name} does not exist; give a configuration file or one of "
                             f"{', '.join(VARIANTS)}")
        official = "MODEL" in read_mapping(path)
        return from_official_yaml(path) if official else CvTConfig.load(path)
    raise InputError(f"{name!r} is neither a variant nor a configuration file; "
                     f"{did_you_mean(name, VARIANTS)}")
