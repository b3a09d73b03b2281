"""CvT on a GPU in one call: is it right, how fast is it, and where does the time go?

    python benchmarks/gpu.py [--minutes 8] [--quick] [--models cvt_13 cvt_21 cvt_w24]
                             [--sizes 224 384] [--out results/gpu.json]

Needs this checkout and torch; transformers and timm are measured where they are installed. Three
parts, random weights:

1. Logits and gradients of the first model in fp32, TF32, bf16 and fp16 (autocast) against float64.
   The exit code is 1 where one is beyond its bound.
2. The operators in which inference and a training step of the first model spend their time.
3. Inference and training steps (forward, cross entropy, backward, AdamW), eager and compiled, by
   CUDA events: after a warm-up the candidates of a group take turns, the order turns round by
   round; medians with quartiles. Memory is the peak of a call minus what was allocated before.
   "folded" and "training form" are this package's exact rewrites (cvt.fast).

The most important rows come first. After --minutes no new row is started; those skipped are listed.
Without a GPU the exit code is 2; `--device cpu --quick` tries it out in a minute.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import gc
import json
import math
import platform
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "src"))  # the checkout need not be installed

from cvt.config import VARIANTS
from cvt.deploy.bench import PEERS, build_peer
from cvt.fast.network import Folded
from cvt.fast.training import TrainingForm
from cvt.model import CvT
from cvt.networks.complexity import multiply_adds, network_multiply_adds
from cvt.system.errors import InputError
from timing import interleaved, ratio, stamp, summary

TIMM = [name for name in PEERS if name.startswith("timm:")]
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
# Of the logits, in units of the largest; of the gradient as a whole, in units of its norm.
BOUNDS = {"fp32": (1e-4, 1e-3), "tf32": (2e-2, 5e-2), "bf16": (1e-1, 2e-1), "fp16": (2e-2, 5e-2)}
COMPILE_S = 45  # no compilation is started with less time left


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spec:
    """A row: which network, in which form, computed how."""

    network: str
    precision: str
    form: str = "plain"
    how: str = "eager"
    layout: str = "contiguous"

    @property
    def label(self) -> str:
        extra = [self.form] * (self.form != "plain") + [self.layout] * (
            self.layout != "contiguous")
        return " ".join([self.network, *extra, self.how, self.precision])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Group:
    """Rows that take turns; ratios are to the first."""

    train: bool
    size: int
    batch: int
    specs: tuple[Spec, ...]

    @property
    def title(self) -> str:
        return f"{'training step' if self.train else 'inference'}, {self.size} pixels, " \
               f"batch {self.batch}"


class Machine:
    """The device, its clock and the time that is left."""

    def __init__(self, device: str, minutes: float) -> None:
        self.device = torch.device(device)
        self.cuda = self.device.type == "cuda"
        self.end = time.monotonic() + 60 * minutes

    def left(self) -> float:
        """Seconds."""
        return self.end - time.monotonic()

    def sync(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()

    def clock(self, call: Callable[[], object]) -> float:
        """Seconds of a call: the mean of as many as take a twentieth of a second, by events."""
        if not self.cuda:
            start = time.perf_counter()
            call()
            return time.perf_counter() - start
        n = max(1, math.ceil(0.05 / max(1e-5, self._events(call, 1))))
        return self._events(call, min(n, 200))

    def _events(self, call: Callable[[], object], n: int) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(n):
            call()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1e3 / n

    def peak(self, call: Callable[[], object]) -> float | None:
        """MB that a call adds at its peak."""
        if not self.cuda:
            return None
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20

    def tidy(self) -> None:
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()

    def describe(self) -> dict[str, Any]:
        facts = {"device": "cpu", "system": platform.platform()}
        if self.cuda:
            gpu = torch.cuda.get_device_properties(self.device)
            facts |= {"device": gpu.name, "memory_gib": round(gpu.total_memory / 2**30, 1),
                      "multiprocessors": gpu.multi_processor_count, "cuda": torch.version.cuda}
        return facts


def use(precision: str) -> None:
    """Float32 products in TF32 or exactly; autocast is `cast`'s."""
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"


def cast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    return torch.autocast(device.type, AUTOCAST.get(precision, torch.bfloat16),
                          enabled=precision in AUTOCAST)


def logits_of(out: Any) -> Tensor:
    return out if isinstance(out, Tensor) else out.logits


def forward_call(model: nn.Module, images: Tensor, precision: str) -> Callable[[], Tensor]:
    def call() -> Tensor:
        use(precision)
        with torch.inference_mode(), cast(precision, images.device):
            return logits_of(model(images))

    return call


class FoldedIn(nn.Module):
    """The folded network in `precision` throughout, as in `cvt.deploy.backends`: no autocast."""

    def __init__(self, model: CvT, precision: str) -> None:
        super().__init__()
        self.dtype = AUTOCAST.get(precision, torch.float32)
        # What the folded network shares with the model stays as it is.
        self.network = copy.deepcopy(Folded(model)).to(self.dtype)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return self.network(x.to(self.dtype)).float()


def train_call(model: nn.Module, images: Tensor, precision: str) -> Callable[[], None]:
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    labels = torch.arange(len(images), device=images.device) % 10

    def call() -> None:
        use(precision)
        with cast(precision, images.device):
            loss = F.cross_entropy(logits_of(model(images)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return call


# 1. Is it right?

def checks(name: str, size: int, machine: Machine) -> list[dict[str, Any]]:
    """Every form in every precision against float64, on the same device."""
    config = VARIANTS[name]
    # Without stochastic depth, so that every form computes the same function in training.
    config = dataclasses.replace(config, stages=tuple(
        dataclasses.replace(stage, drop_path_rate=0.0) for stage in config.stages))
    torch.manual_seed(0)
    model = CvT(config)
    with torch.no_grad():  # nothing stays at a value that would hide an error
        for key, tensor in model.state_dict().items():
            if key.endswith("running_var"):
                tensor.uniform_(0.5, 2)
            elif tensor.is_floating_point():
                tensor.add_(torch.randn_like(tensor), alpha=0.02)
    model = model.to(machine.device)
    images = torch.randn(4, 3, size, size, device=machine.device)
    reference = copy.deepcopy(model).double()
    use("fp32")
    with torch.inference_mode():
        expected = reference.eval()(images.double())
    slope = gradient(reference, images.double(), "fp64")

    rows = []
    for precision, (logit_bound, gradient_bound) in BOUNDS.items():
        if not machine.cuda and precision in ("tf32", "fp16"):
            continue
        for form, layout in (("plain", "contiguous"), ("plain", "channels_last"),
                             ("folded", "contiguous"), ("training form", "contiguous")):
            row: dict[str, Any] = {"model": name, "size": size, "form": form, "layout": layout,
                                   "precision": precision, "logit_bound": logit_bound,
                                   "gradient_bound": gradient_bound}
            x = images.contiguous(memory_format=torch.channels_last) if (
                layout == "channels_last") else images
            if form != "training form":
                evaluated = copy.deepcopy(model).eval()
                network = FoldedIn(evaluated, precision) if form == "folded" else evaluated
                logits = forward_call(network, x, precision)().double()
                row["logits"] = ((logits - expected).abs().max() / expected.abs().max()).item()
            if form != "folded":
                trained: nn.Module = copy.deepcopy(model)
                trained_slope = gradient(TrainingForm(trained) if form != "plain" else trained, x,
                                       precision)
                row["gradient"] = ((trained_slope - slope).norm() / slope.norm()).item()
            row["passed"] = (row.get("logits", 0) <= logit_bound
                             and row.get("gradient", 0) <= gradient_bound)
            rows.append(row)
            print(f"{'ok  ' if row['passed'] else 'FAIL'} {precision:5} {form:14} {layout:14}"
                  + "".join(f" {key} {row[key]:.1e}" for key in ("logits", "gradient")
                            if key in row), flush=True)
    return rows


def gradient(model: nn.Module, images: Tensor, precision: str) -> Tensor:
    """The gradient of a training step by all parameters, in float64, as one vector."""
    model.train()
    labels = torch.arange(len(images), device=images.device) % 10
    use(precision)
    with cast(precision, images.device):
        loss = F.cross_entropy(model(images), labels)
    # fp16 gradients of a mean over the batch would underflow; training scales its loss likewise.
    scale = 1024.0 if precision == "fp16" else 1.0
    (loss * scale).backward()
    return torch.cat([p.grad.double().flatten() / scale for p in model.parameters()
                      if p.grad is not None])


# 2. Where does the time go?

def profile(name: str, size: int, batch: int, train: bool, machine: Machine) -> dict[str, Any]:
    """The operators of a few steps in bf16 by their own time on the device."""
    torch.manual_seed(0)
    model = CvT(VARIANTS[name]).eval().to(machine.device)
    images = torch.randn(batch, 3, size, size, device=machine.device)
    call = (train_call if train else forward_call)(model, images, "bf16")
    for _ in range(2):
        call()
    machine.sync()
    activities = [torch.profiler.ProfilerActivity.CPU]
    if machine.cuda:
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    steps = 5 if machine.cuda else 1
    with torch.profiler.profile(activities=activities) as profiler:
        for _ in range(steps):
            call()
        machine.sync()
    events = list(profiler.key_averages())
    kind = "self_device_time_total" if machine.cuda else "self_cpu_time_total"

    def top(of: str) -> list[dict[str, Any]]:
        rows = [e for e in events if e.device_type.name == of and getattr(e, kind) > 0
                and not getattr(e, "is_user_annotation", False)
                and not e.key.startswith(("ProfilerStep", "Optimizer."))]
        total = sum(getattr(e, kind) for e in rows)
        rows.sort(key=lambda e: -getattr(e, kind))
        return [{"name": e.key, "share": getattr(e, kind) / total, "calls": e.count / steps,
                 "ms": getattr(e, kind) / 1e3 / steps} for e in rows[:15]]

    # An operator's own device time is that of the kernels that it started.
    result = {"model": name, "size": size, "batch": batch, "train": train, "precision": "bf16",
              "operators": top("CPU"), "kernels": top("CUDA") if machine.cuda else []}
    print(f"\n{'training step' if train else 'inference'} of {name}, {size} pixels, batch {batch}, "
          "bf16 eager: operators by their own time")
    for row in result["operators"][:12]:
        print(f"  {row['share']:6.1%} {row['ms']:9.3f} ms {row['calls']:6.0f} calls  {row['name']}")
    for row in result["kernels"][:8]:
        print(f"  {row['share']:6.1%} {row['ms']:9.3f} ms {row['calls']:6.0f} kernels  "
              f"{row['name'][:60]}")
    sys.stdout.flush()
    return result


# 3. How fast is it?

def groups(args: argparse.Namespace, machine: Machine) -> Iterator[Group]:
    """What to measure, the most important first."""
    first, size = args.models[0], args.sizes[0]
    exact = ("fp32", "tf32") if machine.cuda else ("fp32",)
    peers = [name for name in TIMM if "timm" in args.libraries]

    def port(name: str) -> list[str]:
        return [f"transformers:{name}"] if "transformers" in args.libraries else []

    def group(train: bool, name: str, size: int, *specs: Spec) -> Group:
        batch = args.batch or (2 if not machine.cuda else 64 if size <= 256 else 32)
        if name == "cvt_w24":
            batch = max(1, batch // 4)
        return Group(train=train, size=size, batch=batch, specs=specs)

    def eager(name: str, train: bool, theirs: list[str]) -> list[Spec]:
        form = "training form" if train else "folded"
        return [Spec(network=name, precision="bf16"),
                Spec(network=name, precision="bf16", layout="channels_last"),
                Spec(network=name, precision="bf16", form=form),
                *(Spec(network=name, precision=p) for p in exact),
                *(Spec(network=peer, precision=p) for peer in theirs
                  for p in (("bf16",) if args.quick else ("bf16", *exact)))]

    def compiled(name: str, train: bool) -> list[Spec]:
        form = "training form" if train else "folded"
        return [Spec(network=name, precision="bf16"),
                Spec(network=name, precision="bf16", how="compile"),
                Spec(network=name, precision="bf16", form=form, how="compile")]

    both = (False, True)
    for train in both:
        yield group(train, first, size, *eager(first, train, [*port(first), *peers]))
    if args.quick and not machine.cuda:
        return
    for train in both:
        yield group(train, first, size, *compiled(first, train),
                    *(Spec(network=peer, precision="bf16", how="compile")
                      for peer in port(first)))
    if args.quick:
        return
    one = [Spec(network=first, precision="bf16"),
           Spec(network=first, precision="bf16", form="folded"),
           *(Spec(network=peer, precision="bf16") for peer in (*port(first), *peers))]
    if machine.cuda:
        one.append(Spec(network=first, precision="bf16", form="folded", how="cudagraphs"))
    yield dataclasses.replace(group(False, first, size, *one), batch=1)
    for side in args.sizes:
        for name in args.models:
            for train in both:
                if (name, side) != (first, size):
                    theirs = [*port(name), *(peers if name == first else [])]
                    yield group(train, name, side, *eager(name, train, theirs))
    for train in both:
        yield group(train, first, size, Spec(network=first, precision="bf16"),
                    *(Spec(network=peer, precision="bf16", how="compile") for peer in peers),
                    *(Spec(network=first, precision=p, how="compile") for p in exact))
    for name in args.models[1:]:
        for train in both:
            yield group(train, name, size, *compiled(name, train))


def measure(group: Group, rounds: int, machine: Machine, skipped: list[str]
            ) -> list[dict[str, Any]]:
    """Measure and print the rows of a group; failed and late ones go to `skipped`."""
    if any(spec.how != "eager" for spec in group.specs):
        torch.compiler.reset()  # it gives up, silently, after eight networks of one class
    calls: dict[str, Callable[[], object]] = {}
    facts: dict[str, dict[str, Any]] = {}
    built: dict[str, tuple[nn.Module, int]] = {}
    expected: dict[str, Tensor] = {}
    failed = False
    torch.manual_seed(0)
    images = torch.randn(group.batch, 3, group.size, group.size, device=machine.device)
    for spec in group.specs:
        where = f"{group.title}: {spec.label}"
        if failed:
            machine.tidy()
            failed = False
        if machine.left() < (0 if spec.how == "eager" else COMPILE_S):
            skipped.append(f"{where}: no time left")
            continue
        try:
            if spec.network not in built:
                built[spec.network] = build(spec.network, group.size, machine)
            model, flops = built[spec.network]
            call, row = prepare(spec, group, model, images)
            started = time.monotonic()
            for _ in range(3 if machine.cuda else 1):
                out = call()
            machine.sync()
            if not group.train:
                out = out.float().clone()  # a CUDA graph writes the next call's into its place
            row |= {"warmup_s": time.monotonic() - started, "peak_mb": machine.peak(call),
                    "flops": flops * group.batch * (3 if group.train else 1)}
            if not group.train and ":" not in spec.network:
                if spec.network not in expected:
                    expected[spec.network] = forward_call(model, images, "fp32")().float()
                reference = expected[spec.network]
                row["difference"] = ((out - reference).abs().max()
                                     / reference.abs().max()).item()
            calls[spec.label], facts[spec.label] = call, row
        except InputError as error:
            skipped.append(f"{where}: {error}")
        except Exception as error:  # one row that fails must not cost the others
            reason = next(iter(str(error).splitlines()), "")
            skipped.append(f"{where}: {type(error).__name__}: {reason}")
            failed = True  # it has left memory to tidy once its frames are gone
    if not calls or (len(calls) == 1 and machine.left() < COMPILE_S):
        return []  # a base alone, of which an earlier group has the figures
    seconds = interleaved(calls, rounds, warmup=0, clock=machine.clock)
    base = next(iter(seconds))
    print(f"\n{group.title}, ratio to {base}\n{'':46}{'img/s':>8} {'ms':>9} {'quartiles':>17} "
          f"{'TFLOP/s':>8} {'MB':>7} {'ratio':>6}")
    rows = []
    for label, times in seconds.items():
        spread, speedup = summary(times), ratio(seconds[base], times)
        row = {"label": label, "train": group.train, "size": group.size, "batch": group.batch,
               **facts[label], **spread, "images_per_s": group.batch / spread["median_s"],
               "tflops": facts[label]["flops"] / spread["median_s"] / 1e12,
               "base": base, "speedup": speedup}
        rows.append(row)
        quartiles = f"{1e3 * spread['quartile1_s']:.2f}-{1e3 * spread['quartile3_s']:.2f}"
        memory = "-" if row["peak_mb"] is None else f"{row['peak_mb']:.0f}"
        print(f"{label:46}{row['images_per_s']:8.1f} {1e3 * spread['median_s']:9.2f} "
              f"{quartiles:>17} {row['tflops']:8.2f} {memory:>7} "
              f"{speedup['median']:6.2f}", flush=True)
    calls.clear()
    built.clear()
    machine.tidy()
    return rows


def build(network: str, size: int, machine: Machine) -> tuple[nn.Module, int]:
    """The network in evaluation mode on the device, and its FLOPs per image."""
    torch.manual_seed(0)
    if ":" in network:
        peer = build_peer(network, size)
        flops = 2 * network_multiply_adds(peer, torch.zeros(1, 3, size, size))
        return peer.to(machine.device), flops
    config = dataclasses.replace(VARIANTS[network], image_size=size)
    return (CvT(config).eval().to(machine.device), 2 * multiply_adds(config, (size, size)))


def prepare(spec: Spec, group: Group, model: nn.Module, images: Tensor
            ) -> tuple[Callable[[], Any], dict[str, Any]]:
    """The call of a row. A training step has a copy of the model, which it changes."""
    network = copy.deepcopy(model) if group.train else model
    if spec.form == "folded":
        network = FoldedIn(network, spec.precision)  # type: ignore[arg-type]
    if spec.form == "training form":
        network = TrainingForm(network)  # type: ignore[arg-type]
    if spec.layout == "channels_last":
        network = copy.deepcopy(network).to(memory_format=torch.channels_last)
        images = images.contiguous(memory_format=torch.channels_last)
    if spec.how == "compile":
        network = torch.compile(network)  # type: ignore[assignment]
    if spec.how == "cudagraphs":
        network = torch.compile(network, mode="reduce-overhead")  # type: ignore[assignment]
    make = train_call if group.train else forward_call
    return make(network, images, spec.precision), dataclasses.asdict(spec)


def peaks(machine: Machine) -> dict[str, float]:
    """FLOP/s of a large square matrix product, by precision."""
    n = 8192 if machine.cuda else 256
    rates = {}
    for precision in ("fp32", "tf32", "bf16") if machine.cuda else ("fp32", "bf16"):
        use(precision)
        a, b = (torch.randn(n, n, device=machine.device).to(
            AUTOCAST.get(precision, torch.float32)) for _ in range(2))
        out = torch.empty_like(a)
        product = [machine.clock(lambda a=a, b=b, out=out: torch.mm(a, b, out=out))
                   for _ in range(5)]
        rates[precision] = 2 * n**3 / min(product[1:])
    return rates


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--quick", action="store_true", help="the first model at the first size, "
                        "few rounds; on a CPU 64 pixels and nothing compiled")
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--models", nargs="+", choices=list(VARIANTS),
                        default=["cvt_13", "cvt_21", "cvt_w24"])
    parser.add_argument("--sizes", nargs="+", type=int)
    parser.add_argument("--batch", type=int, help="images a call (default: 64 at 224 pixels, 32 at "
                        "384, a quarter of it for cvt_w24; 2 on a CPU)")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--no-peers", action="store_true", help="measure CvT alone")
    parser.add_argument("--out", type=Path, help="(default: results/gpu.json beside this script; "
                        "nothing on a CPU)")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        print("gpu.py: torch sees no CUDA device here; --device cpu --quick tries the script out",
              file=sys.stderr)
        return 2
    machine = Machine(args.device, args.minutes)
    args.sizes = args.sizes or ([64] if args.quick and not machine.cuda else [224, 384])
    rounds = args.rounds or (3 if args.quick else 9)
    if args.out is None and machine.cuda:
        args.out = Path(__file__).parent / "results/gpu.json"

    result: dict[str, Any] = {**stamp(), "machine": machine.describe(),
                              "peaks": peaks(machine), "rounds": rounds, "rows": [],
                              "skipped": []}
    print(json.dumps({key: result[key] for key in ("machine", "versions")}))
    print("matrix product: " + ", ".join(f"{rate / 1e12:.2f} TFLOP/s {name}"
                                         for name, rate in result["peaks"].items()))

    def save() -> None:
        if args.out:  # after every part, as a rented machine may be taken away
            args.out.parent.mkdir(parents=True, exist_ok=True)
            args.out.write_text(json.dumps(result, indent=2) + "\n")

    args.libraries = []
    for library in ("transformers", "timm"):
        if args.no_peers:
            continue
        if find_spec(library):
            args.libraries.append(library)
        else:
            result["skipped"].append(f"{library}: not installed")
    first, size = args.models[0], args.sizes[0]
    result["checks"] = checks(first, size, machine)
    save()
    machine.tidy()
    batch = args.batch or (64 if machine.cuda else 2)
    result["profiles"] = [profile(first, size, batch, train, machine) for train in (False, True)]
    save()
    machine.tidy()
    for group in groups(args, machine):
        result["rows"] += measure(group, rounds, machine, result["skipped"])
        save()
    if result["skipped"]:
        print("\nskipped:\n  " + "\n  ".join(result["skipped"]))
    if args.out:
        print(args.out)
    failed = [row for row in result["checks"] if not row["passed"]]
    if failed:
        print(f"gpu.py: {len(failed)} of {len(result['checks'])} checks are beyond their bounds",
              file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
