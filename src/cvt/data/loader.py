"""Batches. Their order and randomness are functions of (seed, epoch, index) and nothing else, so
neither the number of workers nor an interruption changes what the network sees."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from cvt.config import Preprocess
from cvt.data.datasets import Pictures
from cvt.data.randomness import randomness_restored, seed_all
from cvt.data.transforms import Transform, evaluation_transform
from cvt.errors import InputError

Batch = tuple[Tensor, Tensor]  # images (B, C, size, size) float32, labels (B,) int64
_Key = tuple[int, int]  # epoch, index


class TrainLoader:
    """Shuffled, augmented batches of full size; what does not fill one waits for another epoch."""

    def __init__(self, pictures: Pictures, transform: Transform, *, batch_size: int, seed: int,
                 workers: int = 0) -> None:
        if len(pictures) < batch_size:
            raise InputError(f"batch_size={batch_size} is more than the {len(pictures)} training "
                             "pictures; make it smaller")
        self._order = _EpochOrder(len(pictures), batch_size, seed)
        # A generator of its own keeps DataLoader from drawing from the global one.
        self._batches: DataLoader[Batch] = DataLoader(
            _Samples(pictures, transform, seed), batch_sampler=self._order, num_workers=workers,
            collate_fn=_collate, persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available(), generator=torch.Generator())

    def __len__(self) -> int:
        """Batches in an epoch."""
        return len(self._order)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """The batches of one epoch, numbered from 0. Raises InputError for an unreadable file."""
        self._order.epoch = epoch
        yield from _checked(self._batches)


def evaluation_batches(pictures: Pictures, preprocess: Preprocess, *, batch_size: int,
                       workers: int = 0) -> Iterator[Batch]:
    """Every picture once, in order, prepared by `preprocess`; the last batch may be smaller.

    Raises InputError for an unreadable file.
    """
    keys = [(0, i) for i in range(len(pictures))]
    chunks = [keys[i:i + batch_size] for i in range(0, len(keys), batch_size)]
    yield from _checked(DataLoader(
        _Samples(pictures, evaluation_transform(preprocess), 0), batch_sampler=chunks,
        num_workers=workers, collate_fn=_collate, pin_memory=torch.cuda.is_available(),
        generator=torch.Generator()))


class _EpochOrder(Sampler[list[_Key]]):
    """Batches of keys, in an order drawn from (seed, epoch)."""

    def __init__(self, n: int, batch_size: int, seed: int) -> None:
        self.n, self.batch_size, self.seed, self.epoch = n, batch_size, seed, 0

    def __len__(self) -> int:
        return self.n // self.batch_size

    def __iter__(self) -> Iterator[list[_Key]]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.n)
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            yield [(self.epoch, int(i)) for i in order[start:start + self.batch_size]]


class _Samples(Dataset[Any]):
    """Pictures as tensors, each drawn from (seed, epoch, index)."""

    def __init__(self, pictures: Pictures, transform: Transform, seed: int) -> None:
        self.pictures, self.transform, self.seed = pictures, transform, seed

    def __getitems__(self, keys: list[_Key]) -> list[tuple[Tensor, int] | InputError]:
        with randomness_restored():
            return [self._sample(epoch, index) for epoch, index in keys]

    def _sample(self, epoch: int, index: int) -> tuple[Tensor, int] | InputError:
        try:
            image = self.pictures.read(index)
            seed_all(self.seed, epoch, index)
            return self.transform(image), self.pictures.labels[index]
        except InputError as error:
            return error  # raised by the reader of the batch: a worker would wrap it in a traceback
        except OSError as error:
            return InputError(f"{self.pictures.names[index]}: {error.strerror or error}")


def _collate(samples: list[tuple[Tensor, int] | InputError]) -> Batch | InputError:
    for sample in samples:
        if isinstance(sample, InputError):
            return sample
    images, labels = default_collate(samples)
    return images, labels


def _checked(batches: DataLoader[Batch]) -> Iterator[Batch]:
    batch: Batch | InputError
    for batch in batches:
        if isinstance(batch, InputError):
            raise batch
        yield batch
