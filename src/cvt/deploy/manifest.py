"""What lies beside an exported graph: `manifest.json`, which says how to use it. No torch."""

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
    """An exported model but for its graph. Raises InputError for values that mean nothing."""

    format: Format
    """Which runtime the graph is for."""
    precision: Precision
    """What it computes in. For "openvino" and "bf16" it is a hint to give when compiling."""
    graph: str
    """The graph's file in the directory: model.onnx, model.xml or model.pt2."""
    hashes: Mapping[str, str]
    """SHA-256, in hexadecimal, of every other file in the directory, by name."""
    card: ModelCard
    """Network, preprocessing and classes."""
    parity: Mapping[str, float]
    """Against the PyTorch model in float32: `difference` (largest of logits, over the largest
    logit), `agreement` (fraction of equal top-1 in [0, 1]), on `images` images and `noise`
    images of noise; `accuracy_before` and `accuracy_after` (top-1 in percent) on `labelled`
    images, where they were given; `calibrated` images behind int8."""
    versions: Mapping[str, str]
    """What wrote it: package name to version."""
    schema: int = SCHEMA
    """Of this file; a reader refuses one newer than it knows."""

    def __post_init__(self) -> None:
        check_types(self)
        check(self.schema >= 1, f"schema={self.schema} must be a number from 1")
        for name in (self.graph, *self.hashes):
            check(_plain(name), f"{name!r} is not the name of a file beside {MANIFEST}")
        check(self.graph in self.hashes, f"graph={self.graph!r} is not among the hashes")

    def to_dict(self) -> dict[str, Any]:
        """The content of manifest.json."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        plain = {k: dict(v) if isinstance(v, Mapping) else v for k, v in fields.items()}
        return {"schema": plain.pop("schema"), **plain, "card": self.card.to_dict()}

    def save(self, directory: str | Path) -> None:
        """Write manifest.json into `directory`, which exists."""
        write_mapping(self.to_dict(), Path(directory) / MANIFEST)

    @classmethod
    def load(cls, directory: str | Path, *, verify: bool = True) -> Manifest:
        """Read manifest.json; every file that it names is there and, with `verify`, unchanged.

        Raises InputError where it is absent, damaged, of a newer schema, says nonsense or names
        files outside the directory, and where a file is missing or has another hash.
        """
        directory = Path(directory)
        path = directory / MANIFEST
        if not path.is_file():
            raise InputError(f"{directory} has no {MANIFEST}; an exported model is the directory "
                             "that `cvt export` wrote")
        data = read_mapping(path)
        schema = data.get("schema")
        if isinstance(schema, int) and schema > SCHEMA:
            raise InputError(f"{path} is of schema {schema}, this version knows {SCHEMA}; install "
                             "the version of cvt-torch that wrote it, or a later one")
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
                raise InputError(f"{file} is not what was exported: its SHA-256 differs from that "
                                 f"in {MANIFEST}, so it was damaged or edited after the export; "
                                 "copy it again or export again")
        return manifest


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_files(directory: Path) -> dict[str, str]:
    """The SHA-256 of every file in `directory` but the manifest, by name."""
    return {path.name: sha256(path) for path in sorted(directory.iterdir())
            if path.is_file() and path.name != MANIFEST}


def _plain(name: object) -> bool:
    """Whether `name` can only be a file in the directory itself, on any system."""
    return (isinstance(name, str) and name not in ("", ".", "..", MANIFEST)
            and not any(c in name for c in "/\\:\0"))


def _card(data: object) -> ModelCard:
    if not isinstance(data, Mapping) or not {"model", "preprocess"} <= set(data):
        raise InputError("card is not the card of a model, with its model and preprocess")
    return ModelCard.from_dict(data)
