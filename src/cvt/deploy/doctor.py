"""What is installed here, and what each backend can do on this machine: tried, not guessed."""

from __future__ import annotations

import contextlib
import re
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, requires, version

import psutil

from cvt.system.errors import InputError
from cvt.system.machine import available_cores, describe_machine, native_bf16, native_int8

TRIED = "cvt_nano.fashion_mnist"  # the weights in this package, so that nothing is downloaded


@dataclass(frozen=True, kw_only=True)
class Package:
    """A package that this one needs, or that an extra of it brings."""

    name: str
    version: str | None
    """None where it is not installed."""
    extra: str | None
    """The extra that brings it; None for one that all need."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A backend at work, or why it does not."""

    backend: str
    precision: str
    device: str
    milliseconds: float | None = None
    """Of an image alone, 28x28, through `cvt_nano`, the median of 20; None where it failed."""
    difference: float | None = None
    """Of the logits from those of PyTorch in fp32, in units of the largest."""
    reason: str | None = None
    """Why it failed, or in what it is slow, in one line."""
    mend: str | None = None
    """What to do about it, where `reason` does not say so."""

    @property
    def works(self) -> bool:
        """Whether it computed logits near enough to PyTorch's."""
        return self.milliseconds is not None


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """What `examine` found."""

    machine: dict[str, str]
    """Processor, system, versions, cores, memory, bfloat16, GPUs, where downloads are kept."""
    packages: tuple[Package, ...]
    trials: tuple[Trial, ...]

    @property
    def healthy(self) -> bool:
        """Whether all that everybody needs is there, and PyTorch computes."""
        return (all(p.version for p in self.packages if p.extra is None)
                and any(t.works for t in self.trials if t.backend == "eager"))

    def missing(self) -> dict[str, tuple[str, ...]]:
        """What is not installed, by the extra that brings it; "" for what all need."""
        found: dict[str, tuple[str, ...]] = {}
        for package in self.packages:
            if package.version is None:
                key = package.extra or ""
                found[key] = (*found.get(key, ()), package.name)
        return found


def examine(*, compile: bool = False) -> Diagnosis:
    """Look at packages and machine, and try every backend; downloads nothing.

    compile: try torch.compile too, which takes a minute or more.
    """
    packages, machine = tuple(_packages()), _machine()
    trials: tuple[Trial, ...] = ()
    if any(p.name == "torch" and p.version for p in packages):
        try:
            import_module("torch")
        except Exception as error:  # a library of it that is missing or of another system
            trials = (Trial(backend="eager", precision="fp32", device="cpu", reason=_told(error),
                            mend="install PyTorch again"),)
        else:
            machine["GPUs"] = _gpus()
            trials = tuple(_trials(compile))
    return Diagnosis(machine=machine, packages=packages, trials=trials)


def _packages() -> Iterator[Package]:
    for line in requires("cvt-torch") or ():
        name = re.match(r"[\w.-]+", line)
        extra = re.search(r"extra == ['\"]([\w-]+)['\"]", line)
        if name is None or (extra and extra[1] == "dev"):
            continue
        try:
            installed: str | None = version(name[0])
        except PackageNotFoundError:
            installed = None
        yield Package(name=name[0], version=installed, extra=extra[1] if extra else None)


def _machine() -> dict[str, str]:
    found = describe_machine()
    found["cores for this process"] = str(available_cores())
    found["memory"] = f"{psutil.virtual_memory().total / 2**30:.1f} GiB"
    for name, native in (("bfloat16", native_bf16()), ("int8", native_int8())):
        found[name] = "in the processor" if native else "not in the processor, and so no faster"
    with contextlib.suppress(ImportError):
        from huggingface_hub.constants import HF_HUB_CACHE

        found["downloaded weights"] = HF_HUB_CACHE
    return found


def _gpus() -> str:
    import torch

    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return ", ".join(names) or "none that PyTorch sees"


def _trials(compile: bool) -> Iterator[Trial]:

    from cvt.deploy.backends import PRECISIONS
    from cvt.system.device import pick_device

    for backend, precisions in PRECISIONS.items():
        if backend == "compile" and not compile:
            continue
        for precision in precisions:
            yield _try(backend, precision, "cpu")
    if (device := pick_device("auto").type) != "cpu":
        for precision in PRECISIONS["eager"]:
            yield _try("eager", precision, device)


def _try(backend: str, precision: str, device: str) -> Trial:
    import torch

    from cvt.deploy.backends import optimize
    from cvt.weights.models import create_model

    model = create_model(TRIED).eval().to(device)
    generator = torch.Generator().manual_seed(0)
    images = [torch.randn(8, 3, 28, 28, generator=generator).to(device) for _ in range(4)]
    try:
        fast = optimize(model, backend, precision,  # type: ignore[arg-type]
                        calibration=images if precision == "int8" else None)
        seconds = []
        for _ in range(25):
            start = time.perf_counter()
            fast(images[0][:1]).cpu()  # a GPU has not computed before it is asked
            seconds.append(time.perf_counter() - start)
    except InputError as error:
        return Trial(backend=backend, precision=precision, device=device, reason=str(error))
    except Exception as error:  # a compiler's or a driver's: whatever it is, it does not work here
        return Trial(backend=backend, precision=precision, device=device, reason=_told(error))
    slow = precision == "bf16" and device == "cpu" and not native_bf16()
    return Trial(backend=backend, precision=precision, device=device,
                 milliseconds=1000 * statistics.median(seconds[5:]),
                 difference=fast.agreement.difference,
                 reason="emulated: this processor has no bfloat16" if slow else None)


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
