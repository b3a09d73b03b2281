"""Flags, YAML files and saved runs from the same dataclasses, and errors of one line."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeVar

import yaml
from jsonargparse import ArgumentParser, Namespace, get_loader, set_loader, set_parsing_settings

from cvt.system.errors import InputError, did_you_mean

_T = TypeVar("_T")

set_parsing_settings(docstring_parse_attribute_docstrings=True)
_read_yaml: Callable[[str], Any] = get_loader("yaml")


def _read_value(text: str) -> Any:
    """`text` read as YAML; itself if it is not UTF-8, as the name of a file may be."""
    try:
        return _read_yaml(text)
    except UnicodeEncodeError:
        return text


set_loader("yaml", _read_value, (yaml.YAMLError,))


class Parser(ArgumentParser):
    """jsonargparse's parser, which names the nearest option where one is misspelt."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:  # noqa: ARG002
        """Leave with exit code 2 and one line."""
        self.exit(2, f"{self.prog}: {self._hint(' '.join(message.split()))} "
                     f"({self.prog} --help tells all options)\n")

    def told(self, args: Sequence[str]) -> Namespace:
        """Parse `args`; --dry-run is --dry_run, as a field of a dataclass is called."""
        return self.parse_args([
            re.sub(r"^--[\w.-]+", lambda m: "--" + m[0][2:].replace("-", "_"), arg)
            for arg in args])

    def read(self, args: Sequence[str]) -> Namespace:
        """Parse `args` and build their dataclasses; leaves with 2 where a value is refused."""
        parsed = self.told(args)
        return self._refusing(lambda: self.instantiate(parsed))

    def build(self, kind: type[_T], chosen: Namespace) -> _T:
        """The dataclass `kind` from the options named as its fields; leaves with 2 if refused."""
        names = [f.name for f in dataclasses.fields(kind)]  # type: ignore[arg-type]
        return self._refusing(lambda: kind(**{name: getattr(chosen, name) for name in names}))

    def at_least_one(self, chosen: Namespace, *names: str) -> None:
        """Leave with 2 where one of the options `names` is below 1."""
        for name in names:
            if getattr(chosen, name) < 1:
                self.error(f"--{name} {getattr(chosen, name)} must be at least 1")

    def _refusing(self, make: Callable[[], _T]) -> _T:
        try:
            return make()
        except ValueError as error:
            # Where a dataclass may also be None, jsonargparse wraps what it raises.
            refusal = error if isinstance(error, InputError) else error.__cause__
            if not isinstance(refusal, InputError):
                raise
            self.exit(2, f"{self.prog}: {refusal}\n")

    def _hint(self, message: str) -> str:
        """jsonargparse's message in our words, with the nearest name that exists."""
        options = [option[2:] for action in self._actions for option in action.option_strings
                   if option.startswith("--")]
        if found := re.search(r"unrecognized arguments: --([\w.]+)", message, re.IGNORECASE):
            return f"there is no option --{found[1]}; {did_you_mean(found[1], options)}"
        if found := re.search(r"(?:Group '([\w.]+)' does not accept option|Option) '([\w.]+)'",
                              message):
            key = f"{found[1]}.{found[2]}" if found[1] else found[2]
            return f"there is no key {key}; {did_you_mean(key, options)}"
        if found := re.search(r'key "([\w.]+)": Expected a (.+)\. Got value: (.*)', message):
            key, kind, value = found.groups()
            if "Literal" in kind:
                choices = re.findall(r"[^\[\], ']+", kind.split("[", 1)[1])
                return f"{key}={value} is not a choice; {did_you_mean(value, choices)}"
            plain = re.sub(r"<class '(.+)'>", r"\1", kind)
            return f"{key}={value} is not of type {plain}"
        return message
