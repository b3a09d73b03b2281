"""The fastest exact form of a trained model, by backend and precision.

    backend       precisions         description
    eager         fp32, bf16         PyTorch, the network folded (cvt.fast.network)
    compile       fp32, bf16         the same with torch.compile, weights frozen
    openvino      fp32, bf16, int8   an OpenVINO graph
    onnxruntime   fp32, int8         an ONNX graph
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
from cvt.deploy.quantize import MAX_IMAGES, Images, check_enough
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
    """A fast form of a model: maps a float batch (B, C, H, W) to logits (B, K).

    Batch and logits are on the CPU for openvino and onnxruntime, otherwise on the model's device.
    It returns logits only: no features, no gradients.
    """

    backend: str
    precision: str
    agreement: Agreement
    """The agreement of its logits with the model's, measured when it was built."""
    run: Callable[[Tensor], Tensor]

    def __call__(self, images: Tensor) -> Tensor:
        """Return logits (B, K) float32 of normalised images (B, C, H, W)."""
        with torch.inference_mode():
            return self.run(images)


def optimize(model: CvT, backend: Backend = "eager", precision: Precision = "fp32", *,
             batch_size: int = 1, threads: int | None = None,
             calibration: Iterable[Tensor] | None = None, tolerance: float | None = None
             ) -> Optimized:
    """Return a fast form of `model`, verified on sample images to compute the same function.

    backend: "auto" picks the fastest that is installed and has the precision. batch_size: the usual
    batch size, which it is tuned for; it takes any. threads: number of cores to use, all by
    default; for eager and compile this sets PyTorch's threads for the whole process. calibration:
    for int8, normalised batches (B, C, H, W) of images like those to come; the first 300 images are
    used. tolerance: maximum difference of any logit, relative to the largest logit; by default 2e-5
    in fp32, 0.1 in bf16 and 0.5 in int8.

    Raises InputError for a precision that the backend lacks, a missing package or compiler, a model
    on a GPU with openvino or onnxruntime, and a difference above the tolerance.
    """
    if model.training:
        raise InputError("only a model in evaluation mode can be optimized; call model.eval() "
                         "first")
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
        raise InputError("torch.compile needs a C++ compiler, and there is none; install g++ or "
                         "clang, set CXX to another, or use backend='eager'")
    images = samples(model.config, size=max(model.config.image_size, traceable_side(model.config)))
    images = images.to(device)
    folded = Folded(model)
    if chosen in ("eager", "compile"):
        if threads is not None:
            torch.set_num_threads(threads)
        run = _torch_run(folded, chosen, precision)
    elif device.type != "cpu":
        raise InputError(f"{chosen} runs on the CPU only, and the model is on {device}; move it "
                         "with model.cpu(), or use backend='eager'")
    else:
        run = _graph_run(folded, chosen, precision, images, batch_size, threads,
                         _images(calibration or ()) if precision == "int8" else [])
    agreement = verify(model, run, images, precision, tolerance)
    return Optimized(backend=chosen, precision=precision, agreement=agreement, run=run)


def pick_backend(precision: Precision, device: torch.device) -> str:
    """Return the fastest backend that is installed, has `precision` and runs on `device`.

    On a CPU that is OpenVINO, then ONNX Runtime, then PyTorch; elsewhere PyTorch. torch.compile is
    never picked, as its first call takes a minute. Raises InputError if no installed backend has
    the precision.
    """
    if device.type == "cpu":
        for name in ("openvino", "onnxruntime"):
            if importlib.util.find_spec(name) and precision in PRECISIONS[name]:
                return name
    if precision not in PRECISIONS["eager"]:
        raise InputError(f"no installed backend has {precision} on {device}; "
                         "pip install 'cvt-torch[openvino]'")
    return "eager"


def session_of(model: CvT, *, backend: Backend, precision: Precision, batch_size: int,
               threads: int | None) -> Session:
    """Return a fast form of `model` that maps numpy arrays to numpy arrays."""
    optimized = optimize(model, backend, precision, batch_size=batch_size, threads=threads)
    device = next(model.parameters()).device

    def session(images: NDArray[np.float32]) -> NDArray[np.float32]:
        return optimized(torch.from_numpy(images).to(device)).cpu().numpy()

    return session


def _torch_run(folded: Folded, backend: str, precision: Precision) -> Callable[[Tensor], Tensor]:
    network: nn.Module = folded
    if precision == "bf16":
        network = copy.deepcopy(folded).bfloat16()  # parameters shared with the model stay
    call: Callable[[Tensor], Tensor] = network
    if backend == "compile":
        call = _frozen(network)
    if precision == "bf16":
        return lambda images: call(images.bfloat16()).float()
    return call


def _frozen(network: nn.Module) -> Callable[[Tensor], Tensor]:
    """`network` compiled with its weights as constants, packed for the processor."""
    compiled = torch.compile(network)

    def call(images: Tensor) -> Tensor:
        # torch.compile has no such option; tracing reads this global setting.
        with inductor.patch(freezing=True):
            return compiled(images)

    return call


def _graph_run(folded: Folded, backend: str, precision: Precision, example: Tensor,
               batch_size: int, threads: int | None, calibration: Sequence[Images]
               ) -> Callable[[Tensor], Tensor]:
    if backend == "openvino":
        graph = openvino_graph(folded, example=example, calibration=calibration)
        session = openvino_session(graph, precision=precision, threads=threads,
                                   latency=batch_size == 1)
    else:
        with tempfile.TemporaryDirectory() as home:
            path = Path(home) / "model.onnx"
            onnx_graph(folded, path, example=example, calibration=calibration)
            session = onnx_session(path, threads=threads)
    return lambda images: torch.from_numpy(session(images.numpy()))


def _images(batches: Iterable[Tensor]) -> list[Images]:
    """Only as many batches as int8 needs, since the argument may be an endless loader."""
    taken: list[Images] = []
    for batch in batches:
        taken.append(batch.cpu().numpy())
        if sum(map(len, taken)) >= MAX_IMAGES:
            break
    check_enough(sum(map(len, taken)))
    return taken
