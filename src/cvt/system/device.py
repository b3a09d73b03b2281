"""Where and in which precision the network runs."""

from __future__ import annotations

import torch

from cvt.system.errors import InputError


def pick_device(name: str) -> torch.device:
    """The device `name` stands for; "auto" is CUDA where there is one. Raises InputError."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=name).cpu()
        return torch.device(name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"device={name!r} cannot be used ({reason}); try cpu or auto") from None


def device_name(device: torch.device) -> str:
    """The device in words: a GPU's product name where there is one."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return str(device)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The autocast context of a precision: "fp32" (none), "bf16" or "fp16"."""
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast(device.type, dtype, enabled=precision != "fp32")


def out_of_memory(error: RuntimeError) -> bool:
    """Whether PyTorch says so of an accelerator or of the machine."""
    return isinstance(error, torch.OutOfMemoryError) or (
        "DefaultCPUAllocator: can't allocate memory" in str(error))
