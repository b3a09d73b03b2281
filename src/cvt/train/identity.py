"""What a run was begun with, held against what is here now: recipe, network, images, an epoch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from cvt.data.dataset import Dataset
from cvt.data.fingerprint import differences, fingerprint, hash_parts
from cvt.evaluate.run import RECIPE
from cvt.system.errors import InputError
from cvt.train.recipe import LENGTH, MACHINE, PLACES, Recipe
from cvt.weights.card import CONFIG, ModelCard

_DATA = ("data.", "max_train_samples")  # options that say which images


def identity(recipe: Recipe, card: ModelCard, dataset: Dataset, batches: int,
             teacher: nn.Module | None) -> dict[str, Any]:
    """All that decides what a run comes to, as plain data that a checkpoint holds.

    batches: in an epoch. teacher: of distillation.
    """
    tensors = {} if teacher is None else teacher.state_dict()
    return json.loads(json.dumps({  # as it comes back from a checkpoint
        "recipe": recipe.flat(), "card": card.to_dict(), "data": fingerprint(dataset),
        "batches": batches, "teacher": hash_parts(
            tensor.detach().cpu().numpy().tobytes() for tensor in tensors.values())}))


def compare(before: Mapping[str, Any], now: Mapping[str, Any], run: Path, *, accept: bool
            ) -> list[str]:
    """What differs of the images, each in a few words: nothing, unless `accept` takes it.

    Raises InputError for whatever else differs, but how long the run is and how it is computed. Of
    files it is their contents that count, not where they lie.
    """
    recipe = {name: f"{name}={value!r} in {RECIPE}, was {before['recipe'].get(name)!r}"
              for name, value in now["recipe"].items()
              if name not in LENGTH | MACHINE | PLACES and before["recipe"].get(name) != value}
    other = [words for name, words in recipe.items() if not name.startswith(_DATA)]
    data = [words for name, words in recipe.items() if name.startswith(_DATA)]
    if before["data"]["classes"] != now["data"]["classes"]:
        other += differences(before["data"], now["data"])[:1]
    elif before["card"] != now["card"] and not other:
        part = next(key for key in now["card"] if before["card"].get(key) != now["card"][key])
        other = [f"the {part} in {CONFIG}, or the file that it is from, is not what it was"]
    if before["teacher"] != now["teacher"] and not other:
        other = [f"the weights of distill.teacher={now['recipe']['distill.teacher']}"]
    if other:
        raise InputError(
            f"the run in {run} cannot go on: {'; '.join(other)}. Put that back as it was, or start "
            f"another run: --weights {run / 'last.safetensors'} --output DIR takes what it has "
            "learned")
    data += differences(before["data"], now["data"])
    if before["batches"] != now["batches"] and not data:
        data = [f"an epoch has {now['batches']} steps, had {before['batches']}"]
    if data and not accept:
        raise InputError(
            f"the run in {run} cannot go on as it was begun, with other data: {'; '.join(data)}. "
            "Put them back as they were, or go on with what is there now by cvt train --resume "
            f"{run} --accept-data-changes, which begins the epoch anew")
    return data
