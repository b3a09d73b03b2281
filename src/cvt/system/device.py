"""Device and precision of the network."""

from __future__ import annotations

import warnings

import torch

from cvt.system.errors import InputError, first_line, one_line

ACCELERATORS = ("cuda", "xpu", "mps")
"""The kinds of device that "auto" prefers to the CPU: NVIDIA's and AMD's, Intel's, Apple's."""


def pick_device(name: str) -> torch.device:
    """The device `name`; "auto" is the accelerator that PyTorch was built for (CUDA, XPU or MPS) if
    available, else the CPU. Raises InputError if it cannot be used."""
    if name == "auto":
        device = torch.accelerator.current_accelerator(check_available=True)
        return device if device is not None and device.type in ACCELERATORS else torch.device("cpu")
    try:
        torch.empty(0, device=name).cpu()
        return torch.device(name)
    # RuntimeError, and its subclass NotImplementedError: an unknown or absent device, or meta.
    # AssertionError: PyTorch was built without it. ImportError: it needs an extension of PyTorch.
    except (RuntimeError, AssertionError, ImportError) as error:
        raise InputError(f"device={name!r} cannot be used ({first_line(error)}); try cpu or auto"
                         ) from None


def device_name(device: torch.device) -> str:
    """The device, with the product name of a GPU if PyTorch has one."""
    if device.type in ("cuda", "xpu"):
        return f"{device} ({getattr(torch, device.type).get_device_name(device)})"
    return str(device)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The autocast context of a precision: "fp32" (none), "bf16" or "fp16".

    Raises InputError where the device cannot compute in it; PyTorch would warn and use float32.
    """
    if precision == "fp32":
        return torch.autocast(device.type, enabled=False)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return torch.autocast(device.type,
                                  torch.float16 if precision == "fp16" else torch.bfloat16)
    except (RuntimeError, UserWarning) as error:
        raise InputError(f"precision={precision!r} cannot be computed on device={str(device)!r} "
                         f"({one_line(error)}); use fp32 or another precision") from None


def free_cache(device: torch.device) -> None:
    """Return memory that PyTorch holds and does not use to the device; nothing on a CPU."""
    if device.type in ACCELERATORS:
        getattr(torch, device.type).empty_cache()


def out_of_memory(error: RuntimeError) -> bool:
    """Whether the error is that an accelerator or the machine is out of memory."""
    return isinstance(error, torch.OutOfMemoryError) or any(text in str(error) for text in (
        "DefaultCPUAllocator: can't allocate memory", "DefaultCPUAllocator: not enough memory",
        "MPS backend out of memory"))
