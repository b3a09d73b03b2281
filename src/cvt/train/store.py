"""The checkpoints of a run: whole, verified, and nothing in them that can execute.

    checkpoints/step-00001200/
        model.safetensors, optimizer.safetensors, [ema.safetensors]
        state.json       plain values: schedule, history, counters
        manifest.json    size and SHA-256 of every other file, and of itself

A checkpoint is written under a hidden name, synced to the disk and renamed, so a directory called
step-N is whole unless the disk has damaged it since. That is seen by its hashes before it is used.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from cvt.deploy.manifest import sha256
from cvt.system.errors import InputError
from cvt.weights.tensors import read_tensors

FORMAT = 2
MANIFEST = "manifest.json"
STATE = "state.json"

_WHOLE, _DAMAGED = "step-", "damaged-"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What a run needs to go on from a step as if it had never stopped."""

    step: int
    """Optimiser steps that are done."""
    tensors: Mapping[str, Mapping[str, Tensor]]
    """Dicts of tensors by name: `model`, `optimizer` and, where there is one, `ema`."""
    state: Mapping[str, Any]
    """Plain values, as JSON has them; floats come back bit for bit."""


class _FormatError(InputError):
    """A checkpoint that another version wrote: it may be whole."""


class Store:
    """The checkpoints in `directory`: the last `keep`, and one more that a caller protects."""

    def __init__(self, directory: Path, keep: int = 2) -> None:
        self.directory, self.keep = directory, keep

    def save(self, checkpoint: Checkpoint, protect: int | None = None) -> Path:
        """Write a checkpoint; then those that are neither recent nor of step `protect` go.

        Raises OSError where the disk is full or fails; what was there before is then still there.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        place = self.directory / _name(checkpoint.step)
        self._sweep()
        part = self.directory / f".{place.name}.{secrets.token_hex(4)}"
        part.mkdir()  # not by mkdtemp, which keeps its directory to the owner
        try:
            for name, tensors in checkpoint.tensors.items():
                save_file({k: t.detach().contiguous() for k, t in tensors.items()},
                          part / f"{name}.safetensors")
            (part / STATE).write_bytes(_json(checkpoint.state))
            for path in part.iterdir():
                _sync(path)
            (part / MANIFEST).write_bytes(_manifest(part, checkpoint.step))
            _sync(part / MANIFEST)
            _sync(part)
            if place.exists():  # of a run that was rolled back behind it, or damaged
                self._remove(place)
            part.rename(place)
            _sync(self.directory)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
        kept = {step for step, _ in self._found()[:self.keep]} | {protect}
        for step, path in self._found():
            if step not in kept:
                self._remove(path)
        return place

    def repair(self) -> list[str]:
        """Set aside every checkpoint that is newer than the newest whole one; a sentence for each.

        It gets the name damaged-step-N. Raises InputError, and leaves all as they are, where none
        is whole, and where one is of another version's format.
        """
        self._sweep()
        damaged: list[tuple[Path, InputError]] = []
        for _, path in self._found():
            try:
                _verify(path)
                break
            except _FormatError:
                raise
            except InputError as error:
                damaged.append((path, error))
        else:
            if damaged:  # each stays where it is, so that the next attempt does not begin anew
                raise InputError(f"no checkpoint in {self.directory} is whole: "
                                 + "; ".join(str(error) for _, error in damaged))
        return [self._set_aside(path, error) for path, error in damaged]

    def newest_step(self) -> int | None:
        """The step of the newest checkpoint, None where there is none to go on from."""
        found = self._found()
        return found[0][0] if found else None

    def read(self, step: int) -> Checkpoint:
        """The checkpoint of one step. Raises InputError where it is missing or damaged."""
        return self._read(self.directory / _name(step))

    def _read(self, path: Path) -> Checkpoint:
        manifest = _verify(path)
        with _damage_named(path):
            # Copied, for the run goes on from them when this checkpoint is removed, which Windows
            # does not do with a file that is mapped into memory.
            tensors = {Path(name).stem: {k: t.clone() for k, t in read_tensors(path / name).items()}
                       for name in manifest["files"] if name.endswith(".safetensors")}
            return Checkpoint(step=manifest["step"], tensors=tensors,
                              state=json.loads((path / STATE).read_bytes()))

    def _found(self) -> list[tuple[int, Path]]:
        """Steps and directories, the newest first."""
        if not self.directory.is_dir():
            return []
        found = [(int(path.name.removeprefix(_WHOLE)), path)
                 for path in self.directory.glob(f"{_WHOLE}*")
                 if path.name.removeprefix(_WHOLE).isdecimal()]
        return sorted(found, reverse=True)

    def _set_aside(self, path: Path, error: InputError) -> str:
        aside = path.with_name(f"{_DAMAGED}{path.name}")
        if aside.exists():
            shutil.rmtree(aside)
        path.rename(aside)
        return f"{error}; it is set aside as {aside.name}"

    def _remove(self, path: Path) -> None:
        """Under a hidden name first, so that one that is half gone is never taken for whole."""
        hidden = Path(tempfile.mkdtemp(prefix=".old.", dir=self.directory))
        path.rename(hidden / path.name)
        shutil.rmtree(hidden, ignore_errors=True)

    def _sweep(self) -> None:
        """What an earlier process was writing or taking away when it was killed."""
        for path in self.directory.glob(".*"):
            shutil.rmtree(path, ignore_errors=True)


def _name(step: int) -> str:
    return f"{_WHOLE}{step:08d}"


def _verify(path: Path) -> dict[str, Any]:
    """The manifest of a checkpoint. Raises InputError unless every file is as it was written."""
    with _damage_named(path):
        written = (path / MANIFEST).read_bytes()
        manifest: dict[str, Any] = json.loads(written)
        names = sorted(manifest["files"])
        if written != _signed(manifest):  # also where it is the format's number that is harmed
            raise InputError(f"{path} is damaged: {MANIFEST} is not what was written")
        if manifest["format"] != FORMAT:
            raise _FormatError(f"{path} has format {manifest['format']}, and this version reads "
                             f"{FORMAT}; go on with the version that wrote it")
        there = sorted(p.name for p in path.iterdir() if p.name != MANIFEST)
        for name in sorted({*names, *there}):
            if name not in there:
                raise InputError(f"{path} is damaged: {name} is missing")
            if name not in names:
                raise InputError(f"{path} is damaged: {name} does not belong to it")
            if manifest["files"][name] != _entry(path / name):
                raise InputError(f"{path} is damaged: {name} is not what was written")
        if path.name != _name(manifest["step"]):
            raise InputError(f"{path} is damaged: it holds step {manifest['step']}")
        return manifest


def _manifest(path: Path, step: int) -> bytes:
    return _signed({"format": FORMAT, "step": step, "files": {
        p.name: _entry(p) for p in sorted(path.iterdir()) if p.name != MANIFEST}})


def _signed(manifest: Mapping[str, Any]) -> bytes:
    """A manifest as its file holds it, with its own hash."""
    body = {key: value for key, value in manifest.items() if key != "sha256"}
    return _json({**body, "sha256": hashlib.sha256(_json(body)).hexdigest()})


def _entry(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": sha256(path)}


def _json(data: Mapping[str, Any]) -> bytes:
    return json.dumps(data, indent=1, sort_keys=True).encode() + b"\n"


@contextlib.contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is damaged: {error}") from None


def _sync(path: Path) -> None:
    """Onto the disk: a file's contents, or a directory's names."""
    if path.is_file():  # Windows syncs only what is open to be written
        with path.open("r+b") as file:
            os.fsync(file.fileno())
    elif os.name != "nt":  # which cannot open a directory
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
