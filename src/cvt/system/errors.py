"""The exceptions meant for people, and the nearest-match hint that many messages end with."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Something the user gave cannot be used; the message says what, what it got and what to do.

    The command line prints it as one line, without a traceback, and exits with 1.
    """


class DivergedError(ArithmeticError):
    """Training cannot go on, for its loss is not finite; the message says when and what to try."""


class StoppedError(Exception):
    """A run was asked to stop, and can go on later; `code` is the process's exit code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code

    def __reduce__(self) -> tuple[type[StoppedError], tuple[str, int]]:
        return StoppedError, (str(self), self.code)  # it travels between processes


def one_line(error: BaseException) -> str:
    """What another library's exception says, in one line of a bearable length."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A clause that names the nearest of `known`, or lists them all where none is near.

    >>> did_you_mean("cvt13", ["cvt_13", "cvt_21"])
    'did you mean cvt_13?'
    """
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"did you mean {near[0]}?" if near else f"choose from {', '.join(known)}"
