"""Classify images from files, folders, patterns or the standard input. Imports torch only if the
model needs it."""

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
from typing import TYPE_CHECKING, Any, BinaryIO, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cvt.data.images import read_image, to_rgb
from cvt.data.listing import COMPRESSED, NOT_IMAGES, LeftOut, is_hidden, list_images
from cvt.data.preprocess import check_channels, prepare
from cvt.data.sources.archives import Member, archive_images
from cvt.data.unreadable import unreadable_reason
from cvt.deploy.manifest import MANIFEST, Format, Manifest, Precision
from cvt.deploy.sessions import Backend, Session, onnx_session, openvino_session
from cvt.system.errors import InputError, did_you_mean
from cvt.system.files import find_file, read_text
from cvt.system.machine import available_cores
from cvt.weights.card import ModelCard

if TYPE_CHECKING:
    from cvt.config import Act
    from cvt.model import CvT

STDIN = "-"

BACKENDS: tuple[Backend, ...] = get_args(Backend)
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
ImageSource = str | Path | bytes | Image.Image | Member

# The backend of each format of `cvt export`.
_BACKENDS: dict[Format, Backend] = {"openvino": "openvino", "onnx": "onnxruntime", "torch": "eager"}

# More threads only wait for the files, or for each other.
_MAX_READ_THREADS = 16


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The prediction for one image, or why it could not be read."""

    image: str
    """Its path; ARCHIVE:NAME in an archive; - for the standard input; #0, #1, ... by position for
    images without a path."""
    classes: tuple[tuple[str, float], ...] = ()
    """The most probable classes and their probabilities in [0, 1], most probable first."""
    error: str | None = None
    """Why the image could not be read; then `classes` is empty."""

    def to_dict(self) -> dict[str, Any]:
        """The prediction for JSON; `error` is left out if there is none."""
        row: dict[str, Any] = {
            "image": self.image,
            "classes": [{"name": name, "probability": p} for name, p in self.classes]}
        return row if self.error is None else row | {"error": self.error}


class Predictor:
    """A model that classifies images in batches, while threads read the next ones.

    source: the directory of an exported model, which needs no torch (except in the format torch),
    or anything that `cvt.load_model` takes. trusted: allow an export in the format torch, which
    PyTorch unpickles and which can therefore run code. backend: "auto" is the exported model's own,
    else eager; converting to another takes seconds to minutes. precision: by default the exported
    one, else fp32. device, act: only for models that are not exported. threads: number of cores for
    the network, by default all; for eager and compile it applies to the whole process. batch_size:
    images in a batch; 1 optimizes for latency.

    Raises InputError if the model cannot be loaded or does not support an argument.
    """

    card: ModelCard
    """Network, preprocessing and classes."""
    backend: Backend
    """The backend in use."""
    precision: Precision
    """The precision of the network."""
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
        self._lock = threading.Lock()
        if (Path(source) / MANIFEST).is_file():
            self._open_exported(Path(source), backend, precision, device, act, threads, trusted)
        else:
            self._open_trained(source, backend, precision or "fp32", device, act, threads)
        check_channels(self.card.preprocess)

    def logits(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits (B, K) of preprocessed images (B, C, H, W). Thread-safe.

        Raises InputError if the network does not take the shape.
        """
        channels = self.card.model.in_chans
        if batch.ndim != 4 or len(batch) < 1 or batch.shape[1] != channels:
            raise InputError(f"images of shape {batch.shape} are not a batch for this network, "
                             f"which takes (B, {channels}, H, W)")
        self.card.model.grids((batch.shape[2], batch.shape[3]))  # raises if they are too small
        with self._lock:  # a runtime has buffers for one batch only
            # PyTorch shares the memory only if it is contiguous and writable.
            return self._session(np.require(batch, np.float32, ["C", "W"]))

    @cached_property
    def identity(self) -> str:
        """SHA-256, in hexadecimal, of everything but the image that determines a prediction up to
        rounding: network, weights, preprocessing, classes and precision."""
        return hashlib.sha256(json.dumps(
            [self.card.to_dict(), self._hash_weights(), self.precision], sort_keys=True
        ).encode()).hexdigest()

    def __call__(self, images: Iterable[ImageSource], top_k: int = 5, *,
                 stdin: BinaryIO | None = None) -> Iterator[Prediction]:
        """Yield a prediction for each image, in order, as batches finish.

        images: paths, bytes of files, members of archives, or Pillow images; an iterator may be
        endless, because only a few batches are held at a time. "-" stands for the bytes of one
        image from `stdin`, if that is given. Threads read and preprocess images while the network
        computes; they end with the iterator. An unreadable image yields a prediction with its
        error. Raises InputError for a single image in place of several, and for top_k below 1.
        """
        if top_k < 1:
            raise InputError(f"top_k={top_k} must be at least 1")
        if isinstance(images, (str, Path, bytes, Image.Image)):
            raise InputError("images is one image; give a list of images, such as [image]")
        return self._stream(iter(images), top_k, stdin)

    def _stream(self, images: Iterator[ImageSource], top_k: int, stdin: BinaryIO | None
                ) -> Iterator[Prediction]:
        read_pool = ThreadPoolExecutor(min(available_cores(), _MAX_READ_THREADS), "cvt-read")
        network_pool = ThreadPoolExecutor(1, "cvt-network")
        numbered = enumerate(images)
        reading: deque[tuple[str, Future[NDArray[np.float32] | str]]] = deque()
        computing: deque[tuple[list[tuple[str, str | None]], Future[NDArray[np.float32]] | None]]
        computing = deque()

        def read_ahead() -> None:
            for i, image in itertools.islice(numbered, 2 * self.batch_size - len(reading)):
                name = str(image) if isinstance(image, (str, Path, Member)) else f"#{i}"
                reading.append((name, read_pool.submit(self._input, image, name, stdin)))

        try:
            while True:
                read_ahead()
                batch = [reading.popleft() for _ in range(min(self.batch_size, len(reading)))]
                # The next batch is read while the network computes this one.
                read_ahead()
                if batch:
                    inputs = [future.result() for _, future in batch]
                    arrays = [x for x in inputs if not isinstance(x, str)]
                    computing.append((
                        [(name, x if isinstance(x, str) else None)
                         for (name, _), x in zip(batch, inputs, strict=True)],
                        network_pool.submit(self.logits, np.stack(arrays)) if arrays else None))
                    del inputs, arrays
                # One batch waits here, so that the network computes while the caller uses results.
                if len(computing) > 1 or (computing and not batch):
                    names, future = computing.popleft()
                    rows = iter(future.result()) if future else iter(())
                    for name, error in names:
                        yield (Prediction(image=name, error=error) if error is not None else
                               self._prediction(name, next(rows), top_k))
                elif not batch:
                    return
        finally:
            for pool in (read_pool, network_pool):
                pool.shutdown(wait=True, cancel_futures=True)

    def _input(self, source: ImageSource, name: str, stdin: BinaryIO | None
               ) -> NDArray[np.float32] | str:
        """The network's input (C, H, W) for an image, or why it cannot be read."""
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
                              f"numbers in {self.precision}; the cause is the weights or the "
                              "precision, not the image")
        return Prediction(image=name, classes=tuple(
            (self.card.classes[i], probability) for i, probability in top_classes(logits, top_k)))

    def _open_exported(self, directory: Path, backend: Backend, precision: Precision | None,
                       device: str, act: Act | None, threads: int | None, trusted: bool) -> None:
        manifest = Manifest.load(directory, verify=False)
        if manifest.format == "torch" and not trusted:
            raise InputError(f"{directory} is an export in the format torch, which PyTorch "
                             "unpickles, so it can run code; if you trust its source, pass "
                             "trusted, else use an export to ONNX or OpenVINO")
        own = _BACKENDS[manifest.format]
        for option, given, possible in (
                ("backend", backend, ("auto", own)),
                ("precision", precision, (None, manifest.precision)),
                ("device", device, ("auto", "cpu")), ("act", act, (None,))):
            if given not in possible:
                raise InputError(
                    f"{directory} was exported for {own} on the CPU in {manifest.precision}, "
                    f"which {option}={given!r} cannot change; export again, or use the model that "
                    "it was exported from")
        self.card, self.backend, self.precision = manifest.card, own, manifest.precision
        self._hash_weights = lambda: hashlib.sha256(json.dumps(
            dict(manifest.hashes), sort_keys=True).encode()).hexdigest()
        # Verify the checksums in parallel with opening the graph.
        with ThreadPoolExecutor(1) as pool:
            checked = pool.submit(Manifest.load, directory)
            try:
                self._session = _open_graph(manifest, directory / manifest.graph, threads,
                                            self.batch_size)
            finally:
                checked.result()  # a wrong checksum explains any other error

    def _open_trained(self, source: str | Path, backend: Backend, precision: Precision,
                      device: str, act: Act | None, threads: int | None) -> None:
        from cvt.weights.models import load_model

        network, self.card = load_model(source, act=act)
        if not self.card.classes:
            raise InputError(f"{source} has no classifier; train one first")
        if precision == "int8":
            raise InputError("int8 needs calibration on images; export the model with "
                             "`cvt export --precision int8`, and use the exported directory")
        self.backend, self.precision = "eager" if backend == "auto" else backend, precision
        self._hash_weights = partial(_hash_tensors, network)
        self._session = _torch_session(network, self.backend, precision, device, threads,
                                       self.batch_size)


def _hash_tensors(network: CvT) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(name.encode() + tensor.cpu().numpy().tobytes())
    return digest.hexdigest()


def top_classes(logits: NDArray[np.float32], top_k: int) -> list[tuple[int, float]]:
    """Indices and probabilities of the most probable classes, most probable first.

    logits: (K,) finite, of one image. Among equals the lower index comes first.
    """
    probabilities = softmax(logits)
    best = np.argsort(-probabilities, kind="stable")[:top_k]
    return [(int(i), float(probabilities[i])) for i in best]


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Probabilities (..., K) of finite logits (..., K)."""
    exact = logits.astype(np.float64)
    exponentials = np.exp(exact - exact.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


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
            raise InputError(f"{backend} runs on the CPU only, not on device={device!r}; use "
                             "backend='eager' or 'compile'")
        device = "cpu"
    place = pick_device(device)
    if place.type == "cuda" and ":" not in device:  # each process has its own
        place = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return session_of(network.to(place), backend=backend, precision=precision,
                      batch_size=batch_size, threads=threads)


def find_images(names: Sequence[str], *, strict: bool = False, left_out: LeftOut | None = None
                ) -> list[str | Member]:
    """The images that `names` stand for: paths, "-", folders and their subfolders, tar archives,
    folders that contain only archives, and patterns of files, folders and archives.

    What else is in folders and archives is counted in `left_out`. Raises InputError for a folder,
    an archive or a pattern without images, and for a compressed or corrupt archive. A missing path
    stays in the list, for a `Predictor` to report; with `strict` it is an InputError too.
    """
    left_out = LeftOut() if left_out is None else left_out
    result: list[str | Member] = []
    for name in names:
        path = Path(name)
        if name != STDIN and path.is_dir():
            result += _in_folder(path, left_out)
        elif name != STDIN and not path.exists() and glob.has_magic(name):
            # glob itself passes over names that start with a dot.
            matches = [match for match in sorted(glob.glob(name, recursive=True))
                       if not is_hidden(os.path.basename(match))]
            files = [match for match in matches if os.path.isfile(match)]
            result += _expand_archives(files, left_out)
            folders = [] if "**" in name else [m for m in matches if os.path.isdir(m)]
            for folder in folders:  # with ** their files match themselves
                result += _in_folder(Path(folder), left_out, may_be_empty=True)
            if not files and not folders:
                raise InputError(f"no file matches the pattern {name!r}")
        elif strict and name != STDIN and not path.exists():
            raise InputError(f"{name}: no such file")
        else:
            result += _expand_archives([name], left_out)
    if names and not result:
        raise InputError(f"there are no images in {', '.join(names)}"
                         + (f"; left out: {left_out}" if left_out else ""))
    return result


def _in_folder(folder: Path, left_out: LeftOut, may_be_empty: bool = False
               ) -> list[str | Member]:
    here = LeftOut()
    images: list[str | Member] = list(list_images(folder, here))
    if not images:
        archives = [str(path) for path in sorted(folder.rglob("*.tar")) if not is_hidden(path.name)]
        images = list(_expand_archives(archives, here))
        here[NOT_IMAGES, ".tar"] -= len(archives)
        here += LeftOut()  # without counts of zero
    if not images and not may_be_empty:
        raise InputError(f"{folder} has no images or .tar archives in it or below it"
                         + (f"; left out: {here}" if here else ""))
    left_out.update(here)
    return images


def read_list(path: str | Path) -> list[str]:
    """The paths in a text file, one on each line, as `find_file` finds them; empty lines are
    skipped.

    Raises OSError if the file cannot be read, InputError if it lists nothing.
    """
    lines = read_text(path).replace("\r\n", "\n").replace("\r", "\n").split("\n")
    names = [line if line == STDIN else str(find_file(line)) for line in lines if line.strip()]
    if not names:
        raise InputError(f"{path} lists no images; give one path on each line")
    return names


def _expand_archives(names: Iterable[str], left_out: LeftOut) -> Iterator[str | Member]:
    """Replace archives by the images in them."""
    for name in names:
        if name.lower().endswith(".tar") and Path(name).is_file():
            yield from archive_images(Path(name), left_out)
        elif name.lower().endswith(COMPRESSED) and Path(name).is_file():
            raise InputError(f"{name} is a compressed archive; unpack it and give the directory")
        else:
            yield name
