"""The manifest of an exported model: `manifest.json`, which says how to use the graph. No torch."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cvt.system.errors import InputError
from cvt.system.schema import check, check_types, from_mapping, read_mapping, write_mapping
from cvt.weights.card import ModelCard

Format = Literal["onnx", "openvino", "torch"]
Precision = Literal["fp32", "bf16", "int8"]

MANIFEST = "manifest.json"
SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Description of an exported model. Raises InputError for invalid values."""

    format: Format
    """The runtime that the graph is for."""
    precision: Precision
    """Arithmetic precision. For "openvino" with "bf16" it is a hint for the compilation."""
    graph: str
    """File name of the graph: model.onnx, model.xml or model.pt2."""
    hashes: Mapping[str, str]
    """Hexadecimal SHA-256 of every other file in the directory, by file name."""
    card: ModelCard
    """Network, preprocessing and classes."""
    parity: Mapping[str, float]
    """Comparison with the PyTorch model in float32: `difference` (largest of any logit, relative
    to the largest logit) and `agreement` (fraction of equal top-1 in [0, 1]) on `images` images or
    `noise` images of noise; `accuracy_before` and `accuracy_after` (top-1 in percent) on `labelled`
    images, if given; `calibrated`, the number of calibration images of int8."""
    versions: Mapping[str, str]
    """Versions of the packages that wrote it, by name."""
    schema: int = SCHEMA
    """Version of this file's schema; a newer one than `SCHEMA` is rejected."""

    def __post_init__(self) -> None:
        check_types(self)
        check(self.schema >= 1, f"schema={self.schema} must be at least 1")
        for name in (self.graph, *self.hashes):
            check(_plain(name), f"{name!r} is not the name of a file beside {MANIFEST}")
        check(self.graph in self.hashes, f"graph={self.graph!r} is not among the hashes")

    def to_dict(self) -> dict[str, Any]:
        """Return the content of manifest.json."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        plain = {k: dict(v) if isinstance(v, Mapping) else v for k, v in fields.items()}
        return {"schema": plain.pop("schema"), **plain, "card": self.card.to_dict()}

    def save(self, directory: str | Path) -> None:
        """Write manifest.json into the existing `directory`."""
        write_mapping(self.to_dict(), Path(directory) / MANIFEST)

    @classmethod
    def load(cls, directory: str | Path, *, verify: bool = True) -> Manifest:
        """Read manifest.json and check that its files exist and, with `verify`, match their hashes.

        Raises InputError if it is missing, corrupt, invalid, of a newer schema or names files
        outside the directory, and if a file is missing or has another hash.
        """
        directory = Path(directory)
        path = directory / MANIFEST
        if not path.is_file():
            raise InputError(f"{directory} has no {MANIFEST}; an exported model is the directory "
                             "that `cvt export` wrote")
        data = read_mapping(path)
        schema = data.get("schema")
        if isinstance(schema, int) and schema > SCHEMA:
            raise InputError(f"{path} has schema {schema}, this version reads {SCHEMA}; install "
                             "the version of cvt-torch that wrote it, or a newer one")
        try:
            manifest = from_mapping(cls, {**data, "card": _card(data.get("card"))}, "it")
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
        for name, expected in manifest.hashes.items():
            file = directory / name
            if not file.is_file():
                raise InputError(f"{directory} lacks {name}, which its {MANIFEST} names; copy the "
                                 "whole directory again")
            if verify and sha256(file) != expected:
                raise InputError(f"{file} is corrupt or was edited after the export: its SHA-256 "
                                 f"differs from that in {MANIFEST}; copy it again or export again")
        return manifest


def sha256(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_files(directory: Path) -> dict[str, str]:
    """Return the SHA-256 of every file in `directory` except the manifest, by file name."""
    return {path.name: sha256(path) for path in sorted(directory.iterdir())
            if path.is_file() and path.name != MANIFEST}


def _plain(name: object) -> bool:
    """Whether `name` is a file name without a path, on any system."""
    return (isinstance(name, str) and name not in ("", ".", "..", MANIFEST)
            and not any(c in name for c in "/\\:\0"))


def _card(data: object) -> ModelCard:
    if not isinstance(data, Mapping) or not {"model", "preprocess"} <= set(data):
        raise InputError("card is not the card of a model, with its model and preprocess")
    return ModelCard.from_dict(data)
