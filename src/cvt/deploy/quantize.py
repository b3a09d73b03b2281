"""Weights and activations in 8 bits, calibrated on the user's own images."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cvt.deploy.sessions import openvino_core
from cvt.system.errors import InputError
from cvt.system.extras import require

if TYPE_CHECKING:
    import openvino

Images = NDArray[np.float32]  # (B, C, H, W), prepared

# A handful of images does not show the ranges of the next one; NNCF's own default is 300.
MIN_IMAGES, MAX_IMAGES = 8, 300


def quantize(model: openvino.Model, batches: Sequence[Images]) -> openvino.Model:
    """Return a copy of `model` in 8-bit arithmetic, calibrated on the images in `batches`.

    Post-training quantization by NNCF for Transformers: weights per channel, activations per
    tensor, both symmetric, with SmoothQuant and bias correction; softmax and norms stay in floating
    point.
    Raises InputError for fewer than 8 images and if nncf is not installed.
    """
    images = _images(batches)
    nncf = require("nncf", "openvino")
    openvino_core()  # before NNCF compiles graphs of its own
    # NNCF draws progress bars, and makes torch look for a CUDA compiler.
    with (_silent("nncf"), _silent("torch.utils.cpp_extension"),
          contextlib.redirect_stdout(io.StringIO())):
        return nncf.quantize(model.clone(), nncf.Dataset(images), subset_size=len(images),
                             model_type=nncf.ModelType.TRANSFORMER,
                             preset=nncf.QuantizationPreset.PERFORMANCE)


def quantize_onnx(source: str | Path, destination: str | Path, batches: Sequence[Images]) -> None:
    """Write the ONNX model `source` to `destination` with 8-bit products, calibrated on `batches`.

    Static quantization by ONNX Runtime in QDQ format: convolutions and matrix products, weights per
    channel. Softmax, norms, activations and additions stay in floating point, for accuracy.
    Raises InputError for fewer than 8 images and if onnxruntime is not installed.
    """
    images = _images(batches)
    require("onnx", "onnx")
    ort = require("onnxruntime.quantization", "onnx")

    class Reader(ort.CalibrationDataReader):  # type: ignore[misc, name-defined]
        """Feeds the images to ONNX Runtime one by one."""

        def __init__(self) -> None:
            self.feeds = iter([{"images": image} for image in images])

        def get_next(self) -> dict[str, Images] | None:
            """Return the next image, or None after the last."""
            return next(self.feeds, None)

    with _silent(None):  # it recommends a preprocessing step that the exporter has done
        ort.quantize_static(str(source), str(destination), Reader(), per_channel=True,
                            quant_format=ort.QuantFormat.QDQ,
                            op_types_to_quantize=["Conv", "MatMul", "Gemm"],
                            activation_type=ort.QuantType.QUInt8,
                            weight_type=ort.QuantType.QInt8)


def _images(batches: Sequence[Images]) -> list[Images]:
    """Batches of one image: calibrators count each batch as one sample."""
    images = [batch[i:i + 1] for batch in batches for i in range(len(batch))][:MAX_IMAGES]
    check_enough(len(images))
    return images


def check_enough(n: int) -> None:
    """Raise InputError if `n` images are too few for calibration."""
    if n < MIN_IMAGES:
        raise InputError(f"int8 needs at least {MIN_IMAGES} images for calibration, got {n}; give "
                         f"about {MAX_IMAGES} like those that the model will see")


@contextlib.contextmanager
def _silent(name: str | None) -> Iterator[None]:
    """Log only errors to the logger `name`; None is the root logger."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
