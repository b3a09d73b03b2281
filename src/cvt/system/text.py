"""Names and reasons from strangers, fit for a terminal."""

from __future__ import annotations


def printable(text: str) -> str:
    r"""`text` with what is not a character to be seen, such as a terminal's commands, as an escape.

    >>> print(printable("a\x1b[31mb"))
    a\x1b[31mb
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode()
                   for c in text)
