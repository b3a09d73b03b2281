"""Batches for training and evaluation. Their order and augmentation are functions of (seed, epoch,
index) alone, so neither the number of workers nor an interruption changes what the network sees."""

from __future__ import annotations

import signal
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from cvt.config import Preprocess
from cvt.data.dataset import LabeledImages
from cvt.data.pipeline import PackedBatch, Pipeline, Sample, pack
from cvt.data.preprocess import check_channels, resize_and_crop
from cvt.data.randomness import randomness_restored, seed_all
from cvt.data.unreadable import UnreadableImages, unreadable_reason
from cvt.system.errors import InputError

Batch = tuple[Tensor, Tensor]  # images (B, C, size, size) float32, labels (B,) int64
_Key = tuple[int, ...]  # epoch, index, times it occurred before in the epoch, number of redraws
_Result = tuple[Sample | None, int, list[tuple[int, str]]]  # sample, label, unreadable images

# Replacements drawn for an unreadable image before an error is raised.
_MAX_REPLACEMENTS = 100


class TrainLoader:
    """Shuffled, augmented batches of full size; images left over wait for another epoch.

    batch_size: images per optimizer step. Each of `world` processes loads its share of every batch,
    that of number `rank`; the images in a batch do not depend on either. passes: number of passes
    over the images per epoch. repeats: number of times that an image occurs in a row, each time
    augmented anew; a pass keeps its length, so it has that many times fewer different images.
    balanced: images are drawn with replacement, each class equally often. An unreadable image is
    replaced by another, also drawn from (seed, epoch, index), and recorded in `unreadable`.
    """

    def __init__(self, images: LabeledImages, pipeline: Pipeline, *, batch_size: int, seed: int,
                 workers: int = 0, rank: int = 0, world: int = 1, passes: int = 1,
                 repeats: int = 1, balanced: bool = False, max_unreadable: float = 0.0) -> None:
        if passes * len(images) < batch_size:
            raise InputError(f"batch_size={batch_size} is more than the {len(images)} training "
                             "images; make it smaller"
                             + (f", or passes={passes} larger" if passes > 1 else ""))
        self.unreadable = UnreadableImages(images, max_unreadable)
        self._order = _EpochOrder(images, batch_size, seed, rank, world, passes, repeats,
                                  balanced)
        self._batches = _loader(
            _Samples(images, pipeline, seed, replace_unreadable=True,
                     probabilities=self._order.probabilities),
            self._order, pipeline.preprocess, workers, persistent_workers=workers > 0)

    def __len__(self) -> int:
        """Batches in an epoch."""
        return len(self._order)

    def epoch(self, epoch: int, start: int = 0, redraws: Sequence[int] = ()) -> Generator[Batch]:
        """The batches of one epoch, numbered from 0, without the first `start` of `len(self)`.

        redraws: from each of these batches on, in turn, the rest of the epoch is drawn again: the
        same images in another order, with another augmentation. Raises InputError if more images
        than `max_unreadable` cannot be read.
        """
        assert 0 <= start <= len(self)
        self._order.epoch, self._order.start, self._order.redraws = epoch, start, tuple(redraws)
        yield from _checked(self._batches, self.unreadable)


def evaluation_batches(images: LabeledImages, preprocess: Preprocess, *, batch_size: int,
                       workers: int = 0, rank: int = 0, world: int = 1,
                       unreadable: UnreadableImages | None = None) -> Iterator[Batch]:
    """Every image once, in order, prepared by `preprocess`; the last batch may be smaller.

    Each of `world` processes gets every world-th image, starting with number `rank`. Unreadable
    images are left out and recorded in `unreadable`; without it, the first one raises InputError.
    """
    check_channels(preprocess)
    pipeline = Pipeline(preprocess=preprocess, steps=(partial(resize_and_crop, preprocess),))
    keys: list[_Key] = [(0, i, 0, 0) for i in range(rank, len(images), world)]
    chunks = [keys[i:i + batch_size] for i in range(0, len(keys), batch_size)]
    yield from _checked(
        _loader(_Samples(images, pipeline, 0, replace_unreadable=False), chunks, preprocess,
                workers),
        UnreadableImages(images, 0) if unreadable is None else unreadable)


class _EpochOrder(Sampler[list[_Key]]):
    """Batches of keys, in an order drawn from (seed, epoch).

    Neighbours in a batch go to different processes, as in DeiT's sampler for repeated augmentation,
    so that each process sees as many different images as possible. The share of a process in the
    second half of a batch mirrors its share in the first half, so the pairs that mixup makes, first
    with last, are the same for any number of processes.
    """

    def __init__(self, images: LabeledImages, batch_size: int, seed: int, rank: int, world: int,
                 passes: int, repeats: int, balanced: bool) -> None:
        self.n, self.batch_size, self.seed = len(images), batch_size, seed
        self.passes, self.repeats = passes, repeats
        self.epoch = self.start = 0
        self.redraws: tuple[int, ...] = ()
        self.probabilities: np.ndarray | None = None  # (n,), of drawing each image
        if balanced:
            labels = np.array(images.labels)
            weights = 1 / np.bincount(labels)[labels]
            self.probabilities = weights / weights.sum()
        places = np.arange(batch_size)[rank::world]
        if batch_size % (2 * world) == 0:  # otherwise nothing is mixed
            half = np.arange(batch_size // 2)[rank::world]
            places = np.concatenate([half, (batch_size - 1 - half)[::-1]])
        self.places = places

    def __len__(self) -> int:
        return self.passes * self.n // self.batch_size

    def __iter__(self) -> Iterator[list[_Key]]:
        rng = np.random.default_rng((self.seed, self.epoch))
        order = np.concatenate([
            (rng.permutation(self.n) if self.probabilities is None else
             rng.choice(self.n, self.n, p=self.probabilities)).repeat(self.repeats)[:self.n]
            for _ in range(self.passes)])
        for attempt, batch in enumerate(self.redraws, 1):
            rng = np.random.default_rng((self.seed, self.epoch, attempt))
            rest = order[batch * self.batch_size:]
            repeats = np.split(rest, np.flatnonzero(np.diff(rest)) + 1)  # stay side by side
            order[batch * self.batch_size:] = np.concatenate(
                [repeats[i] for i in rng.permutation(len(repeats))])
        occurrence = _earlier_occurrences(order)
        for batch in range(self.start, len(self)):
            places = batch * self.batch_size + self.places
            yield [(self.epoch, int(i), int(time), len(self.redraws)) for i, time in
                   zip(order[places], occurrence[places], strict=True)]


def _earlier_occurrences(order: np.ndarray) -> np.ndarray:
    """For each entry of `order`, how often it occurs before."""
    place = order.argsort(kind="stable")
    run = np.arange(len(order))
    new = np.r_[True, np.diff(order[place]) != 0]
    counts = np.empty_like(run)
    counts[place] = run - np.maximum.accumulate(np.where(new, run, 0))
    return counts


class _Samples(Dataset[Any]):
    """Samples of images, each drawn from (seed, epoch, index).

    replace_unreadable: whether another image replaces one that cannot be read, drawn with
    `probabilities` (n,), by default uniformly.
    """

    def __init__(self, images: LabeledImages, pipeline: Pipeline, seed: int, *,
                 replace_unreadable: bool, probabilities: np.ndarray | None = None) -> None:
        self.images, self.pipeline, self.seed = images, pipeline, seed
        self.probabilities = probabilities
        self.replacements = _MAX_REPLACEMENTS if replace_unreadable else 0

    def __getitems__(self, keys: list[_Key]) -> list[_Result | InputError]:
        with randomness_restored():
            return [self._sample(key) for key in keys]

    def _sample(self, key: _Key) -> _Result | InputError:
        epoch, index, occurrence, redraws = key
        seed: _Key = (self.seed, epoch, index)
        if redraws:
            seed = (*seed, occurrence, redraws)
        elif occurrence:
            seed = (*seed, occurrence)
        unreadable: list[tuple[int, str]] = []
        for attempt in range(1 + self.replacements):
            if attempt:
                rng = np.random.default_rng((self.seed, epoch, key[1], occurrence, attempt))
                n = len(self.images)
                index = int(rng.integers(n) if self.probabilities is None else
                            rng.choice(n, p=self.probabilities))
            name, label = self.images.names[index], self.images.labels[index]
            try:
                image = self.images.fetch(index)
                seed_all(*seed)
                return self.pipeline.sample(image, name), label, unreadable
            except (InputError, OSError) as error:
                unreadable.append((index, unreadable_reason(error, name)))
        if self.replacements:  # raised by `_checked`: a worker would wrap it in a traceback
            return InputError(f"{len(unreadable)} images in a row cannot be read; the last: "
                              f"{unreadable[-1][1]}")
        return None, label, unreadable


@dataclass(frozen=True, kw_only=True)
class _Loaded:
    """A batch as a worker process sends it; without images if none could be read."""

    preprocess: Preprocess
    images: PackedBatch | Tensor | None
    labels: Tensor
    unreadable: list[tuple[int, str]]

    def pin_memory(self) -> Self:
        """Called by DataLoader's pinning thread; normalizes the batch as well."""
        if not isinstance(self.images, PackedBatch):
            return self
        return replace(self, images=self.images.normalize(self.preprocess, pin=True),
                       labels=self.labels.pin_memory())


def _loader(samples: _Samples, order: Sampler[list[_Key]] | list[list[_Key]],
            preprocess: Preprocess, workers: int, persistent_workers: bool = False
            ) -> DataLoader[_Loaded]:
    return DataLoader(
        samples, batch_sampler=order, num_workers=workers,
        collate_fn=partial(_collate, preprocess), persistent_workers=persistent_workers,
        worker_init_fn=_ignore_signals, pin_memory=torch.cuda.is_available(),
        # A generator of its own keeps DataLoader from drawing from the global one.
        generator=torch.Generator())


def _collate(preprocess: Preprocess, results: list[_Result | InputError]) -> _Loaded | InputError:
    samples, labels, unreadable = [], [], []
    for result in results:
        if isinstance(result, InputError):
            return result
        sample, label, reasons = result
        unreadable += reasons
        if sample is not None:
            samples.append(sample)
            labels.append(label)
    return _Loaded(preprocess=preprocess, images=pack(samples) if samples else None,
                   labels=torch.tensor(labels), unreadable=unreadable)


def _ignore_signals(_: int) -> None:
    """In a worker process: the main process handles signals and ends its workers itself."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _checked(batches: DataLoader[_Loaded], unreadable: UnreadableImages) -> Iterator[Batch]:
    """The batches, normalized; raises the errors of workers and records unreadable images."""
    iterator = iter(batches)
    while True:
        try:
            batch: _Loaded | InputError = next(iterator)
        except StopIteration:
            return
        except RuntimeError as error:  # DataLoader's, which names the process
            if "exited unexpectedly" not in str(error):
                raise
            raise InputError(f"{str(error).splitlines()[0]}: the system ended a process that loads "
                             "images, most likely for want of memory; take fewer data.workers"
                             ) from None
        if isinstance(batch, InputError):
            raise batch
        for index, reason in batch.unreadable:
            unreadable[index] = reason
        images = batch.images
        if isinstance(images, PackedBatch):
            images = images.normalize(batch.preprocess)
        if images is not None:
            yield images, batch.labels
