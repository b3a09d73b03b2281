"""Import of optional packages. No torch."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from cvt.system.errors import InputError


def require(module: str, extra: str) -> ModuleType:
    """Import `module`, which the extra `extra` of this package installs.

    Raises InputError with the install command if it is not installed.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        # The missing module may be a dependency of `module`.
        missing = error.name or module
        raise InputError(f"{missing} is not installed; pip install 'cvt-torch[{extra}]'") from None
