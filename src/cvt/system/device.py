"""Device and precision of the network."""

from __future__ import annotations

import torch

from cvt.system.errors import InputError, first_line


def pick_device(name: str) -> torch.device:
    """The device `name`; "auto" is CUDA if available. Raises InputError if it cannot be used."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=name).cpu()
        return torch.device(name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"device={name!r} cannot be used ({first_line(error)}); try cpu or auto"
                         ) from None


def device_name(device: torch.device) -> str:
    """The device, with the product name of a GPU."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return str(device)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Autocast context for a precision: "fp32" (disabled), "bf16" or "fp16"."""
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast(device.type, dtype, enabled=precision != "fp32")


def out_of_memory(error: RuntimeError) -> bool:
    """Whether PyTorch ran out of memory, on an accelerator or on the CPU."""
    return isinstance(error, torch.OutOfMemoryError) or (
        "DefaultCPUAllocator: can't allocate memory" in str(error))
