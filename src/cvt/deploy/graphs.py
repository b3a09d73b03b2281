"""Export of a network to a graph of ONNX, OpenVINO or torch.export, and loading the graph.

Every graph maps `images` (B, C, H, W) float32 to `logits` (B, num_classes) float32; batch, height
and width are dynamic. A network is any module with that signature, in evaluation mode;
`cvt.fast.network.Folded` has the fewest steps. It is traced with `example` (B, C, H, W) float32: a
batch of at least 2, and sides that leave every stage more than one token and one key
(`traceable_side`), because exporters treat a dimension of 1 as constant.
"""

from __future__ import annotations

import copy
import itertools
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from cvt.config import CvTConfig
from cvt.deploy.manifest import Format, Precision
from cvt.deploy.quantize import Images, quantize, quantize_onnx
from cvt.deploy.sessions import onnx_session, openvino_session
from cvt.system.errors import InputError
from cvt.system.extras import require

if TYPE_CHECKING:
    import openvino

# The opset that torch's exporter writes itself; a newer one would be converted afterwards.
OPSET = 18

GRAPH_FILES: dict[Format, str] = {
    "onnx": "model.onnx", "openvino": "model.xml", "torch": "model.pt2"}
PRECISIONS: dict[Format, tuple[Precision, ...]] = {
    "onnx": ("fp32", "int8"), "openvino": ("fp32", "bf16", "int8"), "torch": ("fp32", "bf16")}
_PACKAGES: dict[Format, tuple[str, ...]] = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("openvino",), "torch": ()}

_PROTOBUF_LIMIT = 2**31  # bytes in one message of Protocol Buffers

Run = Callable[[Tensor], Tensor]


def check_format(to: Format, precision: Precision) -> None:
    """Raise InputError if the format lacks the precision or its packages are not installed."""
    if to not in PRECISIONS:
        raise InputError(f"there is no format {to!r}; choose from {', '.join(PRECISIONS)}")
    if precision not in PRECISIONS[to]:
        raise InputError(f"--to {to} has no {precision}; it has {', '.join(PRECISIONS[to])}")
    for package in packages(to, precision):
        require(package, extra=to)


def packages(to: Format, precision: Precision) -> tuple[str, ...]:
    """Packages that write a format, besides torch; the extra with the format's name has them."""
    return (*_PACKAGES[to], *(["nncf"] if (to, precision) == ("openvino", "int8") else []))


def traceable_side(config: CvTConfig) -> int:
    """Minimum side in pixels at which every grid of tokens and keys is wider than 1.

    35 for the networks of the paper.
    """
    def wide(side: int) -> bool:
        grids = config.grids((side, side))
        return all(min(map(min, (grid, *stage.grids_kv(grid)))) > 1
                   for stage, grid in zip(config.stages, grids, strict=True))

    return next(side for side in itertools.count(config.min_size()) if wide(side))


def onnx_graph(network: nn.Module, path: str | Path, *, example: Tensor,
               calibration: Sequence[Images] = ()) -> None:
    """Write `network` as an ONNX model of opset `OPSET`; weights above 2 GB go to a second file.

    calibration: images to quantize it to int8 with; none leaves it in floating point.
    Raises InputError if onnx or onnxscript is not installed.
    """
    onnx = require("onnx", "onnx")
    require("onnxscript", "onnx")
    dynamic = torch.export.Dim.DYNAMIC
    with _quiet():
        program = torch.onnx.export(
            _Named(network), (example,), dynamo=True, opset_version=OPSET, verbose=False,
            input_names=["images"], output_names=["logits"],
            dynamic_shapes=({0: dynamic, 2: dynamic, 3: dynamic},))
    assert program is not None
    proto = program.model_proto
    _name_axes(proto)
    large = sum(p.nbytes for p in network.parameters()) > 0.9 * _PROTOBUF_LIMIT
    with tempfile.TemporaryDirectory() as directory:
        full = Path(directory) / Path(path).name if calibration else path
        onnx.save(proto, str(full), save_as_external_data=large, location=f"{Path(path).name}.data")
        if calibration:
            quantize_onnx(full, path, calibration)


def openvino_graph(network: nn.Module, *, example: Tensor, calibration: Sequence[Images] = ()
                   ) -> openvino.Model:
    """Convert `network` to an OpenVINO model.

    calibration: images to quantize it to int8 with; none leaves it in floating point.
    OpenVINO's converter reports its use to Intel unless its command `opt_in_out --opt_out` was run.
    Raises InputError if openvino is not installed.
    """
    ov = require("openvino", "openvino")
    with _quiet():
        model = ov.convert_model(_Named(network), example_input={"images": example},
                                 input=[("images", [-1, example.shape[1], -1, -1])])
    model.input(0).tensor.set_names({"images"})
    model.output(0).tensor.set_names({"logits"})
    return quantize(model, calibration) if calibration else model


def save_openvino(model: openvino.Model, path: str | Path, *, half: bool = False) -> None:
    """Write an OpenVINO model as .xml and .bin; `half` stores the weights in 16 bits."""
    require("openvino", "openvino").save_model(model, str(path), compress_to_fp16=half)


def torch_graph(network: nn.Module, path: str | Path, *, example: Tensor, bf16: bool = False,
                fixed_size: bool = False) -> None:
    """Write `network` as a torch.export program (.pt2), which loads without this package.

    bf16: weights and arithmetic in bfloat16, images and logits in float32. fixed_size: fix height
    and width to those of `example`, for networks whose images are smaller than `traceable_side`.
    """
    dynamic = torch.export.Dim.DYNAMIC
    with _quiet():
        program = torch.export.export(_Named(network, bf16=bf16), (example,), dynamic_shapes=(
            {0: dynamic} if fixed_size else {0: dynamic, 2: dynamic, 3: dynamic},))
        for node in program.graph.nodes:  # it names files of this machine
            node.meta.pop("stack_trace", None)
        torch.export.save(program, path)


def open_graph(path: str | Path, format: Format, precision: Precision) -> Run:
    """Load a graph in its own runtime on the CPU: maps images (B, C, H, W) to logits, float32."""
    if format != "torch":
        session = (onnx_session(Path(path)) if format == "onnx" else
                   openvino_session(Path(path), precision=precision, latency=True))
        return lambda images: torch.from_numpy(session(images.numpy()))
    with _quiet():
        module = torch.export.load(path).module()

    def run(images: Tensor) -> Tensor:
        with torch.inference_mode():
            return module(images)

    return run


class _Named(nn.Module):
    """`network` with its input named images; with `bf16`, a copy that computes in bfloat16."""

    def __init__(self, network: nn.Module, *, bf16: bool = False) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).bfloat16() if bf16 else network
        self.bf16 = bf16
        self.training = False
        if any(module.training for module in network.modules()):
            raise InputError("only a network in evaluation mode can be exported; call eval() on it "
                             "first")

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images.bfloat16()).float() if self.bf16 else self.network(images)


def _quiet() -> warnings.catch_warnings:
    """Ignore warnings: exporters warn about their own code, and the graph is verified."""
    return warnings.catch_warnings(action="ignore")


def _name_axes(proto: Any) -> None:
    """Name the dynamic axes, and drop metadata that names files of this machine."""
    for value, names in ((proto.graph.input[0], ("batch", "", "height", "width")),
                         (proto.graph.output[0], ("batch", ""))):
        for axis, name in zip(value.type.tensor_type.shape.dim, names, strict=True):
            if name:
                axis.dim_param = name
    del proto.graph.value_info[:]  # intermediate shapes, in symbols of the exporter
    for part in (proto, proto.graph, *proto.graph.node, *proto.graph.input, *proto.graph.output):
        del part.metadata_props[:]
