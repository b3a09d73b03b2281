"""The checkpoints of a run: complete, verified, and nothing in them that can execute.

    checkpoints/step-00001200/
        model.safetensors, optimizer.safetensors, [ema.safetensors]
        state.json       plain values: schedule, history, counters
        manifest.json    size and SHA-256 of every other file, and of itself

A checkpoint is written under a hidden name, synced to the disk and renamed, so a directory called
step-N is complete unless the disk has corrupted it since. Its hashes are verified before use.
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

_STEP, _CORRUPT = "step-", "corrupt-"


@dataclass(frozen=True, kw_only=True)
class TrainingCheckpoint:
    """What a run needs to continue from a step as if it had never stopped."""

    step: int
    """Optimiser steps done."""
    tensors: Mapping[str, Mapping[str, Tensor]]
    """State dicts: `model`, `optimizer` and, if there is a moving average, `ema`."""
    state: Mapping[str, Any]
    """Plain values; JSON preserves floats bit for bit."""


class _FormatError(InputError):
    """A checkpoint that another version wrote, and that may be intact."""


class CheckpointStore:
    """The checkpoints in `directory`: the last `keep`, and one more that the caller protects."""

    def __init__(self, directory: Path, keep: int = 2) -> None:
        self.directory, self.keep = directory, keep

    def save(self, checkpoint: TrainingCheckpoint, protect: int | None = None) -> None:
        """Write a checkpoint; then remove those that are neither recent nor of step `protect`.

        Raises OSError if the disk is full or fails; earlier checkpoints are then unchanged.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        path = self.directory / _name(checkpoint.step)
        self._sweep()
        part = self.directory / f".{path.name}.{secrets.token_hex(4)}"
        part.mkdir()  # not by mkdtemp, which makes its directory private to the owner
        try:
            for name, tensors in checkpoint.tensors.items():
                save_file({k: t.detach().contiguous() for k, t in tensors.items()},
                          part / f"{name}.safetensors")
            (part / STATE).write_bytes(_json(checkpoint.state))
            for file in part.iterdir():
                _sync(file)
            (part / MANIFEST).write_bytes(_manifest(part, checkpoint.step))
            _sync(part / MANIFEST)
            _sync(part)
            if path.exists():  # the run was rolled back, or it is corrupt
                self._remove(path)
            part.rename(path)
            _sync(self.directory)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
        for i, (step, old) in enumerate(self._steps()):
            if i >= self.keep and step != protect:
                self._remove(old)

    def repair(self) -> list[str]:
        """Rename every checkpoint that is newer than the newest intact one to corrupt-step-N.

        Returns a message for each. Raises InputError and renames nothing if none is intact, or if
        one has another version's format.
        """
        self._sweep()
        corrupt: list[tuple[Path, InputError]] = []
        for _, path in self._steps():
            try:
                _verify(path)
                break
            except _FormatError:
                raise
            except InputError as error:
                corrupt.append((path, error))
        else:
            if corrupt:  # each keeps its name, so that the next attempt does not restart the run
                raise InputError(f"no checkpoint in {self.directory} is intact: "
                                 + "; ".join(str(reason) for _, reason in corrupt))
        messages = []
        for path, reason in corrupt:
            renamed = path.with_name(f"{_CORRUPT}{path.name}")
            if renamed.exists():
                shutil.rmtree(renamed)
            path.rename(renamed)
            messages.append(f"{reason}; it is renamed to {renamed.name}")
        return messages

    def latest_step(self) -> int | None:
        """The step of the latest checkpoint; None if there is none."""
        return next((step for step, _ in self._steps()), None)

    def read(self, step: int) -> TrainingCheckpoint:
        """The checkpoint of one step. Raises InputError if it is missing or corrupt."""
        path = self.directory / _name(step)
        manifest = _verify(path)
        with _corruption_as_input_error(path):
            # Copied, because training continues with them after this checkpoint is removed, and
            # Windows does not remove a file that is mapped into memory.
            tensors = {Path(name).stem: {k: t.clone() for k, t in read_tensors(path / name).items()}
                       for name in manifest["files"] if name.endswith(".safetensors")}
            return TrainingCheckpoint(step=manifest["step"], tensors=tensors,
                                      state=json.loads((path / STATE).read_bytes()))

    def _steps(self) -> list[tuple[int, Path]]:
        """Steps and directories, the latest first."""
        paths = self.directory.glob(f"{_STEP}*") if self.directory.is_dir() else ()
        return sorted(((int(step), path) for path in paths
                       if (step := path.name.removeprefix(_STEP)).isdecimal()), reverse=True)

    def _remove(self, path: Path) -> None:
        """Rename to a hidden name first, so that a partly removed one is never used."""
        hidden = Path(tempfile.mkdtemp(prefix=".old.", dir=self.directory))
        path.rename(hidden / path.name)
        shutil.rmtree(hidden, ignore_errors=True)

    def _sweep(self) -> None:
        """Remove what an earlier process was writing or removing when it was killed."""
        for path in self.directory.glob(".*"):
            shutil.rmtree(path, ignore_errors=True)


def _name(step: int) -> str:
    return f"{_STEP}{step:08d}"


def _verify(path: Path) -> dict[str, Any]:
    """The manifest of a checkpoint. Raises InputError if a file is missing or has changed."""
    with _corruption_as_input_error(path):
        written = (path / MANIFEST).read_bytes()
        manifest: dict[str, Any] = json.loads(written)
        names = sorted(manifest["files"])
        if written != _signed(manifest):  # also if only the format number is corrupt
            raise InputError(f"{path} is corrupt: the contents of {MANIFEST} have changed")
        if manifest["format"] != FORMAT:
            raise _FormatError(f"{path} has format {manifest['format']}, and this version reads "
                               f"{FORMAT}; continue with the version that wrote it")
        present = sorted(p.name for p in path.iterdir() if p.name != MANIFEST)
        for name in sorted({*names, *present}):
            if name not in present:
                raise InputError(f"{path} is corrupt: {name} is missing")
            if name not in names:
                raise InputError(f"{path} is corrupt: {name} does not belong to it")
            if manifest["files"][name] != _entry(path / name):
                raise InputError(f"{path} is corrupt: the contents of {name} have changed")
        if path.name != _name(manifest["step"]):
            raise InputError(f"{path} is corrupt: it holds step {manifest['step']}")
        return manifest


def _manifest(path: Path, step: int) -> bytes:
    return _signed({"format": FORMAT, "step": step, "files": {
        p.name: _entry(p) for p in sorted(path.iterdir()) if p.name != MANIFEST}})


def _signed(manifest: Mapping[str, Any]) -> bytes:
    """The contents of a manifest's file, with its own hash."""
    body = {key: value for key, value in manifest.items() if key != "sha256"}
    return _json({**body, "sha256": hashlib.sha256(_json(body)).hexdigest()})


def _entry(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": sha256(path)}


def _json(data: Mapping[str, Any]) -> bytes:
    return json.dumps(data, indent=1, sort_keys=True).encode() + b"\n"


@contextlib.contextmanager
def _corruption_as_input_error(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is corrupt: {error}") from None


def _sync(path: Path) -> None:
    """Flush a file, or the names in a directory, to the disk."""
    if path.is_file():  # Windows syncs only files that are open for writing
        with path.open("r+b") as file:
            os.fsync(file.fileno())
    elif os.name != "nt":  # which cannot open a directory
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
