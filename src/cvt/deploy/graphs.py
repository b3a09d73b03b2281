"""A network as a graph of ONNX, of OpenVINO or of torch.export, and the graph's own runtime.

Every graph takes `images` (B, C, H, W) float32 and gives `logits` (B, num_classes) float32; batch,
height and width are free. A network is any module from the one to the other, in evaluation mode;
`cvt.fast.network.Folded` has the fewest steps. `example` (B, C, H, W) float32 is what it is traced
with: a batch of at least 2 and sides that leave every stage more than one token and one key
(`traceable_side`), for exporters take a 1 for a constant.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from cvt.config import CvTConfig
from cvt.deploy.manifest import Format, Precision
from cvt.deploy.sessions import onnx_session, openvino_session
from cvt.system.errors import InputError
from cvt.system.extras import require

if TYPE_CHECKING:
    import openvino

# What torch's exporter writes itself in every version; a later one would be converted afterwards.
OPSET = 18

# The graph's file in the directory.
GRAPHS: dict[Format, str] = {"onnx": "model.onnx", "openvino": "model.xml", "torch": "model.pt2"}
PRECISIONS: dict[Format, tuple[Precision, ...]] = {
    "onnx": ("fp32", "int8"), "openvino": ("fp32", "bf16", "int8"), "torch": ("fp32", "bf16")}
_PACKAGES: dict[Format, tuple[str, ...]] = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("openvino",), "torch": ()}

_PROTOBUF_LIMIT = 2**31  # bytes in one message of Protocol Buffers

Run = Callable[[Tensor], Tensor]


def check_possible(to: Format, precision: Precision) -> None:
    """Raise InputError where a format lacks the precision, or its packages are not installed."""
    if to not in PRECISIONS:
        raise InputError(f"there is no format {to!r}; choose from {', '.join(PRECISIONS)}")
    if precision not in PRECISIONS[to]:
        raise InputError(f"--to {to} has no {precision}; it has {', '.join(PRECISIONS[to])}")
    for package in packages(to, precision):
        require(package, extra=to)


def packages(to: Format, precision: Precision) -> tuple[str, ...]:
    """What writes a format in a precision, beside torch; the extra of the format's name has it."""
    return (*_PACKAGES[to], *(["nncf"] if (to, precision) == ("openvino", "int8") else []))


def traceable_side(config: CvTConfig) -> int:
    """The least side in pixels at which no grid of tokens or keys is 1 wide; 35 in the paper."""
    def wide(side: int) -> bool:
        grids = config.grids((side, side))
        return all(min(map(min, (grid, *stage.grids_kv(grid)))) > 1
                   for stage, grid in zip(config.stages, grids, strict=True))

    return next(side for side in itertools.count(config.min_size()) if wide(side))


def onnx_graph(network: nn.Module, path: str | Path, *, example: Tensor) -> None:
    """Write `network` as an ONNX model of opset `OPSET`, its weights inside up to 2 GB.

    Raises InputError where onnx or onnxscript is not installed.
    """
    onnx = require("onnx", "onnx")
    require("onnxscript", "onnx")
    free = torch.export.Dim.DYNAMIC
    with _quiet():
        program = torch.onnx.export(
            _Named(network), (example,), dynamo=True, opset_version=OPSET, verbose=False,
            input_names=["images"], output_names=["logits"],
            dynamic_shapes=({0: free, 2: free, 3: free},))
    assert program is not None
    proto = program.model_proto
    _name_axes(proto)
    large = sum(p.nbytes for p in network.parameters()) > 0.9 * _PROTOBUF_LIMIT
    onnx.save(proto, str(path), save_as_external_data=large, location=f"{Path(path).name}.data")


def openvino_graph(network: nn.Module, *, example: Tensor) -> openvino.Model:
    """`network` as a model of OpenVINO, to be quantised, saved or compiled.

    OpenVINO's converter reports its use to Intel unless its command `opt_in_out --opt_out` was run.
    Raises InputError where openvino is not installed.
    """
    ov = require("openvino", "openvino")
    with _quiet():
        model = ov.convert_model(_Named(network), example_input={"images": example},
                                 input=[("images", [-1, example.shape[1], -1, -1])])
    model.input(0).tensor.set_names({"images"})
    model.output(0).tensor.set_names({"logits"})
    return model


def save_openvino(model: openvino.Model, path: str | Path, *, half: bool = False) -> None:
    """Write an OpenVINO model, .xml and .bin; `half` stores the weights in 16 bits."""
    require("openvino", "openvino").save_model(model, str(path), compress_to_fp16=half)


def torch_graph(network: nn.Module, path: str | Path, *, example: Tensor, bf16: bool = False,
                fixed_size: bool = False) -> None:
    """Write `network` as a program of torch.export (.pt2); loading it needs no code of this one.

    bf16: weights and arithmetic in bfloat16, images and logits in float32. fixed_size: height and
    width are those of `example`, for networks that see images below `traceable_side`.
    """
    free = torch.export.Dim.DYNAMIC
    with _quiet():
        program = torch.export.export(_Named(network, bf16=bf16), (example,), dynamic_shapes=(
            {0: free} if fixed_size else {0: free, 2: free, 3: free},))
        for node in program.graph.nodes:  # it names files of the machine it was traced on
            node.meta.pop("stack_trace", None)
        torch.export.save(program, path)


def open_graph(path: str | Path, format: Format, precision: Precision) -> Run:
    """A written graph in its own runtime on the CPU: images (B, C, H, W) to logits, float32."""
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
    """`network` with its input called images; with `bf16` a copy of it, in bfloat16 inside."""

    def __init__(self, network: nn.Module, *, bf16: bool = False) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).bfloat16() if bf16 else network
        self.bf16 = bf16
        self.training = False
        if any(module.training for module in network.modules()):
            raise InputError("a network is exported for inference; call eval() on it first")

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images.bfloat16()).float() if self.bf16 else self.network(images)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without warnings: exporters warn of their own deprecated parts; the result is compared."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _name_axes(proto: Any) -> None:
    """Call the free axes by name, and drop the notes that name files of this machine."""
    for value, names in ((proto.graph.input[0], ("batch", "", "height", "width")),
                         (proto.graph.output[0], ("batch", ""))):
        for axis, name in zip(value.type.tensor_type.shape.dim, names, strict=True):
            if name:
                axis.dim_param = name
    del proto.graph.value_info[:]  # intermediate shapes, as terms in the exporter's own names
    for part in (proto, proto.graph, *proto.graph.node, *proto.graph.input, *proto.graph.output):
        del part.metadata_props[:]
