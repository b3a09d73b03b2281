"""Export of a trained model to a directory with a graph and a manifest."""

from __future__ import annotations

import math
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from cvt.config import Act
from cvt.data.config import DataConfig
from cvt.data.dataset import Dataset, LabeledImages, relabel
from cvt.data.listing import LeftOut, list_images
from cvt.data.load import load_dataset
from cvt.data.loader import Batch, evaluation_batches
from cvt.deploy.graphs import (
    GRAPH_FILES,
    Run,
    check_format,
    onnx_graph,
    open_graph,
    openvino_graph,
    packages,
    save_openvino,
    torch_graph,
    traceable_side,
)
from cvt.deploy.manifest import MANIFEST, Format, Manifest, Precision, hash_files
from cvt.deploy.quantize import MAX_IMAGES, Images, check_enough
from cvt.fast.network import Folded
from cvt.system.errors import InputError
from cvt.weights.card import ModelCard
from cvt.weights.models import load_model

# Relative to the largest logit. Rounding is 1e-7 to 2e-6 in every format, a wrong graph above 1e-3.
TOLERANCE = 2e-5
NOISE = (1, 3, 4)  # batch sizes, if there are no images
BATCH = 16


def export(source: str | Path, destination: str | Path, to: Format, precision: Precision = "fp32",
           *, act: Act | None = None, images: Sequence[str | Path] | None = None,
           data: DataConfig | None = None, split: Literal["val", "train", "all"] = "val",
           max_drop: float = 1.0, overwrite: bool = False,
           report: Callable[[str], object] | None = None) -> Manifest:
    """Export the model `source` to the directory `destination`, after verifying its graph.

    The graph runs in its own runtime on the CPU, and its logits are compared with the PyTorch
    model's: on the labelled images of `data` and `split` if given, else on `images` (files and
    folders), else on noise of a fixed seed. The result is the manifest's `parity`; with `data` it
    includes the accuracy before and after. int8 is calibrated on up to 300 of `images`, else on
    training images of `data`. `source` and `act` are as for `cvt.load_model`. `report` is called
    with each line about what was left out of the images.

    A graph takes images of any size, except a torch graph of a network whose images are too small
    to trace (`traceable_side`), which takes that size only.

    Raises InputError, and writes nothing, if the format lacks the precision, a package is missing,
    `destination` exists (unless it is an exported model and `overwrite` is set), images cannot be
    used, float32 logits differ by more than 2e-5 of the largest, or bf16 or int8 lose more than
    `max_drop` points of top-1.
    """
    check_format(to, precision)
    if not 0 <= max_drop <= 100:
        raise InputError(f"max_drop={max_drop} must be in [0, 100] points of top-1")
    destination = Path(os.path.abspath(destination))
    _check_place(destination, overwrite)
    if precision == "int8" and not images and data is None:
        raise InputError("int8 needs calibration images like those that the model will see; give "
                         f"about {MAX_IMAGES} with --images, or a dataset with --data.name")
    network, card = load_model(source, act=act)
    if card.model.num_classes == 0:
        raise InputError(f"{source} has no classifier, so it has no logits to export; train one "
                         "first")
    dataset = load_dataset(data) if data else None
    labelled: LabeledImages | None = getattr(dataset, split) if dataset else None
    left_out = LeftOut()
    unlabelled = _images(images, left_out) if images else None
    if report:
        for message in (*(dataset.messages if dataset else ()),
                        *((f"left out: {left_out}",) if left_out else ())):
            report(message)
    calibration = (_calibration(card, unlabelled, dataset) if precision == "int8"
                   else [])

    destination.parent.mkdir(parents=True, exist_ok=True)
    part = destination.with_name(f".{destination.name}.{secrets.token_hex(4)}")
    part.mkdir()  # not mkdtemp, whose directories only their owner can read
    try:
        graph = part / GRAPH_FILES[to]
        _write_graph(graph, network, card, to, precision, calibration)
        parity = _compare(network, open_graph(graph, to, precision), card, labelled, unlabelled)
        _check_parity(parity, precision, max_drop)
        if calibration:
            parity["calibrated"] = sum(map(len, calibration))
        manifest = Manifest(format=to, precision=precision, graph=graph.name,
                            hashes=hash_files(part), card=card, parity=parity,
                            versions={name: version(name) for name in
                                      ("cvt-torch", "torch", *packages(to, precision))})
        manifest.save(part)
        _into_place(part, destination)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return manifest


def _check_place(destination: Path, overwrite: bool) -> None:
    if destination.is_symlink() or (destination.exists() and not destination.is_dir()):
        raise InputError(f"{destination} is not a directory; an exported model is one")
    if not destination.exists():
        return
    if not overwrite:
        raise InputError(f"{destination} exists already; give another directory, or --overwrite")
    if any(destination.iterdir()) and not (destination / MANIFEST).is_file():
        raise InputError(f"{destination} has no {MANIFEST}, so it is not an exported model and "
                         "will not be replaced; give another directory")


def _images(names: Sequence[str | Path], left_out: LeftOut) -> LabeledImages:
    """The images of files and folders, all with the same label."""
    paths: list[str] = []
    for path in map(Path, names):
        here = LeftOut()
        members = list_images(path, here) if path.is_dir() else [str(path)]
        if not members:
            raise InputError(f"{path} has no images in it or below it"
                             + (f"; left out: {here}" if here else ""))
        paths += members
        left_out.update(here)
    return LabeledImages.from_files(("",), paths, (0,) * len(paths))


def _sample(images: LabeledImages) -> LabeledImages:
    """At most `MAX_IMAGES` of the images, evenly spread, since folders are sorted by class."""
    n = min(MAX_IMAGES, len(images))
    return images.choose([i * len(images) // n for i in range(n)])


def _calibration(card: ModelCard, unlabelled: LabeledImages | None, dataset: Dataset | None
                 ) -> list[Images]:
    source = dataset.train if unlabelled is None and dataset else unlabelled
    assert source is not None
    check_enough(len(source))  # before they are read
    return [images.numpy() for images, _ in _batches(_sample(source), card)]


def _batches(images: LabeledImages, card: ModelCard) -> Iterable[Batch]:
    return evaluation_batches(images, card.preprocess, batch_size=BATCH)


def _write_graph(path: Path, network: nn.Module, card: ModelCard, to: Format,
                 precision: Precision, calibration: Sequence[Images]) -> None:
    folded = Folded(network).eval()  # type: ignore[arg-type]
    min_side, size = traceable_side(card.model), card.preprocess.size
    # Not the size of the model's images, so that the comparison reveals a fixed axis.
    sides = (min_side + 16, min_side + 48)
    fixed = to == "torch" and size < min_side
    example = _noise(2, card, *((size, size) if fixed else sides))
    if to == "torch":
        torch_graph(folded, path, example=example, bf16=precision == "bf16", fixed_size=fixed)
    elif to == "openvino":
        model = openvino_graph(folded, example=example, calibration=calibration)
        save_openvino(model, path, half=precision == "bf16")
    else:
        onnx_graph(folded, path, example=example, calibration=calibration)


def _noise(n: int, card: ModelCard, height: int, width: int) -> Tensor:
    """White noise with the statistics of preprocessed images."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, card.model.in_chans, height, width, generator=generator)


def _compare(network: nn.Module, run: Run, card: ModelCard, labelled: LabeledImages | None,
             unlabelled: LabeledImages | None) -> dict[str, float]:
    """The manifest's `parity` of the graph that `run` runs."""
    if labelled is not None:
        labelled = relabel(labelled, card.classes)
    source = labelled
    if source is None and unlabelled is not None:
        source = _sample(unlabelled)
    size = card.preprocess.size
    batches: Iterable[Batch]
    if source is None:
        batches = [(x, torch.zeros(len(x))) for x in
                   _noise(sum(NOISE), card, size, size).split(NOISE)]
    else:
        batches = _batches(source, card)
    largest = difference = 0.0
    n = same = before = after = 0
    with torch.inference_mode():
        for images, labels in batches:
            want, got = network(images), run(images)
            largest = max(largest, want.abs().max().item())
            error = (want - got).abs().max().item()
            difference = max(difference, error if math.isfinite(error) else math.inf)
            one, other = want.argmax(1), got.argmax(1)
            n, same = n + len(images), same + int((one == other).sum())
            if labelled is not None:
                before += int((one == labels).sum())
                after += int((other == labels).sum())
    parity = {"difference": difference / (largest or 1.0), "agreement": same / n,
              "images": n if source is not None else 0, "noise": 0 if source is not None else n}
    if labelled is not None:
        parity |= {"accuracy_before": 100 * before / n, "accuracy_after": 100 * after / n,
                   "labelled": n}
    return parity


def _check_parity(parity: dict[str, float], precision: Precision, max_drop: float) -> None:
    difference = parity["difference"]
    if not math.isfinite(difference):
        raise InputError("the logits are not finite; the weights hold infinities or NaN, or their "
                         "values are too large for this precision")
    if precision == "fp32":
        if difference > TOLERANCE:
            raise InputError(f"the graph's logits differ from the PyTorch model's by "
                             f"{difference:.1e} of the largest, more than {TOLERANCE:.0e}; nothing "
                             "was written, try another format")
        return
    drop = parity.get("accuracy_before", 0.0) - parity.get("accuracy_after", 0.0)
    if drop > max_drop:
        raise InputError(f"{precision} loses {drop:.2f} points of top-1 "
                         f"({parity['accuracy_before']:.2f} to {parity['accuracy_after']:.2f} %), "
                         f"more than max_drop={max_drop}; nothing was written, use fp32 or bf16, "
                         "or more images to calibrate on")


def _into_place(part: Path, destination: Path) -> None:
    """Move the finished directory to `destination`; an old one is deleted after that."""
    if not destination.exists():
        part.rename(destination)
        return
    with tempfile.TemporaryDirectory(prefix=f".{destination.name}.", dir=destination.parent) as old:
        aside = destination.rename(Path(old) / "old")
        try:
            part.rename(destination)
        except OSError:
            aside.rename(destination)
            raise
