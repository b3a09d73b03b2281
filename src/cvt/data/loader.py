"""Batches. Their order and randomness are functions of (seed, epoch, index) and nothing else, so
neither the number of workers nor an interruption changes what the network sees."""

from __future__ import annotations

import signal
from collections.abc import Generator, Iterator
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
    """Shuffled, augmented batches of full size; what does not fill one waits for another epoch.

    batch_size: pictures of an optimiser step. Each of `world` processes gets its share of every
    batch, that of number `rank`; which pictures a batch has does not depend on either.
    """

    def __init__(self, pictures: Pictures, transform: Transform, *, batch_size: int, seed: int,
                 workers: int = 0, rank: int = 0, world: int = 1) -> None:
        if len(pictures) < batch_size:
            raise InputError(f"batch_size={batch_size} is more than the {len(pictures)} training "
                             "pictures; make it smaller")
        self._order = _EpochOrder(len(pictures), batch_size, seed, rank, world)
        # A generator of its own keeps DataLoader from drawing from the global one.
        self._batches: DataLoader[Batch] = DataLoader(
            _Samples(pictures, transform, seed), batch_sampler=self._order, num_workers=workers,
            collate_fn=_collate, persistent_workers=workers > 0, worker_init_fn=_on_their_own,
            pin_memory=torch.cuda.is_available(), generator=torch.Generator())

    def __len__(self) -> int:
        """Batches in an epoch."""
        return len(self._order)

    def epoch(self, epoch: int, start: int = 0) -> Generator[Batch]:
        """The batches of one epoch, numbered from 0, without the first `start`.

        Raises InputError for an unreadable file.
        """
        self._order.epoch, self._order.start = epoch, start
        yield from _checked(self._batches)


def evaluation_batches(pictures: Pictures, preprocess: Preprocess, *, batch_size: int,
                       workers: int = 0, rank: int = 0, world: int = 1) -> Iterator[Batch]:
    """Every picture once, in order, prepared by `preprocess`; the last batch may be smaller.

    Of `world` processes each gets every world-th picture, from that of number `rank`. Raises
    InputError for an unreadable file.
    """
    keys = [(0, i) for i in range(rank, len(pictures), world)]
    chunks = [keys[i:i + batch_size] for i in range(0, len(keys), batch_size)]
    yield from _checked(DataLoader(
        _Samples(pictures, evaluation_transform(preprocess), 0), batch_sampler=chunks,
        num_workers=workers, collate_fn=_collate, pin_memory=torch.cuda.is_available(),
        worker_init_fn=_on_their_own, generator=torch.Generator()))


class _EpochOrder(Sampler[list[_Key]]):
    """Batches of keys, in an order drawn from (seed, epoch).

    A process gets as many from the batch's beginning as from its end, mirrored: so the pairs that
    mixup makes, first with last, are the same for any number of processes.
    """

    def __init__(self, n: int, batch_size: int, seed: int, rank: int, world: int) -> None:
        self.n, self.batch_size, self.seed, self.epoch, self.start = n, batch_size, seed, 0, 0
        places = np.arange(batch_size)
        if world > 1:
            size = batch_size // world
            half = places[rank * size // 2:(rank + 1) * size // 2]
            places = np.concatenate([half, (batch_size - 1 - half)[::-1]]) if size % 2 == 0 else (
                places[rank * size:(rank + 1) * size])
        self.places = places

    def __len__(self) -> int:
        return self.n // self.batch_size

    def __iter__(self) -> Iterator[list[_Key]]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.n)
        for batch in range(self.start, len(self)):
            yield [(self.epoch, int(i)) for i in order[batch * self.batch_size + self.places]]


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


def _on_their_own(_: int) -> None:
    """In a loading process: the run's own process hears signals, and ends the others itself."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _checked(batches: DataLoader[Batch]) -> Iterator[Batch]:
    found = iter(batches)
    while True:
        try:
            batch: Batch | InputError = next(found)
        except StopIteration:
            return
        except RuntimeError as error:  # DataLoader's, which names the process
            if "exited unexpectedly" not in str(error):
                raise
            raise InputError(f"{str(error).splitlines()[0]}: the system ended a process that loads "
                             "pictures, most likely for want of memory; take fewer data.workers"
                             ) from None
        if isinstance(batch, InputError):
            raise batch
        yield batch
