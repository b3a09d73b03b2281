"""Generates the command-line reference from the parsers of the commands."""

import argparse
import re
from collections.abc import Sequence
from importlib import import_module
from typing import Any
from unittest.mock import patch

from sphinx.application import Sphinx

from cvt.cli import COMMANDS
from cvt.cli.parser import Parser

MARK = "<!-- commands -->"
ACTIONS = {"data": ("check", "copy")}  # subcommands
Option = tuple[str, str]  # invocation, help


class _Parser(Exception):  # noqa: N818
    """Carries a parser out of its command before it parses."""


def parser_of(command: str, *args: str) -> Parser:
    """Return the parser of `cvt COMMAND`."""
    def stop(parser: Parser, *_: Any, **__: Any) -> None:
        raise _Parser(parser)

    with patch.object(Parser, "parse_args", stop):
        try:
            import_module(f"cvt.cli.{command}").main([*args])
        except _Parser as stopped:
            return stopped.args[0]
    raise AssertionError(f"cvt {command} creates no parser")


def options_of(parser: Parser) -> dict[str, list[Option]]:
    """Return the options that --help all prints, by heading."""
    options: dict[str, list[Option]] = {}

    class Listener(parser.formatter_class):  # type: ignore[name-defined]
        def start_section(self, heading: str | None) -> None:
            options[heading or ""] = []
            super().start_section(heading)

        def add_argument(self, action: argparse.Action) -> None:
            if action.help != argparse.SUPPRESS:
                text = self._expand_help(action) if action.help else ""
                options[list(options)[-1]].append((self._format_action_invocation(action), text))
            super().add_argument(action)

    with patch.multiple(parser, formatter_class=Listener, full_help=True):
        parser.format_help()
    return {heading: rows for heading, rows in options.items() if rows}


def to_markdown() -> str:
    """Return one section for each command."""
    train = {row for rows in options_of(parser_of("train")).values() for row in rows}
    parts = []
    for command, summary in COMMANDS.items():
        for action in ACTIONS.get(command, (None,)):
            args = () if action is None else (action,)
            parser = parser_of(command, *args)
            options = options_of(parser)
            lines = [f"## cvt {' '.join((command, *args))}", "",
                     _plain(parser.description or summary), ""]
            shared = command != "train" and sum(
                row in train for rows in options.values() for row in rows) > len(train) // 2
            if shared:
                options = {heading: [row for row in rows if row not in train]
                           for heading, rows in options.items()}
                lines += ["All options of [cvt train](#cvt-train) for model, data and training "
                          "apply too.", ""]
            for heading, rows in options.items():
                lines += _section(heading, rows)
            parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _section(heading: str, rows: Sequence[Option]) -> list[str]:
    rows = [row for row in rows if not re.match(r"-h,|--[\w.]+\.help", row[0])]
    if not rows:
        return []
    lines = [] if heading in ("options", "arguments") else [f"**{heading}**", ""]
    for written, text in rows:
        lines += [f"`{written}`", f": {_plain(text) or '&nbsp;'}", ""]
    return lines


def _plain(text: str) -> str:
    """One line of Markdown in which only `code` is markup."""
    parts = re.split(r"(`[^`]+`)", " ".join(text.split()))
    return "".join(part if part.startswith("`") else re.sub(r"([\\*_<>\[\]|#])", r"\\\1", part)
                   for part in parts)


def _fill(app: Sphinx, docname: str, source: list[str]) -> None:
    if MARK in source[0] and docname == "reference/cli":
        app.env.note_reread()  # parsers can change without the page's file
        source[0] = source[0].replace(MARK, to_markdown())


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the extension."""
    app.connect("source-read", _fill)
    return {"parallel_read_safe": True}
