"""One call for the fastest exact form of a trained model: what computes it, and in which precision.

    backend       precisions         what it is
    eager         fp32, bf16         PyTorch, the network folded (cvt.fast.network)
    compile       fp32, bf16         the same through torch.compile, weights frozen into it
    openvino      fp32, bf16, int8   OpenVINO's graph of it
    onnxruntime   fp32, int8         ONNX Runtime's
"""

from __future__ import annotations

import copy
import importlib.util
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch._inductor import config as inductor

from cvt.deploy.graphs import onnx_graph, openvino_graph, traceable_side
from cvt.deploy.manifest import Precision
from cvt.deploy.quantize import MOST, Images, quantise, quantise_onnx
from cvt.deploy.sessions import Backend, Session, onnx_session, openvino_session
from cvt.fast.network import Folded
from cvt.fast.verify import Agreement, samples, verify
from cvt.model import CvT
from cvt.system.errors import InputError, did_you_mean

PRECISIONS: Mapping[str, tuple[Precision, ...]] = {
    "eager": ("fp32", "bf16"), "compile": ("fp32", "bf16"),
    "openvino": ("fp32", "bf16", "int8"), "onnxruntime": ("fp32", "int8")}


@dataclass(frozen=True, kw_only=True)
class Optimized:
    """A model's fast form: called with a float batch (B, C, H, W), it returns logits (B, K).

    The batch and the logits are on the CPU for openvino and onnxruntime, on the model's device
    else. It gives logits alone: no features, no gradients.
    """

    backend: str
    """What computes it."""
    precision: str
    """In which precision."""
    agreement: Agreement
    """How near its logits are to the model's, as measured when it was made."""
    run: Callable[[Tensor], Tensor]
    """The computation itself."""

    def __call__(self, images: Tensor) -> Tensor:
        """Logits (B, K) float32 of normalised images (B, C, H, W)."""
        with torch.inference_mode():
            return self.run(images)


def optimize(model: CvT, backend: Backend = "eager", precision: Precision = "fp32", *,
             batch_size: int = 1, threads: int | None = None,
             calibration: Iterable[Tensor] | None = None, tolerance: float | None = None
             ) -> Optimized:
    """The fast form of `model`, proved on sample images to be the same function.

    backend: "auto" takes the best that is installed and has the precision. batch_size: what it will
    mostly be called with, for which it is tuned; it takes any. threads: how many cores it may use;
    by default all; for eager and compile that is PyTorch's setting for the whole process.
    calibration: for int8, normalised batches (B, C, H, W) of images like those to come, of which
    the first 300 images are taken. tolerance: the largest difference of a logit that is accepted,
    in units of the largest logit; by default 2e-5 in fp32, 0.1 in bf16 and 0.5 in int8. Raises
    InputError for a precision that the backend lacks, for a package or a compiler that is missing,
    for a graph's backend and a model on a GPU, and above the tolerance.
    """
    if model.training:
        raise InputError("only a model in evaluation mode is optimised; call model.eval() first")
    chosen = pick_backend(precision, next(model.parameters()).device) if backend == "auto" else (
        backend)
    if chosen not in PRECISIONS:
        raise InputError(f"backend={chosen!r}; {did_you_mean(chosen, ['auto', *PRECISIONS])}")
    if precision not in PRECISIONS[chosen]:
        raise InputError(f"{chosen} has no {precision}; it has {', '.join(PRECISIONS[chosen])}")
    if precision == "int8" and calibration is None:
        raise InputError("int8 needs calibration=, batches of normalised images like those that "
                         "the model will see")
    device = next(model.parameters()).device
    if chosen == "compile" and device.type == "cpu" and not any(map(shutil.which, (
            os.environ.get("CXX", "g++"), "c++", "clang++", "cl"))):
        raise InputError("torch.compile calls a C++ compiler, and there is none; install g++ or "
                         "clang, set CXX to another, or take backend='eager'")
    images = samples(model.config, size=max(model.config.image_size, traceable_side(model.config)))
    images = images.to(device)
    folded = Folded(model)
    if chosen in ("eager", "compile"):
        if threads is not None:
            torch.set_num_threads(threads)
        run = _torch_run(folded, chosen, precision)
    elif device.type != "cpu":
        raise InputError(f"{chosen} computes on the CPU alone, and the model is on {device}; move "
                         "it with model.cpu(), or take backend='eager'")
    else:
        run = _graph_run(folded, chosen, precision, images, batch_size, threads,
                         _images(calibration or ()))
    agreement = verify(model, run, images, precision, tolerance)
    return Optimized(backend=chosen, precision=precision, agreement=agreement, run=run)


def pick_backend(precision: Precision, device: torch.device) -> str:
    """The fastest backend that is installed, has `precision` and runs on `device`.

    On a CPU OpenVINO, then ONNX Runtime, then PyTorch; on others PyTorch alone. torch.compile is
    never picked unasked, for its first call takes a minute. Raises InputError where nothing that
    is installed has the precision.
    """
    if device.type == "cpu":
        for name in ("openvino", "onnxruntime"):
            if importlib.util.find_spec(name) and precision in PRECISIONS[name]:
                return name
    if precision not in PRECISIONS["eager"]:
        raise InputError(f"nothing that is installed computes {precision} on {device}; "
                         "pip install 'cvt-torch[openvino]'")
    return "eager"


def session_of(model: CvT, *, backend: Backend, precision: Precision, batch_size: int,
               threads: int | None) -> Session:
    """The fast form of `model` between numpy arrays, as the light runtime has it."""
    optimized = optimize(model, backend, precision, batch_size=batch_size, threads=threads)
    device = next(model.parameters()).device

    def session(images: NDArray[np.float32]) -> NDArray[np.float32]:
        return optimized(torch.from_numpy(images).to(device)).cpu().numpy()

    return session


def _torch_run(folded: Folded, backend: str, precision: Precision) -> Callable[[Tensor], Tensor]:
    network: nn.Module = folded
    if precision == "bf16":
        network = copy.deepcopy(folded).bfloat16()  # what it shares with the model stays as it is
    call: Callable[[Tensor], Tensor] = network
    if backend == "compile":
        call = _frozen(network)
    if precision == "bf16":
        return lambda images: call(images.bfloat16()).float()
    return call


def _frozen(network: nn.Module) -> Callable[[Tensor], Tensor]:
    """`network` compiled with its weights as constants, which are packed for the processor."""
    compiled = torch.compile(network)

    def call(images: Tensor) -> Tensor:
        # Not an option of torch.compile: what traces the network reads this setting alone.
        with inductor.patch(freezing=True):
            return compiled(images)

    return call


def _graph_run(folded: Folded, backend: str, precision: Precision, example: Tensor,
               batch_size: int, threads: int | None, calibration: Sequence[Images]
               ) -> Callable[[Tensor], Tensor]:
    if backend == "openvino":
        graph = openvino_graph(folded, example=example)
        if precision == "int8":
            graph = quantise(graph, calibration)
        session = openvino_session(graph, precision=precision, threads=threads,
                                   latency=batch_size == 1)
    else:
        with tempfile.TemporaryDirectory() as home:
            path = Path(home) / "model.onnx"
            onnx_graph(folded, path, example=example)
            if precision == "int8":
                small = path.with_stem("int8")
                quantise_onnx(path, small, calibration)
                path = small
            session = onnx_session(path, threads=threads)
    return lambda images: torch.from_numpy(session(images.numpy()))


def _images(batches: Iterable[Tensor]) -> list[Images]:
    """No more of the batches than int8 needs: a loader of a whole dataset may be given."""
    taken: list[Images] = []
    for batch in batches:
        taken.append(batch.cpu().numpy())
        if sum(map(len, taken)) >= MOST:
            break
    return taken
