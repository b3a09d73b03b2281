"""What a run starts from: the network for a dataset, random or with weights, and what is frozen."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from torch import nn

from cvt.data.classes import class_order
from cvt.data.dataset import Dataset
from cvt.model import CvT
from cvt.system.errors import InputError
from cvt.train.config import FreezeConfig
from cvt.train.recipe import Recipe
from cvt.weights.card import ModelCard
from cvt.weights.checkpoint import Checkpoint
from cvt.weights.load import LoadReport, fit
from cvt.weights.models import open_checkpoint


def starting_point(recipe: Recipe, dataset: Dataset) -> tuple[ModelCard, Checkpoint | None]:
    """The card of the network to train, and the weights it starts from, if any.

    With weights, network and preprocessing are theirs, but for what the recipe sets; their head is
    kept where its classes are those of the dataset, by name. Raises InputError where they cannot be
    had, or are of another network than `recipe.model`, or where all stages are frozen and the
    recipe sets what is for stages that are trained.
    """
    classes = dataset.train.classes
    if recipe.weights is None:
        preprocess = recipe.preprocess(dataset.preprocess)
        return ModelCard(model=recipe.config(len(classes), preprocess.size), preprocess=preprocess,
                         classes=classes, network=recipe.network), None
    checkpoint = open_checkpoint(recipe.weights, model=recipe.model)
    own = checkpoint.card.model
    if recipe.model is not None:
        wanted = recipe.config(len(classes))
        if [(s.dim, s.depth) for s in wanted.stages] != [(s.dim, s.depth) for s in own.stages]:
            raise InputError(f"weights={recipe.weights} are of another network than "
                             f"model={recipe.model}; leave model out, and it is theirs")
    if recipe.freeze.stages == len(own.stages):
        recipe.check_frozen(f"freeze.stages={recipe.freeze.stages}")
    preprocess = recipe.preprocess(checkpoint.card.preprocess)
    return ModelCard(model=recipe.config(len(classes), preprocess.size, own),
                     preprocess=preprocess, classes=classes), _with_head(checkpoint, classes)


def _with_head(checkpoint: Checkpoint, classes: tuple[str, ...]) -> Checkpoint:
    """The checkpoint with the rows of its head for `classes`, and a note on them."""
    known, weight = checkpoint.card.classes, checkpoint.tensors.get("head.weight")
    if weight is None:
        return checkpoint
    order, head = class_order(classes, known), list[int]()
    if not checkpoint.has_class_names or len(weight) != len(known):
        note = "it does not name its classes, so the head is new"
    elif isinstance(order, str):
        note = f"its classes are not the dataset's, such as {order!r}, so the head is new"
    else:
        head, note = order, "its classes are the dataset's, by name, so the head is kept"
    return dataclasses.replace(checkpoint, head_rows=tuple(head), notes=(*checkpoint.notes, note))


def put_weights(model: CvT, checkpoint: Checkpoint) -> LoadReport:
    """Load the weights into `model`; the head, input channels and position embeddings may differ.

    `checkpoint` is that of `starting_point`, which says what of its head is for the model's
    classes. Raises InputError where anything else does.
    """
    tensors, report = fit(model, checkpoint.tensors, checkpoint.path,
                          adapt=("head", "in_chans", "pos_embed"), format=checkpoint.format,
                          renamed=checkpoint.renamed, notes=checkpoint.notes,
                          head_rows=checkpoint.head_rows)
    model.load_state_dict(tensors, strict=False)
    return report


def freeze(model: CvT, config: FreezeConfig) -> Sequence[nn.Module]:
    """Take the gradient from what `config` names; those modules, which must stay in evaluation.

    Raises InputError for more stages than `model` has.
    """
    stages: list[nn.Module] = list(model.stages)
    if config.stages > len(stages):
        raise InputError(f"freeze.stages={config.stages}, and the network has {len(stages)}; "
                         "freeze.trunk freezes them all")
    frozen: list[nn.Module] = [*stages, model.norm] if config.trunk else stages[:config.stages]
    if config.batchnorm:
        frozen += [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for module in frozen:
        module.requires_grad_(False)
    return frozen
