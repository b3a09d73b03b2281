"""Diagnosis of an installation: packages, machine, and a trial of every backend."""

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

_MODEL = "cvt_nano.fashion_mnist"  # its weights are in this package: nothing is downloaded


@dataclass(frozen=True, kw_only=True)
class Package:
    """A dependency, required or of an extra."""

    name: str
    version: str | None
    """None if it is not installed."""
    extra: str | None
    """The extra that installs it; None if it is required."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """The result of running one backend."""

    backend: str
    precision: str
    device: str
    milliseconds: float | None = None
    """Latency of one 28x28 image with `cvt_nano`, median of 20 calls; None if it failed."""
    difference: float | None = None
    """The largest difference of any logit from PyTorch in fp32, relative to the largest logit."""
    reason: str | None = None
    """Why it failed or is slow, in one line."""

    @property
    def works(self) -> bool:
        """Whether its logits agree with PyTorch's."""
        return self.milliseconds is not None


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """The result of `diagnose`."""

    machine: dict[str, str]
    """Processor, system, versions, cores, memory, bfloat16, GPUs, download directory."""
    packages: tuple[Package, ...]
    trials: tuple[Trial, ...]

    @property
    def healthy(self) -> bool:
        """Whether every required package is installed and PyTorch computes."""
        return (all(p.version for p in self.packages if p.extra is None)
                and any(t.works for t in self.trials if t.backend == "eager"))

    def missing(self) -> dict[str, tuple[str, ...]]:
        """Missing packages by the extra that installs them; "" for required ones."""
        missing: dict[str, tuple[str, ...]] = {}
        for package in self.packages:
            if package.version is None:
                extra = package.extra or ""
                missing[extra] = (*missing.get(extra, ()), package.name)
        return missing


def diagnose(*, compile: bool = False) -> Diagnosis:
    """Inspect packages and machine, and try every backend; downloads nothing.

    compile: also try torch.compile, which takes a minute or more.
    """
    packages, machine = tuple(_packages()), _machine()
    trials: tuple[Trial, ...] = ()
    if any(p.name == "torch" and p.version for p in packages):
        try:
            torch = import_module("torch")
        except Exception as error:  # such as a shared library that is missing
            trials = (Trial(backend="eager", precision="fp32", device="cpu",
                            reason=f"{_first_line(error)}; install PyTorch again"),)
        else:
            gpus = map(torch.cuda.get_device_name, range(torch.cuda.device_count()))
            machine["GPUs"] = ", ".join(gpus) or "none that PyTorch sees"
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
    machine = describe_machine()
    machine["cores for this process"] = str(available_cores())
    machine["memory"] = f"{psutil.virtual_memory().total / 2**30:.1f} GiB"
    for name, native in (("bfloat16", native_bf16()), ("int8", native_int8())):
        machine[name] = "native" if native else "not native to this processor, so no faster"
    with contextlib.suppress(ImportError):
        from huggingface_hub.constants import HF_HUB_CACHE

        machine["downloaded weights"] = HF_HUB_CACHE
    return machine


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

    model = create_model(_MODEL).eval().to(device)
    generator = torch.Generator().manual_seed(0)
    images = [torch.randn(8, 3, 28, 28, generator=generator).to(device) for _ in range(4)]
    try:
        fast = optimize(model, backend, precision,  # type: ignore[arg-type]
                        calibration=images if precision == "int8" else None)
        seconds = []
        for _ in range(25):
            start = time.perf_counter()
            fast(images[0][:1]).cpu()  # the copy waits for a GPU to finish
            seconds.append(time.perf_counter() - start)
    except InputError as error:
        return Trial(backend=backend, precision=precision, device=device, reason=str(error))
    except Exception as error:  # of a compiler or a driver: it does not work here
        return Trial(backend=backend, precision=precision, device=device, reason=_first_line(error))
    slow = precision == "bf16" and device == "cpu" and not native_bf16()
    return Trial(backend=backend, precision=precision, device=device,
                 milliseconds=1000 * statistics.median(seconds[5:]),
                 difference=fast.agreement.difference,
                 reason="emulated: this processor has no bfloat16" if slow else None)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
