"""Inference sessions of exported graphs. No torch.

A session maps images (B, C, H, W) float32 to logits (B, K) float32. It is not thread-safe.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from cvt.deploy.manifest import Precision
from cvt.system.errors import InputError
from cvt.system.extras import require
from cvt.system.machine import available_cores, native_bf16

if TYPE_CHECKING:
    import openvino

Backend = Literal["auto", "eager", "compile", "openvino", "onnxruntime"]
"""A backend of `cvt.deploy.backends`; "auto" lets the callee choose."""
Session = Callable[[NDArray[np.float32]], NDArray[np.float32]]

# A large batch is computed in chunks of this many images: with more, what one layer writes has left
# the caches when the next one reads it, and memory grows.
_CHUNK = 4

# Maximum number of shapes that a graph is compiled for; chunks of one image size have up to four.
_MAX_SHAPES = _CHUNK

_ISA = "ONEDNN_MAX_CPU_ISA"


def openvino_session(model: str | Path | openvino.Model, *, precision: Precision,
                     threads: int | None = None, latency: bool) -> Session:
    """Open an OpenVINO graph, an .xml file or a model in memory, on the CPU.

    precision: the precision that it was exported with. threads: number of cores to use, all by
    default. latency: True uses all of them for one batch, best for batches of one; False splits a
    batch among streams of a few cores each, best for large batches. The second call with a new
    shape takes a second longer, as the graph is compiled for that shape.

    Raises InputError if openvino is not installed or the graph cannot be opened; the session raises
    it for images that the graph does not take.
    """
    require("openvino", "openvino")
    options: dict[str, Any] = {
        # The default is bfloat16 wherever the processor has it. An int8 graph specifies itself what
        # is in 8 bits; compared with their rounding, that of bfloat16 in the rest is negligible.
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" or (
            precision == "int8" and native_bf16()) else "f32",
        "PERFORMANCE_HINT": "LATENCY" if latency else "THROUGHPUT",
    }
    if threads is not None:
        options["INFERENCE_NUM_THREADS"] = threads
    core = openvino_core()

    def requests_of(graph: openvino.Model) -> list[openvino.InferRequest]:
        network = core.compile_model(graph, "CPU", options)
        streams = 1 if latency else network.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")
        return [network.create_infer_request() for _ in range(streams)]

    try:
        graph = core.read_model(str(model)) if isinstance(model, (str, Path)) else model
        for_any_shape = requests_of(graph)
    except RuntimeError as error:
        name = model if isinstance(model, (str, Path)) else "the graph"
        raise InputError(f"OpenVINO cannot open {name}: {_reason(error)}") from None
    shape = [None if axis.is_dynamic else axis.get_length()
             for axis in graph.input(0).get_partial_shape()]
    workers = 1 if latency else threads or available_cores()
    compiled: dict[tuple[int, ...], list[openvino.InferRequest]] = {}
    seen: set[tuple[int, ...]] = set()

    def requests_for(exact: tuple[int, ...]) -> list[openvino.InferRequest]:
        # A graph compiled for the exact shape is up to a fifth faster than a dynamic one. Compiling
        # takes a second and a copy of the weights, so not for a shape that occurs only once.
        if (exact in seen and exact not in compiled and len(compiled) < _MAX_SHAPES
                and None in shape):
            fixed = graph.clone()
            fixed.reshape(list(exact))
            compiled[exact] = requests_of(fixed)
        seen.add(exact)
        return compiled.get(exact, for_any_shape)

    def run(chunks: Sequence[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        """Logits of chunks of one shape."""
        requests = requests_for(chunks[0].shape)
        streams = len(requests)
        logits: list[NDArray[np.float32]] = []
        try:
            for i in range(len(chunks) + streams):
                request = requests[i % streams]
                if 0 <= i - streams < len(chunks):
                    request.wait()
                    # A copy, as the request's next run overwrites its output.
                    logits.append(request.get_output_tensor(0).data.copy())
                if i < len(chunks):
                    # Not copied first; `chunks` outlives the run.
                    request.start_async([chunks[i]], share_inputs=True)
        except RuntimeError:
            for request in requests:
                with contextlib.suppress(RuntimeError):
                    request.wait()
            raise
        return logits

    def session(images: NDArray[np.float32]) -> NDArray[np.float32]:
        images = _check_images(images, shape)
        try:
            return np.concatenate([
                logits for _, chunks in itertools.groupby(_chunks(images, shape, workers), np.shape)
                for logits in run(list(chunks))])
        except RuntimeError as error:
            raise InputError(_rejection(images, error)) from None

    return session


@functools.cache
def openvino_core() -> openvino.Core:
    """OpenVINO's runtime, one for the whole process, which is never closed.

    Opening the CPU device gives the calling thread a signal stack. When its last user is gone, on
    whatever thread, OpenVINO removes that stack, and the next signal would end the process.
    """
    ov = require("openvino", "openvino")
    core = ov.Core()
    # Only half of OpenVINO's code generator obeys ONEDNN_MAX_CPU_ISA. With AVX2 on a processor with
    # AVX-512, a norm over a width that is not a multiple of 16 ends the process. The variable is
    # read once, when the first graph is compiled.
    limit = os.environ.pop(_ISA, None)
    try:
        x = ov.opset13.parameter([1], np.float32)
        core.compile_model(ov.Model([ov.opset13.relu(x)], [x], "first"), "CPU")
    finally:
        if limit is not None:
            os.environ[_ISA] = limit
    return core


def onnx_session(model: str | Path, *, threads: int | None = None) -> Session:
    """Open an .onnx file with ONNX Runtime on the CPU.

    threads: number of cores to use, all by default. Raises InputError if onnxruntime is not
    installed or the file cannot be opened; the session raises it for images that the graph does not
    take.
    """
    ort = require("onnxruntime", "onnx")
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.intra_op_num_threads = threads or 0  # 0: one per core
    # By default its threads spin between batches, on cores that decode the next one.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3  # errors; its warnings are about its internals
    try:
        opened = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    # Its exceptions have private classes without a narrower base.
    except Exception as error:
        raise InputError(f"ONNX Runtime cannot open {model}: {_reason(error)}") from None
    taken = opened.get_inputs()[0]
    output = opened.get_outputs()[0].name
    shape = [axis if isinstance(axis, int) else None for axis in taken.shape]
    # A failed run raises; the log on stderr would repeat the error.
    quiet = ort.RunOptions()
    quiet.log_severity_level = 4

    def session(images: NDArray[np.float32]) -> NDArray[np.float32]:
        images = _check_images(images, shape)
        try:
            return np.concatenate([opened.run([output], {taken.name: chunk}, quiet)[0]
                                   for chunk in _chunks(images, shape, 1)])
        except Exception as error:
            raise InputError(_rejection(images, error)) from None

    return session


def _check_images(images: NDArray[np.float32], shape: Sequence[int | None]
                  ) -> NDArray[np.float32]:
    """`images` contiguous and in float32. Raises InputError if they do not fit `shape`."""
    if (images.ndim != len(shape) or not images.size
            or any(want not in (None, got) for got, want in zip(images.shape, shape, strict=True))):
        wanted = ", ".join("any" if axis is None else str(axis) for axis in shape)
        raise InputError(f"images of shape {images.shape} do not fit the graph, which takes "
                         f"({wanted}): a batch of one or more, channels, height, width")
    return np.ascontiguousarray(images, np.float32)


def _chunks(images: NDArray[np.float32], shape: Sequence[int | None], workers: int
            ) -> list[NDArray[np.float32]]:
    """`images` in even chunks for `workers`, or whole if the graph has a fixed batch size."""
    if shape[0] is not None:
        return [images]
    n = min(len(images), max(workers, math.ceil(len(images) / _CHUNK)))
    return np.array_split(images, n)


def _rejection(images: NDArray[np.float32], error: Exception) -> str:
    height, width = images.shape[2:]
    return (f"the graph cannot compute images of {height}x{width} pixels ({_reason(error)}); give "
            "them the size that the model was trained on")


def _reason(error: Exception) -> str:
    """The last line of a runtime's error, which states the cause, at most 200 characters."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][-200:] if lines else type(error).__name__
