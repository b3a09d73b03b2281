"""Exceptions for users, and helpers for their messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Invalid input from the user; the message says what is wrong, the value and what to do.

    The command line prints it as one line, without a traceback, and exits with 1.
    """


class DivergedError(ArithmeticError):
    """The training loss is not finite; the message says when, and what to try."""


class StoppedError(Exception):
    """A run was stopped on request and can be resumed; `code` is the exit code of the process."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code

    def __reduce__(self) -> tuple[type[StoppedError], tuple[str, int]]:
        return StoppedError, (str(self), self.code)  # raised across processes


def one_line(error: BaseException) -> str:
    """The message of another library's exception in one line of at most 300 characters."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def first_line(error: BaseException) -> str:
    """The first line of another library's message, printable, of at most 300 characters."""
    line = next(filter(str.strip, str(error).splitlines()), type(error).__name__)
    return "".join(c if c.isprintable() else "?" for c in line.strip()[:300])


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A hint with the closest of the `known` names, or all of them if none is close.

    >>> did_you_mean("cvt13", ["cvt_13", "cvt_21"])
    'did you mean cvt_13?'
    """
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"did you mean {near[0]}?" if near else f"choose from {', '.join(known)}"
