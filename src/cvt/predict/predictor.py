"""Classify images: files, folders, patterns, the standard input. Torch only where it computes."""

from __future__ import annotations

import glob
import hashlib
import itertools
import json
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cvt.data.images import list_images, read_image, to_rgb
from cvt.data.prepare import check_channels, prepare
from cvt.data.sources.archives import Member, archive_images
from cvt.data.unreadable import unreadable_reason
from cvt.deploy.manifest import MANIFEST, Format, Manifest, Precision
from cvt.deploy.sessions import Backend, Session, onnx_session, openvino_session
from cvt.system.errors import InputError, did_you_mean
from cvt.system.machine import available_cores
from cvt.weights.card import ModelCard

if TYPE_CHECKING:
    from cvt.config import Act
    from cvt.model import CvT

STDIN = "-"

BACKENDS: tuple[Backend, ...] = get_args(Backend)
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
ImageSource = str | Path | bytes | Image.Image | Member

# What runs each format of `cvt export`.
_RUNNERS: dict[Format, Backend] = {"openvino": "openvino", "onnx": "onnxruntime", "torch": "eager"}

# More threads than this only wait for the files, or for each other.
_MOST_READERS = 16


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What the model says of one image, or why it could not be read."""

    image: str
    """Its path; ARCHIVE:NAME in an archive; - for the standard input; #0, #1, ... by position for
    what has no path."""
    classes: tuple[tuple[str, float], ...] = ()
    """The likeliest classes and their probabilities in [0, 1], likeliest first."""
    error: str | None = None
    """Why the image could not be read; then `classes` is empty."""


class Predictor:
    """A trained model that classifies images as fast as it computes.

    source: the directory of an exported model, for which no torch is imported (but for the format
    torch), or whatever `cvt.load_model` takes. trusted: open the format torch, whose files can run
    code, for PyTorch unpickles them. backend: what computes it; "auto" is the exported
    model's own, else eager, for the others first take from seconds to minutes to convert it.
    precision: by default the exported one, else fp32. device and act: for models that are not
    exported. threads: how many cores the network may use, by default all; for eager and compile
    that is PyTorch's setting for the whole process. batch_size: images that the network sees at
    once; with 1 it is tuned for the time of one.

    Raises InputError where the model cannot be loaded, and where an argument is not possible with
    it.
    """

    card: ModelCard
    """Network, preprocessing and classes."""
    backend: Backend
    """What computes it."""
    precision: Precision
    """What it computes in."""
    _hash_weights: Callable[[], str]

    def __init__(self, source: str | Path, *, backend: Backend = "auto",
                 precision: Precision | None = None, device: str = "auto", act: Act | None = None,
                 threads: int | None = None, batch_size: int = 32, trusted: bool = False) -> None:
        for name, value, known in (("backend", backend, BACKENDS),
                                   ("precision", precision or "fp32", PRECISIONS)):
            if value not in known:
                raise InputError(f"{name}={value!r}; {did_you_mean(value, known)}")
        for name, number in (("batch_size", batch_size), ("threads", threads)):
            if number is not None and number < 1:
                raise InputError(f"{name}={number} must be at least 1")
        self.batch_size = batch_size
        self._turn = threading.Lock()
        if (Path(source) / MANIFEST).is_file():
            self._open_exported(Path(source), backend, precision, device, act, threads, trusted)
        else:
            self._open_trained(source, backend, precision or "fp32", device, act, threads)
        check_channels(self.card.preprocess)

    def logits(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits (B, K) of prepared images (B, C, H, W); any number of threads may call it.

        Raises InputError for images of another shape than the network takes.
        """
        channels = self.card.model.in_chans
        if batch.ndim != 4 or len(batch) < 1 or batch.shape[1] != channels:
            raise InputError(f"images of shape {batch.shape} are not a batch for this network, "
                             f"which takes (B, {channels}, H, W)")
        self.card.model.grids((batch.shape[2], batch.shape[3]))  # refuses what is too small
        with self._turn:  # a runtime's buffers are for one batch at a time
            # Writable and whole, which PyTorch wants of memory that it shares.
            return self._session(np.require(batch, np.float32, ["C", "W"]))

    @cached_property
    def identity(self) -> str:
        """SHA-256, in hexadecimal, of all that an answer depends on but the image and rounding:
        network, weights, preprocessing, classes and precision."""
        return hashlib.sha256(json.dumps(
            [self.card.to_dict(), self._hash_weights(), self.precision], sort_keys=True
        ).encode()).hexdigest()

    def __call__(self, images: Iterable[ImageSource], top_k: int = 5, *,
                 stdin: BinaryIO | None = None) -> Iterator[Prediction]:
        """A prediction an image, in their order, as batches of them are done.

        images: paths, the bytes of files, members of archives, or Pillow's images; an iterator may
        be endless, for no more than a few batches are held. "-" is one image's bytes from
        `stdin`, if that is given. Threads read and prepare images while the network computes;
        they end with the iterator. An image that cannot be read yields a prediction with its
        error, and the others go on. Raises InputError for one image in the place of several,
        and for top_k below 1.
        """
        if top_k < 1:
            raise InputError(f"top_k={top_k} must be at least 1")
        if isinstance(images, (str, Path, bytes, Image.Image)):
            raise InputError("images is one image; give a list of them, or [image]")
        return self._stream(iter(images), top_k, stdin)

    def _stream(self, images: Iterator[ImageSource], top_k: int, stdin: BinaryIO | None
                ) -> Iterator[Prediction]:
        readers = ThreadPoolExecutor(min(available_cores(), _MOST_READERS), "cvt-read")
        network = ThreadPoolExecutor(1, "cvt-network")
        numbered = enumerate(images)
        reading: deque[tuple[str, Future[NDArray[np.float32] | str]]] = deque()
        computing: deque[tuple[list[tuple[str, str | None]], Future[NDArray[np.float32]] | None]]
        computing = deque()

        def read_ahead() -> None:
            for i, image in itertools.islice(numbered, 2 * self.batch_size - len(reading)):
                name = str(image) if isinstance(image, (str, Path, Member)) else f"#{i}"
                reading.append((name, readers.submit(self._input, image, name, stdin)))

        try:
            while True:
                read_ahead()
                taken = [reading.popleft() for _ in range(min(self.batch_size, len(reading)))]
                # The next batch is read while the network computes this one.
                read_ahead()
                if taken:
                    inputs = [future.result() for _, future in taken]
                    arrays = [x for x in inputs if not isinstance(x, str)]
                    computing.append((
                        [(name, x if isinstance(x, str) else None)
                         for (name, _), x in zip(taken, inputs, strict=True)],
                        network.submit(self.logits, np.stack(arrays)) if arrays else None))
                    del inputs, arrays
                # One batch waits, so that the network goes on while the caller looks at results.
                if len(computing) > 1 or (computing and not taken):
                    told, future = computing.popleft()
                    rows = iter(future.result()) if future else iter(())
                    for name, error in told:
                        yield (Prediction(image=name, error=error) if error is not None else
                               self._prediction(name, next(rows), top_k))
                elif not taken:
                    return
        finally:
            for pool in (readers, network):
                pool.shutdown(wait=True, cancel_futures=True)

    def _input(self, source: ImageSource, name: str, stdin: BinaryIO | None
               ) -> NDArray[np.float32] | str:
        """The network's input for an image, or why there is none."""
        if source == STDIN and stdin is not None:
            name = "the standard input"
        try:
            if isinstance(source, Image.Image):
                image = to_rgb(source, name)
            elif isinstance(source, Member):
                image = read_image(source.read(), name)
            elif source == STDIN and stdin is not None:
                image = read_image(stdin.read(), name)
            else:
                image = read_image(source, name)
            return prepare(self.card.preprocess, image)
        except (InputError, OSError) as error:
            return unreadable_reason(error, name)

    def _prediction(self, name: str, logits: NDArray[np.float32], top_k: int) -> Prediction:
        if not np.isfinite(logits).all():
            return Prediction(image=name, error=f"{name}: the network's logits are not finite "
                              f"numbers in {self.precision}; its weights or the precision are at "
                              "fault, not the image")
        return Prediction(image=name, classes=tuple(
            (self.card.classes[i], probability) for i, probability in ranked(logits, top_k)))

    def _open_exported(self, directory: Path, backend: Backend, precision: Precision | None,
                       device: str, act: Act | None, threads: int | None, trusted: bool) -> None:
        manifest = Manifest.load(directory, verify=False)
        if manifest.format == "torch" and not trusted:
            raise InputError(f"{directory} is an export for PyTorch, which unpickles it, and so "
                             "can run code that somebody put in; if you made it yourself, say "
                             "trusted, else take an export for ONNX or OpenVINO")
        runner = _RUNNERS[manifest.format]
        for option, given, possible in (
                ("backend", backend, ("auto", runner)),
                ("precision", precision, (None, manifest.precision)),
                ("device", device, ("auto", "cpu")), ("act", act, (None,))):
            if given not in possible:
                raise InputError(
                    f"{directory} was exported for {runner} on the CPU in {manifest.precision}, "
                    f"which {option}={given!r} cannot change; export again, or give the model that "
                    "it was exported from")
        self.card, self.backend, self.precision = manifest.card, runner, manifest.precision
        self._hash_weights = lambda: hashlib.sha256(json.dumps(
            dict(manifest.hashes), sort_keys=True).encode()).hexdigest()
        # A second core checks what the first one opens.
        with ThreadPoolExecutor(1) as pool:
            checked = pool.submit(Manifest.load, directory)
            try:
                self._session = _open_graph(manifest, directory / manifest.graph, threads,
                                            self.batch_size)
            finally:
                checked.result()  # its error is the cause of any other

    def _open_trained(self, source: str | Path, backend: Backend, precision: Precision,
                      device: str, act: Act | None, threads: int | None) -> None:
        from cvt.weights.models import load_model

        network, self.card = load_model(source, act=act)
        if not self.card.classes:
            raise InputError(f"{source} has no classifier; train one first")
        if precision == "int8":
            raise InputError("int8 is calibrated on images; export the model first, with "
                             "`cvt export --precision int8`, and give the directory")
        self.backend, self.precision = "eager" if backend == "auto" else backend, precision
        self._hash_weights = partial(_hash_tensors, network)
        self._session = _torch_session(network, self.backend, precision, device, threads,
                                       self.batch_size)


def _hash_tensors(network: CvT) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(name.encode() + tensor.cpu().numpy().tobytes())
    return digest.hexdigest()


def ranked(logits: NDArray[np.float32], top_k: int) -> list[tuple[int, float]]:
    """The likeliest classes by index and their probabilities, likeliest first.

    logits: (K,) finite, of one image. Of equals the lower index comes first.
    """
    probabilities = softmax(logits)
    best = np.argsort(-probabilities, kind="stable")[:top_k]
    return [(int(i), float(probabilities[i])) for i in best]


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Probabilities (..., K) of logits (..., K), which are finite."""
    exact = logits.astype(np.float64)
    raised = np.exp(exact - exact.max(-1, keepdims=True))
    return raised / raised.sum(-1, keepdims=True)


def _open_graph(manifest: Manifest, graph: Path, threads: int | None, batch_size: int) -> Session:
    if manifest.format == "openvino":
        return openvino_session(graph, precision=manifest.precision, threads=threads,
                                latency=batch_size == 1)
    if manifest.format == "onnx":
        return onnx_session(graph, threads=threads)
    import torch

    from cvt.deploy.graphs import open_graph

    if threads is not None:
        torch.set_num_threads(threads)
    program = open_graph(graph, "torch", manifest.precision)
    return lambda images: program(torch.from_numpy(images)).numpy()


def _torch_session(network: CvT, backend: Backend, precision: Precision, device: str,
                   threads: int | None, batch_size: int) -> Session:
    import torch

    from cvt.deploy.backends import session_of
    from cvt.system.device import pick_device

    if backend in ("openvino", "onnxruntime"):
        if device not in ("auto", "cpu"):
            raise InputError(f"{backend} computes on the CPU alone, not on device={device!r}; use "
                             "backend='eager' or 'compile' there")
        device = "cpu"
    place = pick_device(device)
    if place.type == "cuda" and ":" not in device:  # of several processes each has its own
        place = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return session_of(network.to(place), backend=backend, precision=precision,
                      batch_size=batch_size, threads=threads)


def find_images(names: Sequence[str], *, strict: bool = False) -> list[str | Member]:
    """Every image that `names` stand for: paths, "-", folders with all below, tar archives,
    folders that hold archives alone, and patterns of files and archives.

    Raises InputError for a folder, an archive or a pattern without images, and for an archive
    that is compressed or damaged. A path that is not there stays in the list, for a `Predictor` to
    report; with `strict` that is an InputError too.
    """
    found: list[str | Member] = []
    for name in names:
        path = Path(name)
        if name != STDIN and path.is_dir():
            images: list[Path] = list_images(path) or sorted(path.rglob("*.tar"))
            if not images:
                raise InputError(f"{name} has no images or .tar archives in it or below it")
            found += _opened(map(str, images))
        elif name != STDIN and not path.exists() and glob.has_magic(name):
            matches = sorted(m for m in glob.glob(name, recursive=True) if Path(m).is_file())
            if not matches:
                raise InputError(f"no file matches the pattern {name!r}")
            found += _opened(matches)
        elif strict and name != STDIN and not path.exists():
            raise InputError(f"{name} is not there")
        else:
            found += _opened([name])
    return found


def read_list(path: str | Path) -> list[str]:
    """The paths that a text file has, a line each; lines without any are passed over.

    Raises OSError where the file cannot be read, InputError where it lists nothing.
    """
    # A file's name may be any bytes, which this keeps.
    text = Path(path).read_text(encoding="utf-8", errors="surrogateescape")
    names = [line for line in text.split("\n") if line.strip()]
    if not names:
        raise InputError(f"{path} lists no images; it takes a path on each line")
    return names


def _opened(names: Iterable[str]) -> Iterator[str | Member]:
    """Archives as the images in them, other names as they are."""
    for name in names:
        if name.endswith(".tar") and Path(name).is_file():
            yield from archive_images(Path(name))
        else:
            yield name
