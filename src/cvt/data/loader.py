"""Batches. Their order and randomness are functions of (seed, epoch, index) and nothing else, so
neither the number of workers nor an interruption changes what the network sees."""

from __future__ import annotations

import signal
from collections import UserDict
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
from cvt.data.images import fault
from cvt.data.prepare import check_channels, frame
from cvt.data.randomness import randomness_restored, seed_all
from cvt.data.samples import Pipeline, Sample, Stack, stacked
from cvt.system.errors import InputError

Batch = tuple[Tensor, Tensor]  # images (B, C, size, size) float32, labels (B,) int64
_Key = tuple[int, ...]  # epoch, index, how often it came before, how often the epoch was redrawn
_Sample = tuple[Sample | None, int, list[tuple[int, str]]]  # sample, label, unreadable images

# Draws of another image for one that cannot be read, before it is given up.
_DRAWS = 100


class Faults(UserDict[int, str]):
    """Why images could not be read, by their index.

    At most `fraction` of the images, in [0, 1], may be; one more is refused with InputError.
    """

    def __init__(self, images: LabeledImages, fraction: float) -> None:
        super().__init__()
        self._images, self._fraction = images, fraction

    def __setitem__(self, index: int, reason: str) -> None:
        super().__setitem__(index, reason)
        n = len(self._images)
        if len(self) > self._fraction * n:
            raise InputError(reason if self._fraction == 0 else
                             f"{len(self)} of {n:,} images cannot be read, more than "
                             f"data.max_unreadable={self._fraction:g} allows; the last: {reason}")

    def rows(self) -> list[tuple[str, str]]:
        """Name and reason of each, in the dataset's order."""
        return [(self._images.names[i], self[i]) for i in sorted(self)]


class TrainLoader:
    """Shuffled, augmented batches of full size; what does not fill one waits for another epoch.

    batch_size: images of an optimiser step. Each of `world` processes gets its share of every
    batch, that of number `rank`; which images a batch has does not depend on either. passes: how
    many times an epoch passes over the images. repeats: how many times in a row an image comes,
    each time varied anew; a pass, which keeps its length, then has as many fewer of them. balanced:
    every image of an epoch is drawn with replacement, each class as often as any other. Of an
    image that cannot be read another takes the place, drawn from (seed, epoch, index) too;
    `unreadable` has them.
    """

    def __init__(self, images: LabeledImages, pipeline: Pipeline, *, batch_size: int, seed: int,
                 workers: int = 0, rank: int = 0, world: int = 1, passes: int = 1,
                 repeats: int = 1, balanced: bool = False, max_unreadable: float = 0.0) -> None:
        if passes * len(images) < batch_size:
            raise InputError(f"batch_size={batch_size} is more than the {len(images)} training "
                             "images; make it smaller"
                             + (f", or passes={passes} larger" if passes > 1 else ""))
        self.unreadable = Faults(images, max_unreadable)
        self._order = _EpochOrder(images, batch_size, seed, rank, world, passes, repeats,
                                  balanced)
        # A generator of its own keeps DataLoader from drawing from the global one.
        self._batches: DataLoader[_Loaded] = DataLoader(
            _Samples(images, pipeline, seed, others=True, share=self._order.share),
            batch_sampler=self._order,
            num_workers=workers, collate_fn=partial(_collate, pipeline.preprocess),
            persistent_workers=workers > 0, worker_init_fn=_on_their_own,
            pin_memory=torch.cuda.is_available(), generator=torch.Generator())

    def __len__(self) -> int:
        """Batches in an epoch."""
        return len(self._order)

    def epoch(self, epoch: int, start: int = 0, redraws: Sequence[int] = ()) -> Generator[Batch]:
        """The batches of one epoch, numbered from 0, without the first `start`, of `len(self)`.

        redraws: batches from each of which on, in turn, the rest of the epoch is drawn anew: the
        same images in another order, with another augmentation. Raises InputError where more
        images than `max_unreadable` cannot be read.
        """
        assert 0 <= start <= len(self)
        self._order.epoch, self._order.start, self._order.redraws = epoch, start, tuple(redraws)
        yield from _checked(self._batches, self.unreadable)


def evaluation_batches(images: LabeledImages, preprocess: Preprocess, *, batch_size: int,
                       workers: int = 0, rank: int = 0, world: int = 1,
                       unreadable: Faults | None = None) -> Iterator[Batch]:
    """Every image once, in order, prepared by `preprocess`; the last batch may be smaller.

    Of `world` processes each gets every world-th image, from that of number `rank`. Images that
    cannot be read are left out and put into `unreadable`; without it, the first is an InputError.
    """
    check_channels(preprocess)
    pipeline = Pipeline(preprocess=preprocess, steps=(partial(frame, preprocess),))
    keys = [(0, i, 0, 0) for i in range(rank, len(images), world)]
    chunks = [keys[i:i + batch_size] for i in range(0, len(keys), batch_size)]
    yield from _checked(DataLoader(
        _Samples(images, pipeline, 0, others=False), batch_sampler=chunks,
        num_workers=workers, collate_fn=partial(_collate, preprocess),
        pin_memory=torch.cuda.is_available(), worker_init_fn=_on_their_own,
        generator=torch.Generator()), Faults(images, 0) if unreadable is None else unreadable)


class _EpochOrder(Sampler[list[_Key]]):
    """Batches of keys, in an order drawn from (seed, epoch).

    Neighbours in a batch go to different processes, as in DeiT's sampler for repeated
    augmentation, so that each sees as many different images as it can. What a process gets from
    the batch's second half mirrors what it gets from the first: so the pairs that mixup makes,
    first with last, are the same for any number of processes.
    """

    def __init__(self, images: LabeledImages, batch_size: int, seed: int, rank: int, world: int,
                 passes: int, repeats: int, balanced: bool) -> None:
        self.n, self.batch_size, self.seed = len(images), batch_size, seed
        self.passes, self.repeats = passes, repeats
        self.epoch = self.start = 0
        self.redraws: tuple[int, ...] = ()
        self.share: np.ndarray | None = None  # of all draws, for each image
        if balanced:
            labels = np.array(images.labels)
            share = 1 / np.bincount(labels)[labels]
            self.share = share / share.sum()
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
            (rng.permutation(self.n) if self.share is None else
             rng.choice(self.n, self.n, p=self.share)).repeat(self.repeats)[:self.n]
            for _ in range(self.passes)])
        for attempt, batch in enumerate(self.redraws, 1):
            rng = np.random.default_rng((self.seed, self.epoch, attempt))
            rest = order[batch * self.batch_size:]
            copies = np.split(rest, np.flatnonzero(np.diff(rest)) + 1)  # stay side by side
            order[batch * self.batch_size:] = np.concatenate(
                [copies[i] for i in rng.permutation(len(copies))])
        again = _times_before(order)
        for batch in range(self.start, len(self)):
            places = batch * self.batch_size + self.places
            yield [(self.epoch, int(i), int(time), len(self.redraws)) for i, time in
                   zip(order[places], again[places], strict=True)]


def _times_before(order: np.ndarray) -> np.ndarray:
    """How many times each entry stands earlier in `order`."""
    place = order.argsort(kind="stable")
    run = np.arange(len(order))
    new = np.r_[True, np.diff(order[place]) != 0]
    counts = np.empty_like(run)
    counts[place] = run - np.maximum.accumulate(np.where(new, run, 0))
    return counts


class _Samples(Dataset[Any]):
    """Images as samples, each drawn from (seed, epoch, index).

    others: whether another takes the place of one that cannot be read. share: with which
    probability each does, (n,); by default all alike.
    """

    def __init__(self, images: LabeledImages, pipeline: Pipeline, seed: int, *, others: bool,
                 share: np.ndarray | None = None) -> None:
        self.images, self.pipeline, self.seed, self.share = images, pipeline, seed, share
        self.draws = _DRAWS if others else 0

    def __getitems__(self, keys: list[_Key]) -> list[_Sample | InputError]:
        with randomness_restored():
            return [self._sample(key) for key in keys]

    def _sample(self, key: _Key) -> _Sample | InputError:
        epoch, index, again, redrawn = key
        place: _Key = (self.seed, epoch, index, again) if again else (self.seed, epoch, index)
        if redrawn:
            place = (self.seed, epoch, index, again, redrawn)
        faults: list[tuple[int, str]] = []
        for draw in range(1 + self.draws):
            if draw:
                rng = np.random.default_rng((self.seed, epoch, key[1], again, draw))
                n = len(self.images)
                index = int(rng.integers(n) if self.share is None else rng.choice(n, p=self.share))
            try:
                found = self.images.fetch(index)
                seed_all(*place)
                sample = self.pipeline.sample(found, self.images.names[index])
                return sample, self.images.labels[index], faults
            except (InputError, OSError) as error:
                faults.append((index, fault(error, self.images.names[index])))
        if self.draws:  # raised by the reader of the batch: a worker would wrap it in a traceback
            return InputError(f"{len(faults)} images in a row cannot be read; the last: "
                              f"{faults[-1][1]}")
        return None, self.images.labels[index], faults


@dataclass(frozen=True, kw_only=True)
class _Loaded:
    """A batch as it comes from a loading process; without images where none could be read."""

    preprocess: Preprocess
    images: Stack | Tensor | None
    labels: Tensor
    faults: list[tuple[int, str]]

    def pin_memory(self) -> Self:
        """For DataLoader's thread that readies batches for a GPU: it normalises them as well."""
        if not isinstance(self.images, Stack):
            return self
        return replace(self, images=self.images.normalised(self.preprocess, pin=True),
                       labels=self.labels.pin_memory())


def _collate(preprocess: Preprocess, samples: list[_Sample | InputError]
             ) -> _Loaded | InputError:
    found, labels, faults = [], [], []
    for sample in samples:
        if isinstance(sample, InputError):
            return sample
        image, label, unreadable = sample
        faults += unreadable
        if image is not None:
            found.append(image)
            labels.append(label)
    return _Loaded(preprocess=preprocess, images=stacked(found) if found else None,
                   labels=torch.tensor(labels), faults=faults)


def _on_their_own(_: int) -> None:
    """In a loading process: the run's own process hears signals, and ends the others itself."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _checked(batches: DataLoader[_Loaded], unreadable: Faults) -> Iterator[Batch]:
    found = iter(batches)
    while True:
        try:
            batch: _Loaded | InputError = next(found)
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
        for index, reason in batch.faults:
            unreadable[index] = reason
        images = batch.images
        if isinstance(images, Stack):
            images = images.normalised(batch.preprocess)
        if images is not None:
            yield images, batch.labels
