"""Optional packages: the import, or the one line that installs what is missing. No torch."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from cvt.system.errors import InputError


def require(module: str, extra: str) -> ModuleType:
    """Import `module`, which the extra `extra` of this package brings.

    Raises InputError with the install line where its package is not installed.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        # A package that is there but lacks one of its own is another fault, which keeps its name.
        missing = error.name or module
        raise InputError(f"{missing} is not installed; pip install 'cvt-torch[{extra}]'") from None
