"""Benchmark of our networks, with every backend and precision, beside networks of timm and
transformers.

All of them take turns in one process (`cvt.deploy.timing`). Weights are random; nothing is
downloaded.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cvt.config import CvTConfig, Preprocess
from cvt.deploy.manifest import Precision
from cvt.deploy.sessions import Backend
from cvt.deploy.timing import Call, interleaved, matmul_flops, ratio, steady_clock, summary
from cvt.model import CvT
from cvt.networks.complexity import multiply_adds, network_multiply_adds
from cvt.system.device import autocast
from cvt.system.errors import InputError, did_you_mean
from cvt.system.extras import require
from cvt.system.machine import describe_machine
from cvt.weights.card import ModelCard
from cvt.weights.huggingface import config_json
from cvt.weights.models import config_of

BACKENDS = ("plain", *get_args(Backend)[1:])
"""`plain` is the model itself, the others are those of `cvt.deploy.backends`."""
TRAINING = ("plain", "eager", "compile")
"""Backends that train: `eager` skips dead work (`cvt.fast.training`), `compile` compiles that."""
PRECISIONS = get_args(Precision)
PEERS = ("timm:vit_small_patch16_224", "timm:swin_tiny_patch4_window7_224", "timm:convnext_tiny",
         "transformers:cvt")
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class Row:
    """The measurements of one candidate at one batch size."""

    network: str
    """The name as given: `cvt_13`, `timm:convnext_tiny`, `transformers:cvt_13`."""
    backend: str
    """The backend; for a peer, its library."""
    precision: str
    batch: int
    """Images per call."""
    seconds: tuple[float, ...]
    """Seconds per call, one value per round."""
    flops: float
    """Floating-point operations per call: 2 x multiply-adds of the network, attention included;
    three times that for a training step. Operations that a backend skips are counted too."""
    peak: float | None
    """FLOP/s of this machine's best matrix product in the same precision; None for int8."""
    difference: float | None
    """The largest difference of any logit from the plain model's, relative to the largest logit;
    None for the plain model, peers and training."""
    speedup: Mapping[str, float]
    """`ratio` to the base at the same batch size."""

    @property
    def label(self) -> str:
        """The name that a base is chosen by."""
        return _label(self.network, self.backend, self.precision)

    @property
    def median(self) -> float:
        """Seconds per call."""
        return summary(self.seconds)["median_s"]

    @property
    def images_per_s(self) -> float:
        """Throughput, from the median."""
        return self.batch / self.median

    @property
    def gflops(self) -> float:
        """GFLOP/s, from the median."""
        return self.flops / self.median / 1e9

    @property
    def utilization(self) -> float | None:
        """The fraction of the peak that is reached."""
        return None if self.peak is None else 1e9 * self.gflops / self.peak

    def to_dict(self) -> dict[str, Any]:
        """Plain data: the measurements and the figures derived from them."""
        return {"label": self.label, **dataclasses.asdict(self), **summary(self.seconds),
                "images_per_s": self.images_per_s, "gflops": self.gflops,
                "utilization": self.utilization}


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The result of a benchmark."""

    rows: tuple[Row, ...]
    """In the given order, one batch size after another."""
    base: str
    """The label of the row that speedups are relative to."""
    train: bool
    """Whether a call is a training step or a forward pass."""
    size: int
    """Side of the images in pixels."""
    rounds: int
    threads: int
    peaks: Mapping[str, float]
    """FLOP/s of the best matrix product, by precision."""
    skipped: tuple[str, ...]
    """The candidates that were not measured, each with the reason."""
    machine: Mapping[str, str]

    @property
    def hardware(self) -> str:
        """The processor and the number of threads."""
        return (f"{self.machine['processor']}, {self.threads} "
                f"{'thread' if self.threads == 1 else 'threads'}")

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**{f.name: getattr(self, f.name) for f in dataclasses.fields(self)},
                "rows": [row.to_dict() for row in self.rows]}


def compare(models: Sequence[str] = ("cvt_13",), *, backends: Sequence[str] | None = None,
            precisions: Sequence[str] = ("fp32",), peers: Sequence[str] | None = None,
            batches: Sequence[int] = (1, 16), size: int = 224, rounds: int = 9,
            threads: int | None = None, train: bool = False, base: str | None = None,
            progress: Callable[[str], None] | None = None) -> Comparison:
    """Measure every model with every backend and precision, and every peer, on the CPU.

    models: variants, tags of the zoo or configuration files. peers: `timm:NAME`,
    `transformers:cvt` (the port, configured like each of the models) or `transformers:VARIANT`.
    backends and peers default to all; those that are not installed are listed in `skipped`, as is
    a precision that a backend lacks. threads: PyTorch's default if None. base: the label, or its
    beginning, of the row that speedups are relative to; the first row by default. progress: called
    with a line about each step.

    Raises InputError for an unknown name, and for a backend or peer given by name that is not
    installed.
    """
    report = progress or (lambda _: None)
    if rounds < 3 or size < 1 or min(batches, default=0) < 1 or (threads or 1) < 1:
        raise InputError(f"rounds={rounds} must be at least 3; size={size}, batch={list(batches)} "
                         f"and threads={threads} at least 1")
    candidates = _candidates(models, backends, precisions, peers, size, train)
    labels = [c.label for c in candidates]
    if base is not None and not any(label.startswith(base) for label in labels):
        raise InputError(f"base={base!r} is no row of this comparison; {did_you_mean(base, labels)}"
                         )
    threads_before = torch.get_num_threads()
    torch.set_num_threads(threads or threads_before)
    try:
        peaks: dict[str, float] = {}
        rows: list[Row] = []
        failures: dict[str, InputError] = {}
        base_label = ""
        for batch in batches:
            calls: dict[str, tuple[Call, float, float | None]] = {}
            if any(c.backend == "compile" for c in candidates):
                torch.compiler.reset()  # it gives up, silently, after eight networks of one class
            for candidate in candidates:
                if candidate.label in failures:
                    continue
                report(f"preparing {candidate.label}, batch {batch}")
                try:
                    calls[candidate.label] = candidate.prepare(batch)
                except InputError as error:
                    failures[candidate.label] = error
            _check_requested(candidates, failures, backends, peers)
            bases = [label for label in labels if label.startswith(base or "")]
            if not any(label in calls for label in bases):
                raise failures[bases[0]]
            base_label = next(label for label in bases if label in calls)
            report(f"measuring batch {batch}")
            # The peak is measured right before and after, as clock rates and other processes
            # change; the best ever reached counts.
            _update_peaks(peaks, precisions)
            seconds = interleaved({label: call for label, (call, *_) in calls.items()}, rounds,
                                  clock=steady_clock)
            _update_peaks(peaks, precisions)
            rows += [Row(network=c.network.name, backend=c.backend, precision=c.precision,
                         batch=batch, seconds=tuple(seconds[c.label]), flops=calls[c.label][1],
                         difference=calls[c.label][2], peak=None,
                         speedup=ratio(seconds[base_label], seconds[c.label]))
                     for c in candidates if c.label in calls]
        threads_used = torch.get_num_threads()
    finally:
        torch.set_num_threads(threads_before)
    return Comparison(
        rows=tuple(dataclasses.replace(r, peak=peaks.get(r.precision)) for r in rows),
        base=base_label, train=train, size=size, rounds=rounds, threads=threads_used, peaks=peaks,
        skipped=tuple(f"{label}: {error}" for label, error in failures.items()),
        machine=describe_machine())


def build_peer(name: str, size: int) -> nn.Module:
    """The untrained network `timm:NAME` or `transformers:VARIANT`.

    Raises InputError for an unknown name, a package that is not installed, and a size that the
    network does not take.
    """
    library, _, network = name.partition(":")
    if library == "transformers":
        transformers = require("transformers", "dev")
        config = config_of(network)
        if config.in_chans != 3:
            raise InputError(f"{network} takes {config.in_chans} channels; peers are measured on 3")
        card = ModelCard(model=config, preprocess=Preprocess(size=config.image_size),
                         classes=tuple(map(str, range(config.num_classes))))
        keys = {k: v for k, v in config_json(card).items() if k not in ("model_type", "dtype")}
        return transformers.CvtForImageClassification(transformers.CvtConfig(**keys)).eval()
    import timm  # slow to import

    if not timm.is_model(network):
        hint = did_you_mean(network, timm.list_models())
        if len(hint) > 200:  # no name is near, so it lists a thousand
            hint = "timm.list_models() lists them all"
        raise InputError(f"timm has no {network!r}; {hint}")
    try:
        try:
            return timm.create_model(network, img_size=size).eval()
        except TypeError:  # a convolutional network, which takes any size
            return timm.create_model(network).eval()
    except (AssertionError, ValueError, RuntimeError) as error:
        raise InputError(f"{name} cannot be built for {size} pixels: {error}") from None


def forward_call(model: Callable[[Tensor], object], images: Tensor, precision: str = "fp32"
                 ) -> Call:
    """A forward pass in inference mode; "bf16" is autocast."""
    def forward() -> None:
        with torch.inference_mode(), autocast(images.device, precision):
            model(images)

    return forward


def train_step(model: nn.Module, images: Tensor, precision: str = "fp32") -> Call:
    """A training step: forward, cross entropy, backward and AdamW; "bf16" is autocast."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step() -> None:
        with autocast(images.device, precision):
            out = model(images)
            logits = out if isinstance(out, Tensor) else out.logits
            labels = torch.arange(len(images)) % logits.shape[1]
            loss = F.cross_entropy(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


@dataclass(frozen=True)
class _Network:
    """A network that is built once, when first needed, for all its candidates."""

    name: str
    size: int
    config: CvTConfig | None = None
    """None for a peer."""

    @cached_property
    def model(self) -> nn.Module:
        torch.manual_seed(0)
        return CvT(self.config).eval() if self.config else build_peer(self.name, self.size)

    @cached_property
    def flops(self) -> float:
        if self.config:
            return 2.0 * multiply_adds(self.config, (self.size, self.size))
        return 2.0 * network_multiply_adds(self.model, torch.zeros(1, 3, self.size, self.size))


@dataclass(frozen=True, kw_only=True)
class _Candidate:
    network: _Network
    backend: str
    precision: str
    train: bool

    @property
    def peer(self) -> bool:
        return self.network.config is None

    @property
    def label(self) -> str:
        return _label(self.network.name, self.backend, self.precision)

    def prepare(self, batch: int) -> tuple[Call, float, float | None]:
        """The call, its FLOPs, and its difference. Raises InputError if it cannot be computed."""
        by_pytorch = self.train or self.peer or self.backend == "plain"
        if by_pytorch and self.precision not in _DTYPES:
            raise InputError(f"PyTorch's own modules have no {self.precision}; they have "
                             f"{', '.join(_DTYPES)}")
        config, size, model = self.network.config, self.network.size, self.network.model
        images = torch.randn(batch, config.in_chans if config else 3, size, size)
        flops = batch * self.network.flops
        if self.train:
            return train_step(self._trainable(), images, self.precision), 3 * flops, None
        if by_pytorch:
            return forward_call(model, images, self.precision), flops, None
        from cvt.deploy.backends import optimize

        # Calibrated on noise, and at any difference: the weights are random, only speed counts.
        int8 = self.precision == "int8"
        fast = optimize(cast("CvT", model), self.backend, self.precision,  # type: ignore[arg-type]
                        batch_size=batch, threads=torch.get_num_threads(),
                        calibration=torch.randn(8, *images.shape[1:]).split(1) if int8 else None,
                        tolerance=math.inf if int8 else None)
        return lambda: fast(images), flops, fast.agreement.difference

    def _trainable(self) -> nn.Module:
        model = copy.deepcopy(self.network.model)
        if self.peer or self.backend == "plain":
            return model
        from cvt.fast.training import TrainingForm

        form = TrainingForm(cast("CvT", model))
        return form if self.backend == "eager" else cast("nn.Module", torch.compile(form))


def _candidates(models: Sequence[str], backends: Sequence[str] | None, precisions: Sequence[str],
                peers: Sequence[str] | None, size: int, train: bool) -> list[_Candidate]:
    """All candidates, in order. Raises InputError for an unknown name."""
    for what, names, known in (("backend", backends or (), BACKENDS),
                               ("precision", precisions, PRECISIONS)):
        for name in names:
            if name not in known:
                raise InputError(f"there is no {what} {name!r}; {did_you_mean(name, known)}")
            if what == "backend" and train and name not in TRAINING:
                raise InputError(f"{name} does not train; {', '.join(TRAINING)} do")
    if backends is None:  # torch.compile takes minutes for a training step on a CPU
        backends = TRAINING[:2] if train else BACKENDS
    sources: list[tuple[_Network, Sequence[str]]] = []
    for name in models:
        config = dataclasses.replace(config_of(name), image_size=size)
        config.grids((size, size))
        sources.append((_Network(name, size, config), backends))
    sources += [(_Network(name, size), [name.partition(":")[0]])
                for name in _peers(PEERS if peers is None else peers, models)]
    candidates = [_Candidate(network=network, backend=backend, precision=precision, train=train)
                  for network, names in sources for precision in precisions for backend in names]
    if not candidates:
        raise InputError("there is nothing to measure; give models, backends or peers")
    if len({c.label for c in candidates}) < len(candidates):
        raise InputError("the same row is requested twice; give each name once")
    return candidates


def _peers(names: Iterable[str], models: Sequence[str]) -> list[str]:
    """Every peer by its full name."""
    full: list[str] = []
    for name in names:
        library, _, network = name.partition(":")
        if library not in ("timm", "transformers") or not network:
            raise InputError(f"peer {name!r} is not timm:NAME or transformers:VARIANT; "
                             f"{did_you_mean(name, PEERS)}")
        if name == "transformers:cvt":
            full += [f"transformers:{model}" for model in models]
            continue
        if library == "transformers":
            config_of(network)
        full.append(name)
    return list(dict.fromkeys(full))


def _check_requested(candidates: Sequence[_Candidate], failures: Mapping[str, InputError],
                     backends: Sequence[str] | None, peers: Sequence[str] | None) -> None:
    """Raise the error of a backend or peer that was given by name and failed in every precision."""
    groups: dict[str, list[str]] = {}
    for c in candidates:
        if (peers if c.peer else backends) is not None:
            groups.setdefault(c.network.name if c.peer else c.backend, []).append(c.label)
    for labels in groups.values():
        if all(label in failures for label in labels):
            raise InputError(f"{labels[0]}: {failures[labels[0]]}")


def _update_peaks(peaks: dict[str, float], precisions: Iterable[str]) -> None:
    for name in precisions:
        if name in _DTYPES:
            peaks[name] = max(peaks.get(name, 0.0), matmul_flops(_DTYPES[name]))


def _label(network: str, backend: str, precision: str) -> str:
    return f"{network} {precision}" if ":" in network else f"{network} {backend} {precision}"
