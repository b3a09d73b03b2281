"""An exported graph as a function: images (B, C, H, W) float32 to logits (B, K) float32. No torch.

A session is called from one thread at a time.
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
"""What computes a network, see `cvt.deploy.backends`; "auto" leaves the choice to the caller."""
Session = Callable[[NDArray[np.float32]], NDArray[np.float32]]

# Images that a large batch is computed by: with more, what one layer writes is out of the caches
# when the next one reads it, and takes memory in proportion.
_PART = 4

# Shapes that a graph is compiled for by themselves: the parts of batches of one size of image.
_SHAPES = _PART

_ISA = "ONEDNN_MAX_CPU_ISA"


def openvino_session(model: str | Path | openvino.Model, *, precision: Precision,
                     threads: int | None = None, latency: bool) -> Session:
    """A graph of OpenVINO on the CPU: an .xml file, or a model in memory.

    precision: what it was exported for. threads: how many cores it may use; by default all.
    latency: True puts all of them on one batch, which suits batches of one; False shares a batch
    out among streams of a few cores each, which suits large ones. The second call with images of a
    shape takes a second more, for the graph is compiled for it then. Raises InputError where
    openvino is not installed, the file cannot be opened, and, when called, for images that the
    graph does not take.
    """
    require("openvino", "openvino")
    options: dict[str, Any] = {
        # By default it computes in bfloat16 wherever the processor can. An int8 graph says itself
        # what is in 8 bits; next to their rounding that of bfloat16 in the rest does not count.
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
        for_any = requests_of(graph)
    except RuntimeError as error:
        raise InputError(f"OpenVINO cannot open {_called(model)}: {_reason(error)}") from None
    shape = [None if axis.is_dynamic else axis.get_length()
             for axis in graph.input(0).get_partial_shape()]
    workers = 1 if latency else threads or available_cores()
    compiled: dict[tuple[int, ...], list[openvino.InferRequest]] = {}
    seen: set[tuple[int, ...]] = set()

    def requests_for(given: tuple[int, ...]) -> list[openvino.InferRequest]:
        # A graph compiled for the very shape is up to a fifth faster than one for any shape. It
        # takes a second and a copy of the weights, so not for a shape that comes but once.
        if given in seen and given not in compiled and len(compiled) < _SHAPES and None in shape:
            fixed = graph.clone()
            fixed.reshape(list(given))
            compiled[given] = requests_of(fixed)
        seen.add(given)
        return compiled.get(given, for_any)

    def run(parts: Sequence[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        """Logits of parts of one shape."""
        requests = requests_for(parts[0].shape)
        streams = len(requests)
        logits: list[NDArray[np.float32]] = []
        try:
            for i in range(len(parts) + streams):
                request = requests[i % streams]
                if 0 <= i - streams < len(parts):
                    request.wait()
                    # A copy, for the request's next run overwrites its output.
                    logits.append(request.get_output_tensor(0).data.copy())
                if i < len(parts):
                    # Shared, or the images would be copied first; `parts` outlives the run.
                    request.start_async([parts[i]], share_inputs=True)
        except RuntimeError:
            for request in requests:
                with contextlib.suppress(RuntimeError):
                    request.wait()
            raise
        return logits

    def session(images: NDArray[np.float32]) -> NDArray[np.float32]:
        images = _fitting(images, shape)
        try:
            return np.concatenate([
                logits for _, parts in itertools.groupby(_parts(images, shape, workers), np.shape)
                for logits in run(list(parts))])
        except RuntimeError as error:
            raise InputError(_refusal(images, error)) from None

    return session


@functools.cache
def openvino_core() -> openvino.Core:
    """OpenVINO's devices, one for the whole process.

    The CPU's gives the thread that opens it a stack for signals. When the last user is gone, on
    whatever thread, it takes that stack away, and the next signal ends the process.
    """
    ov = require("openvino", "openvino")
    core = ov.Core()
    # ONEDNN_MAX_CPU_ISA limits one half of its code generator and not the other. With AVX2 on a
    # processor with AVX-512, a norm over a width that is no multiple of 16 ends the process. It is
    # read once, by the first graph that is compiled.
    limit = os.environ.pop(_ISA, None)
    try:
        x = ov.opset13.parameter([1], np.float32)
        core.compile_model(ov.Model([ov.opset13.relu(x)], [x], "first"), "CPU")
    finally:
        if limit is not None:
            os.environ[_ISA] = limit
    return core


def onnx_session(model: str | Path, *, threads: int | None = None) -> Session:
    """A graph of ONNX in ONNX Runtime on the CPU, in a file.

    threads: how many cores it may use; by default all. Raises InputError where onnxruntime is not
    installed, the graph cannot be opened, and, when called, for images that it does not take.
    """
    ort = require("onnxruntime", "onnx")
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.intra_op_num_threads = threads or 0  # 0: one a core
    # By default its threads spin between batches, on the cores that decode the next one.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3  # errors; a warning of its is about its own machinery
    try:
        opened = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    # Its exceptions derive from nothing narrower, and their classes are private.
    except Exception as error:
        raise InputError(f"ONNX Runtime cannot open {_called(model)}: {_reason(error)}") from None
    taken = opened.get_inputs()[0]
    output = opened.get_outputs()[0].name
    shape = [axis if isinstance(axis, int) else None for axis in taken.shape]
    # A run that fails is reported by its exception; the log on stderr would say it twice.
    quiet = ort.RunOptions()
    quiet.log_severity_level = 4

    def session(images: NDArray[np.float32]) -> NDArray[np.float32]:
        images = _fitting(images, shape)
        try:
            return np.concatenate([opened.run([output], {taken.name: part}, quiet)[0]
                                   for part in _parts(images, shape, 1)])
        except Exception as error:
            raise InputError(_refusal(images, error)) from None

    return session


def _fitting(images: NDArray[np.float32], shape: Sequence[int | None]) -> NDArray[np.float32]:
    """`images` as the runtimes want them in memory; raises InputError where they do not fit."""
    if (images.ndim != len(shape) or not images.size
            or any(want not in (None, got) for got, want in zip(images.shape, shape, strict=True))):
        wanted = ", ".join("any" if axis is None else str(axis) for axis in shape)
        raise InputError(f"images of shape {images.shape} do not fit the graph, which takes "
                         f"({wanted}): a batch of one or more, channels, height, width")
    return np.ascontiguousarray(images, np.float32)


def _parts(images: NDArray[np.float32], shape: Sequence[int | None], workers: int
           ) -> list[NDArray[np.float32]]:
    """`images` in parts, as even as they come, for `workers` to share, or whole if they must be."""
    if shape[0] is not None:
        return [images]
    n = min(len(images), max(workers, math.ceil(len(images) / _PART)))
    return np.array_split(images, n)


def _refusal(images: NDArray[np.float32], error: Exception) -> str:
    height, width = images.shape[2:]
    return (f"the graph cannot compute images of {height}x{width} pixels ({_reason(error)}); give "
            "them the size that the model was trained on")


def _called(model: object) -> str:
    return str(model) if isinstance(model, (str, Path)) else "the given graph"


def _reason(error: Exception) -> str:
    """The end of a runtime's error, which tells the cause, in one line of a bearable length."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][-200:] if lines else type(error).__name__
