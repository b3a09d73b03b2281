"""Load the dataset that a `DataConfig` names."""

from __future__ import annotations

from pathlib import Path

from cvt.data.config import DataConfig
from cvt.data.dataset import Dataset
from cvt.data.sources.builtin import digits, fashion_mnist
from cvt.data.sources.folder import folder
from cvt.data.sources.huggingface import huggingface
from cvt.data.sources.manifest import manifest
from cvt.data.sources.shards import shards
from cvt.system.errors import InputError


def load_dataset(config: DataConfig, *, hold_out: bool = True) -> Dataset:
    """The dataset that `config` names, split into training and validation images.

    hold_out: without it, all images of a source in `config.root` that has no split of its own are
    validation images, and may be of a single class: for an evaluation. Raises InputError if it is
    missing or corrupt, has fewer than two classes, or has no training or no validation images.
    """
    dataset = _load(config, config.val_fraction if hold_out else None)
    for purpose, images in (("train on", dataset.train), ("validate with", dataset.val)):
        if not len(images) and (hold_out or images is dataset.val):
            raise InputError(f"{config.root or config.name} has no images to {purpose}")
    return dataset


def _load(config: DataConfig, val_fraction: float | None) -> Dataset:
    if config.name == "digits":
        return digits(config.val_fraction, config.split_seed)
    if config.name == "fashion_mnist":
        return fashion_mnist(config.path)
    assert config.root is not None  # DataConfig requires it
    if config.name == "huggingface":
        return huggingface(config.root, subset=config.subset, image_column=config.image_column,
                           label_column=config.label_column, val_split=config.val_split,
                           val_fraction=val_fraction, seed=config.split_seed)
    if config.name == "manifest":
        return manifest(Path(config.root), val_fraction, config.split_seed,
                        path_column=config.path_column, label_column=config.label_column)
    source = {"folder": folder, "shards": shards}[config.name]
    return source(Path(config.root), val_fraction, config.split_seed)
