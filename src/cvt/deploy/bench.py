"""Our variants, whatever computes them, beside other networks: one process, turn by turn.

A figure that was measured yesterday, or in another process, differs from today's by more than most
optimisations gain. So candidates take turns, the order turns round by round, and what is reported
is a median with its quartiles, and a ratio from the rounds that two candidates shared. Weights are
random; nothing is downloaded.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cvt.config import CvTConfig, Preprocess
from cvt.deploy.manifest import Precision
from cvt.deploy.sessions import Backend
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
"""What computes our networks: `plain` is the model, others are of `cvt.deploy.backends`."""
TRAINING = ("plain", "eager", "compile")
"""Those that train: `eager` leaves dead work out (`cvt.fast.training`), `compile` compiles that."""
PRECISIONS = get_args(Precision)
PEERS = ("timm:vit_small_patch16_224", "timm:swin_tiny_patch4_window7_224", "timm:convnext_tiny",
         "transformers:cvt")
_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}

Call = Callable[[], object]


def interleaved(candidates: Mapping[str, Call], rounds: int, warmup: int = 2,
                clock: Callable[[Call], float] | None = None) -> dict[str, list[float]]:
    """Seconds of each call, `rounds` a candidate; the order turns round by round.

    A turn begins with a call that does not count: it finds another's weights in the caches, and the
    other's threads, which go on spinning for some milliseconds, on the cores.

    clock: runs a call and tells its seconds; by default the wall's.
    """
    clock = clock or wall_clock
    for call in candidates.values():
        for _ in range(warmup):
            call()
    names = list(candidates)
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for i in range(rounds):
        turn = i % len(names)
        for name in names[turn:] + names[:turn]:
            candidates[name]()
            seconds[name].append(clock(candidates[name]))
    return seconds


def wall_clock(call: Call) -> float:
    """Seconds that `call` takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def steady_clock(call: Call) -> float:
    """Seconds of a call, the mean of as many as take a tenth of a second."""
    start, n = time.perf_counter(), 0
    while True:
        call()
        n += 1
        if (elapsed := time.perf_counter() - start) >= 0.1:
            return elapsed / n


def summary(seconds: Sequence[float]) -> dict[str, float]:
    """Median and quartiles in seconds; of two values or more."""
    low, mid, high = statistics.quantiles(seconds, n=4)
    return {"median_s": mid, "quartile1_s": low, "quartile3_s": high, "n": len(seconds)}


def ratio(base: Sequence[float], ours: Sequence[float]) -> dict[str, float]:
    """How many times faster `ours` is than `base`, from the rounds they shared."""
    low, mid, high = statistics.quantiles([b / o for b, o in zip(base, ours, strict=True)], n=4)
    return {"median": mid, "quartile1": low, "quartile3": high}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One candidate at one batch size."""

    network: str
    """As it was asked for: `cvt_13`, `timm:convnext_tiny`, `transformers:cvt_13`."""
    backend: str
    """What computes it; for a peer its library."""
    precision: str
    batch: int
    """Images a call."""
    seconds: tuple[float, ...]
    """A call, in each round."""
    operations: float
    """Floating-point operations of one call, 2 x the network's multiply-adds, attention included; a
    training step counts three times the forward pass. What a backend leaves out is counted too."""
    ceiling: float | None
    """Operations a second of this machine's best matrix product in the same precision; None for
    int8."""
    difference: float | None
    """The largest difference of a logit from the plain model's, over the largest logit; None where
    it is the plain model or a peer."""
    speedup: Mapping[str, float]
    """`ratio` to the base of its batch size."""

    @property
    def label(self) -> str:
        """The name that a base is chosen by."""
        return _label(self.network, self.backend, self.precision)

    @property
    def median(self) -> float:
        """Seconds a call."""
        return summary(self.seconds)["median_s"]

    @property
    def images_per_s(self) -> float:
        """From the median."""
        return self.batch / self.median

    @property
    def gflops(self) -> float:
        """10^9 operations a second, from the median."""
        return self.operations / self.median / 1e9

    @property
    def share(self) -> float | None:
        """The part of the ceiling that is reached."""
        return None if self.ceiling is None else 1e9 * self.gflops / self.ceiling

    def to_dict(self) -> dict[str, Any]:
        """Plain data: what was measured and what follows from it."""
        return {"label": self.label, **dataclasses.asdict(self), **summary(self.seconds),
                "images_per_s": self.images_per_s, "gflops": self.gflops, "share": self.share}


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What was measured, and on what."""

    rows: tuple[Row, ...]
    """In the order asked for, one batch size after another."""
    base: str
    """The label of the row that ratios are to."""
    train: bool
    """Whether a call is a training step or a forward pass."""
    size: int
    """Side of the images in pixels."""
    rounds: int
    threads: int
    ceilings: Mapping[str, float]
    """Operations a second of the best matrix product, by precision."""
    skipped: tuple[str, ...]
    """What was not measured, and why, a sentence each."""
    machine: Mapping[str, str]

    @property
    def where(self) -> str:
        """The processor, and how much of it was used, in words."""
        return (f"{self.machine['processor']}, {self.threads} "
                f"{'thread' if self.threads == 1 else 'threads'}")

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**{f.name: getattr(self, f.name) for f in dataclasses.fields(self)},
                "rows": [row.to_dict() for row in self.rows]}


@dataclass(frozen=True, kw_only=True)
class _Candidate:
    network: str
    backend: str
    precision: str
    peer: bool
    build: Callable[[int], tuple[Call, float, float | None]]
    """Of a batch size: the call, its operations, its difference. InputError where it cannot be."""

    @property
    def label(self) -> str:
        return _label(self.network, self.backend, self.precision)


def compare(models: Sequence[str] = ("cvt_13",), *, backends: Sequence[str] | None = None,
            precisions: Sequence[str] = ("fp32",), peers: Sequence[str] | None = None,
            batches: Sequence[int] = (1, 16), size: int = 224, rounds: int = 9,
            threads: int | None = None, train: bool = False, base: str | None = None,
            progress: Callable[[str], None] | None = None) -> Comparison:
    """Measure on the CPU every model with every backend and precision, and every peer.

    models: variants, tags of the zoo or configuration files. peers: `timm:NAME`,
    `transformers:cvt` (the port, configured as each of the models) or `transformers:VARIANT`.
    backends and peers are by default all there are, and those that are missing are told in
    `skipped`; what was asked for by name and is missing is an InputError, as is an unknown name.
    A precision that a backend lacks is skipped. threads: by default as torch has it. base: the
    label, or its beginning, of the row that ratios are to; by default the first. progress: told
    what is being done.
    """
    say = progress or (lambda _: None)
    if rounds < 3 or size < 1 or min(batches, default=0) < 1 or (threads or 1) < 1:
        raise InputError(f"rounds={rounds} must be at least 3; size={size}, batch={list(batches)} "
                         f"and threads={threads} at least 1")
    candidates = _candidates(models, backends, precisions, peers, size, train)
    labels = [c.label for c in candidates]
    if base is not None and not any(label.startswith(base) for label in labels):
        raise InputError(f"base={base!r} is no row of this comparison; {did_you_mean(base, labels)}"
                         )
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        ceilings: dict[str, float] = {}
        rows: list[Row] = []
        failures: dict[str, InputError] = {}
        chosen = None
        for batch in batches:
            calls: dict[str, tuple[Call, float, float | None]] = {}
            if any(c.backend == "compile" for c in candidates):
                torch.compiler.reset()  # it gives up, silently, after eight networks of one class
            for candidate in candidates:
                if candidate.label in failures:
                    continue
                say(f"preparing {candidate.label}, batch {batch}")
                try:
                    calls[candidate.label] = candidate.build(batch)
                except InputError as error:
                    failures[candidate.label] = error
            _refuse_missing(candidates, failures, backends, peers)
            chosen = next((label for label in calls if label.startswith(base or "")), None)
            if chosen is None:
                raise failures[next(label for label in labels if label.startswith(base or ""))]
            say(f"measuring batch {batch}")
            # The ceiling is measured beside what is held against it, for clocks and neighbours
            # change; the best it ever reached counts.
            _raise_ceilings(ceilings, precisions)
            seconds = interleaved({label: call for label, (call, *_) in calls.items()}, rounds,
                                  clock=steady_clock)
            _raise_ceilings(ceilings, precisions)
            rows += [Row(network=c.network, backend=c.backend, precision=c.precision, batch=batch,
                         seconds=tuple(seconds[c.label]), operations=calls[c.label][1],
                         difference=calls[c.label][2], ceiling=None,
                         speedup=ratio(seconds[chosen], seconds[c.label]))
                     for c in candidates if c.label in calls]
        used = torch.get_num_threads()
    finally:
        torch.set_num_threads(before)
    return Comparison(
        rows=tuple(dataclasses.replace(r, ceiling=ceilings.get(r.precision)) for r in rows),
        base=str(chosen), train=train, size=size, rounds=rounds, threads=used, ceilings=ceilings,
        skipped=tuple(f"{label}: {error}" for label, error in failures.items()),
        machine=describe_machine())


def matmul_rate(dtype: torch.dtype, seconds: float = 0.6) -> float:
    """Operations a second of the machine's best square matrix product, the ceiling of a network.

    For about `seconds`, products of 512, 1024 and 2048 rows; the best of the three medians counts.
    """
    best = 0.0
    for n in (512, 1024, 2048):
        a, b = torch.randn(n, n).to(dtype), torch.randn(n, n).to(dtype)
        product = functools.partial(torch.mm, a, b, out=torch.empty(n, n, dtype=dtype))
        product()
        times = [wall_clock(product)]
        while sum(times) < seconds / 3:
            times.append(wall_clock(product))
        best = max(best, 2 * n**3 / statistics.median(times))
    return best


def draw(comparison: Comparison, path: str | Path) -> None:
    """Write a bar chart of images a second with quartiles, as PNG; a panel a batch size."""
    from matplotlib.figure import Figure

    batches = list(dict.fromkeys(row.batch for row in comparison.rows))
    groups = [[row for row in comparison.rows if row.batch == batch] for batch in batches]
    lengths = [len(group) for group in groups]
    figure = Figure(figsize=(8, 1.3 + 0.7 * len(groups) + 0.3 * sum(lengths)), dpi=150,
                    layout="constrained", facecolor="white")
    panels = figure.subplots(len(groups), squeeze=False, height_ratios=[n + 1 for n in lengths])
    for axes, batch, group in zip(panels[:, 0], batches, groups, strict=True):
        places = range(len(group))
        rates = [row.images_per_s for row in group]
        low = [row.batch / summary(row.seconds)["quartile3_s"] for row in group]
        high = [row.batch / summary(row.seconds)["quartile1_s"] for row in group]
        whiskers = [[m - v for m, v in zip(rates, low, strict=True)],
                    [v - m for m, v in zip(rates, high, strict=True)]]
        colours = ["#b9bdc6" if ":" in row.network else "#3465a4" for row in group]
        axes.barh(places, rates, height=0.68, color=colours, xerr=whiskers,
                  error_kw={"ecolor": "#30333a", "elinewidth": 1.1, "capsize": 2.5})
        for place, row, end in zip(places, group, high, strict=True):
            axes.annotate(f"{row.images_per_s:.3g}   {row.speedup['median']:.2f}x", (end, place),
                          xytext=(6, 0), textcoords="offset points", va="center", fontsize=8,
                          color="#30333a")
        axes.set_yticks(places, [_title(row) for row in group], fontsize=8)
        axes.set_ylim(len(group) - 0.4, -0.6)
        axes.set_xlim(0, 1.2 * max(high))
        axes.tick_params(axis="y", length=0)
        axes.tick_params(axis="x", labelsize=8, color="#c9ccd2", labelcolor="#5b606b")
        axes.grid(axis="x", color="#e4e6ea", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.spines["bottom"].set_color("#c9ccd2")
        axes.set_title(f"batch {batch}", loc="left", fontsize=9, color="#30333a")
    panels[-1, 0].set_xlabel("images a second, median and quartiles of "
                             f"{comparison.rounds} rounds; ratio to {comparison.base}",
                             fontsize=8, color="#5b606b")
    what = "Training steps" if comparison.train else "Inference"
    figure.suptitle(f"{what} at {comparison.size} pixels on {comparison.where}", fontsize=10,
                    x=0.01, ha="left")
    figure.savefig(path, format="png")


def build_peer(name: str, size: int) -> nn.Module:
    """The untrained network that `timm:NAME` or `transformers:VARIANT` stands for.

    Raises InputError for an unknown name, for a package that is missing, and for a size that the
    network cannot take.
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
        raise InputError(f"timm has no {network!r}; {_near(network, timm.list_models())}")
    try:
        try:
            return timm.create_model(network, img_size=size).eval()
        except TypeError:  # a convolutional network, which takes any size
            return timm.create_model(network).eval()
    except (AssertionError, ValueError, RuntimeError) as error:
        raise InputError(f"{name} cannot be built for {size} pixels: {error}") from None


def _candidates(models: Sequence[str], backends: Sequence[str] | None, precisions: Sequence[str],
                peers: Sequence[str] | None, size: int, train: bool) -> list[_Candidate]:
    """What was asked for, in order. Raises InputError for a name that is not known."""
    allowed = TRAINING if train else BACKENDS
    for backend in backends or ():
        _check(backend, "backend", BACKENDS)
        if backend not in allowed:
            raise InputError(f"{backend} does not train; {', '.join(TRAINING)} do")
    for precision in precisions:
        _check(precision, "precision", PRECISIONS)
    # torch.compile takes minutes for a training step on a CPU, so there it is asked for.
    chosen = backends if backends is not None else TRAINING[:2] if train else BACKENDS
    found = []
    for name in models:
        config = dataclasses.replace(config_of(name), image_size=size)
        config.grids((size, size))
        ours = _Ours(name, config, size, train)
        found += [_Candidate(network=name, backend=backend, precision=precision, peer=False,
                             build=ours.builder(backend, precision))
                  for precision in precisions for backend in chosen]
    for name in _peers(PEERS if peers is None else peers, models):
        theirs = _Theirs(name, size, train)
        found += [_Candidate(network=name, backend=name.partition(":")[0], precision=precision,
                             peer=True, build=theirs.builder(precision))
                  for precision in precisions]
    if not found:
        raise InputError("there is nothing to measure; give models, backends or peers")
    if len({c.label for c in found}) < len(found):
        raise InputError("the same row is asked for twice; give each name once")
    return found


def _peers(names: Iterable[str], models: Sequence[str]) -> list[str]:
    """Every peer by its full name."""
    found = []
    for name in names:
        library, _, network = name.partition(":")
        if library not in ("timm", "transformers") or not network:
            raise InputError(f"peer {name!r} is not timm:NAME or transformers:VARIANT; "
                             f"{_near(name, PEERS)}")
        if name == "transformers:cvt":
            found += [f"transformers:{model}" for model in models]
            continue
        if library == "transformers":
            config_of(network)
        found.append(name)
    return list(dict.fromkeys(found))


class _Ours:
    """A network of ours, built once for all its backends."""

    def __init__(self, name: str, config: CvTConfig, size: int, train: bool) -> None:
        self.name, self.config, self.size, self.train = name, config, size, train
        self.model: CvT | None = None
        self.operations = 2 * multiply_adds(config, (size, size))

    def builder(self, backend: str, precision: str
                ) -> Callable[[int], tuple[Call, float, float | None]]:
        return lambda batch: self._build(backend, precision, batch)

    def _build(self, backend: str, precision: str, batch: int
               ) -> tuple[Call, float, float | None]:
        if self.model is None:
            torch.manual_seed(0)
            self.model = CvT(self.config).eval()
        images = torch.randn(batch, self.config.in_chans, self.size, self.size)
        operations = float(self.operations * batch)
        if self.train:
            return _train_step(self._trained(backend), images, precision), 3 * operations, None
        if backend == "plain":
            return _forward(self.model, images, precision), operations, None
        from cvt.deploy.backends import optimize

        # Noise calibrates, and need not agree, for random weights are only measured for speed.
        noise = torch.randn(8, *images.shape[1:]).split(1)
        fast = optimize(self.model, backend, precision, batch_size=batch,  # type: ignore[arg-type]
                        threads=torch.get_num_threads(),
                        calibration=noise if precision == "int8" else None,
                        tolerance=math.inf if precision == "int8" else None)
        return lambda: fast(images), operations, fast.agreement.difference

    def _trained(self, backend: str) -> nn.Module:
        model = copy.deepcopy(self.model)
        assert model is not None
        if backend == "plain":
            return model
        from cvt.fast.training import TrainingForm

        form = TrainingForm(model)
        return form if backend == "eager" else torch.compile(form)  # type: ignore[return-value]


class _Theirs:
    """A network of others."""

    def __init__(self, name: str, size: int, train: bool) -> None:
        self.name, self.size, self.train = name, size, train
        self.model: nn.Module | None = None
        self.operations = 0

    def builder(self, precision: str) -> Callable[[int], tuple[Call, float, float | None]]:
        return lambda batch: self._build(precision, batch)

    def _build(self, precision: str, batch: int) -> tuple[Call, float, float | None]:
        if precision == "int8":
            raise InputError("peers are measured in fp32 and bf16")
        if self.model is None:
            torch.manual_seed(0)
            self.model = build_peer(self.name, self.size)
            self.operations = 2 * network_multiply_adds(
                self.model, torch.zeros(1, 3, self.size, self.size))
        images = torch.randn(batch, 3, self.size, self.size)
        operations = float(self.operations * batch)
        if self.train:
            step = _train_step(copy.deepcopy(self.model), images, precision)
            return step, 3 * operations, None
        return _forward(self.model, images, precision), operations, None


def _forward(model: nn.Module, images: Tensor, precision: str) -> Call:
    if precision not in _TYPES:
        raise InputError(f"PyTorch's own forward pass has no {precision}; it has "
                         f"{', '.join(_TYPES)}")

    def forward() -> None:
        with torch.inference_mode(), autocast(images.device, precision):
            model(images)

    return forward


def _train_step(model: nn.Module, images: Tensor, precision: str) -> Call:
    """Forward, cross entropy, backward and AdamW."""
    if precision not in _TYPES:
        raise InputError(f"a training step has no {precision}; it has {', '.join(_TYPES)}")
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


def _refuse_missing(candidates: Sequence[_Candidate], failures: Mapping[str, InputError],
                    backends: Sequence[str] | None, peers: Sequence[str] | None) -> None:
    """Raise where nothing is left of a backend or a peer that was asked for by name."""
    for peer, key, named in ((False, "backend", backends), (True, "network", peers)):
        if named is None:
            continue
        for name in {getattr(c, key): None for c in candidates if c.peer == peer}:
            labels = [c.label for c in candidates if c.peer == peer and getattr(c, key) == name]
            if all(label in failures for label in labels):
                raise InputError(f"{labels[0]}: {failures[labels[0]]}")


def _raise_ceilings(ceilings: dict[str, float], precisions: Iterable[str]) -> None:
    for name in precisions:
        if name in _TYPES:
            ceilings[name] = max(ceilings.get(name, 0.0), matmul_rate(_TYPES[name]))


def _label(network: str, backend: str, precision: str) -> str:
    return f"{network} {precision}" if ":" in network else f"{network} {backend} {precision}"


def _title(row: Row) -> str:
    """The row in a chart, where a peer's library stands with what computes ours."""
    return f"{row.network.rpartition(':')[2]}  ({row.backend} {row.precision})"


def _check(name: str, what: str, known: Sequence[str]) -> None:
    if name not in known:
        raise InputError(f"there is no {what} {name!r}; {did_you_mean(name, known)}")


def _near(name: str, known: Sequence[str]) -> str:
    """`did_you_mean`, but no list of a thousand names where none is near."""
    hint = did_you_mean(name, known)
    return hint if len(hint) < 200 else "timm.list_models() lists them all"
