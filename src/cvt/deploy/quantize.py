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

# Ranges that a handful of images show are not those of the next one; NNCF's own default is 300.
LEAST, MOST = 8, 300


def quantise(model: openvino.Model, batches: Sequence[Images]) -> openvino.Model:
    """`model` with 8-bit arithmetic, calibrated on the images in `batches`; `model` stays.

    Post-training quantisation of NNCF for Transformers: weights by channel, activations by tensor,
    both symmetric, with SmoothQuant and bias correction; softmax and norms stay in floating point.
    Raises InputError for fewer than 8 images and where nncf is not installed.
    """
    images = _images(batches)
    nncf = require("nncf", "openvino")
    openvino_core()  # before NNCF compiles graphs of its own
    # It draws progress bars, and makes torch look for a CUDA compiler.
    with (_silent("nncf"), _silent("torch.utils.cpp_extension"),
          contextlib.redirect_stdout(io.StringIO())):
        return nncf.quantize(model.clone(), nncf.Dataset(images), subset_size=len(images),
                             model_type=nncf.ModelType.TRANSFORMER,
                             preset=nncf.QuantizationPreset.PERFORMANCE)


def quantise_onnx(source: str | Path, destination: str | Path, batches: Sequence[Images]) -> None:
    """The ONNX model `source` as `destination`, with 8-bit products, calibrated on `batches`.

    Static quantisation of ONNX Runtime in QDQ form: convolutions and matrix products, weights by
    channel. Softmax, norms, activations and additions stay in floating point, for exactness.
    Raises InputError for fewer than 8 images and where onnxruntime is not installed.
    """
    images = _images(batches)
    require("onnx", "onnx")
    ort = require("onnxruntime.quantization", "onnx")

    class Reader(ort.CalibrationDataReader):  # type: ignore[misc, name-defined]
        """The images one by one, as ONNX Runtime asks for them."""

        def __init__(self) -> None:
            self.feeds = iter([{"images": image} for image in images])

        def get_next(self) -> dict[str, Images] | None:
            """The next image, None after the last."""
            return next(self.feeds, None)

    with _silent(None):  # it advises a preprocessing that the exporter has done
        ort.quantize_static(str(source), str(destination), Reader(), per_channel=True,
                            quant_format=ort.QuantFormat.QDQ,
                            op_types_to_quantize=["Conv", "MatMul", "Gemm"],
                            activation_type=ort.QuantType.QUInt8,
                            weight_type=ort.QuantType.QInt8)


def _images(batches: Sequence[Images]) -> list[Images]:
    """Batches of one: a batch counts as one sample to the calibrators, however large it is."""
    images = [batch[i:i + 1] for batch in batches for i in range(len(batch))][:MOST]
    check_enough(len(images))
    return images


def check_enough(n: int) -> None:
    """Raise InputError where `n` images are too few to calibrate on."""
    if n < LEAST:
        raise InputError(f"int8 is calibrated on at least {LEAST} images, {n} given; give some "
                         f"{MOST} like those that the model will see")


@contextlib.contextmanager
def _silent(name: str | None) -> Iterator[None]:
    """Only errors from the logger `name`, None for the root's."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
