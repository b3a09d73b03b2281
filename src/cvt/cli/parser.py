"""Flags, YAML files and saved runs from the same dataclasses, one-line errors and short help."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar, get_args

from jsonargparse import ArgumentParser, DefaultHelpFormatter, Namespace, set_parsing_settings

from cvt.system.errors import InputError, did_you_mean

_T = TypeVar("_T")

set_parsing_settings(docstring_parse_attribute_docstrings=True)

_SYNONYMS = {
    "accum": "optim.grad_accum_steps", "arch": "model", "checkpoint": "weights", "cuda": "device",
    "data_dir": "data.root", "data_path": "data.root", "dataset": "data.name",
    "drop_path": "drop_path_rate", "ema_decay": "ema", "gpu": "device",
    "grad_accum": "optim.grad_accum_steps", "gradient_accumulation_steps": "optim.grad_accum_steps",
    "grad_clip": "optim.clip_grad", "gradient_checkpointing": "grad_checkpointing",
    "img_size": "image_size", "input_size": "image_size", "learning_rate": "optim.lr",
    "max_grad_norm": "optim.clip_grad", "max_steps": "steps", "model_ema_decay": "ema",
    "num_epochs": "epochs", "num_train_epochs": "epochs", "num_workers": "data.workers",
    "opt": "optim.name", "optimizer": "optim.name", "out": "output", "output_dir": "output",
    "pretrained": "weights", "randaugment": "augment.rand_augment", "reprob": "augment.erasing",
    "resolution": "image_size", "sched": "optim.schedule", "scheduler": "optim.schedule",
    "smoothing": "augment.label_smoothing", "teacher_model": "distill.teacher",
    "train_dir": "data.root", "tracker": "trackers", "val_ratio": "data.val_fraction",
    "val_split_fraction": "data.val_fraction", "warmup": "optim.warmup_epochs",
    "wd": "optim.weight_decay",
}
"""What options are called elsewhere in the field: named in the error, not accepted."""


class _Formatter(DefaultHelpFormatter):
    """Help without types in words, and with a default only where there is one to say."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        silent = action.default is False or action.default in (None, "", (), argparse.SUPPRESS)
        if silent or not action.option_strings or "default" in text:
            return text
        return f"{text} (default: %(default)s)"

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        kind = getattr(action, "_typehint", None) or action.type
        numbers = {kind, *get_args(kind)} & {int, float}
        names = {int: "N", float: "X"}
        if numbers:
            return names[numbers.pop()]
        return super()._get_default_metavar_for_optional(action)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        return super()._format_action_invocation(action).replace(" \b[", "[")


@dataclass(frozen=True, kw_only=True)
class _Shorthand:
    """A positional that stands for options."""

    action: argparse.Action
    options: Callable[[str, Collection[str]], Mapping[str, str]]
    accepts: Callable[[str], bool]


class Parser(ArgumentParser):
    """jsonargparse's parser with one-line errors, which name the nearest option.

    groups: option names, or prefixes that end in a dot, by their heading in the help. common: those
    of them that `--help` prints; `--help all` prints all. Positionals may stand anywhere among the
    options, and an option may be written with hyphens.
    """

    def __init__(self, *args: Any, groups: Mapping[str, Sequence[str]] | None = None,
                 common: Collection[str] = (), **kwargs: Any) -> None:
        kwargs.setdefault("formatter_class", _Formatter)
        super().__init__(*args, allow_abbrev=False, **kwargs)
        self._help_groups, self._common = groups or {}, common
        self._shorthands: list[_Shorthand] = []
        self.full_help = False
        self.given: frozenset[str] = frozenset()
        """The names of the options that the last call of `parse` was given."""

    def add_shorthand(self, metavar: str, help: str, options: Callable[
            [str, Collection[str]], Mapping[str, str]],
            accepts: Callable[[str], bool] = lambda _: True) -> None:
        """Let a positional stand for options.

        options: from the positional and the names of the options given, the options that it stands
        for. It excludes the first; the others may be given to override it. accepts: whether a value
        is meant by it; if not, it is left to the positionals that follow.
        """
        self._shorthands.append(_Shorthand(
            action=argparse._StoreAction([], metavar, nargs="?", metavar=metavar, help=help),
            options=options, accepts=accepts))

    def parse(self, args: Sequence[str]) -> Namespace:
        """Parse `args`; --dry-run is --dry_run, as a field of a dataclass is called."""
        options, positionals, given = self._split(args)
        self.given = frozenset(given)
        for shorthand in self._shorthands:
            if positionals and shorthand.accepts(positionals[0]):
                value = positionals.pop(0)
                stands_for = shorthand.options(value, given)
                for i, (name, text) in enumerate(stands_for.items()):
                    if name not in given:
                        options += [f"--{name}={text}"]
                        self.given |= {name}
                    elif i == 0:
                        self.error(f"{shorthand.action.metavar} {value} and --{name} "
                                   f"{given[name]} are two values for one option; give one")
        if positionals and not any(not a.option_strings for a in self._actions):
            self.error(f"{positionals[0]!r} is one argument too many")
        # A positional behind "--" is not taken for one more value of the option before it.
        return self.parse_args([*options, *(["--", *positionals] if positionals else [])])

    def read(self, args: Sequence[str]) -> Namespace:
        """Parse `args` and build their dataclasses; exits with 2 where a value is rejected."""
        parsed = self.parse(args)
        return self._rejecting(lambda: self.instantiate(parsed))

    def build(self, kind: type[_T], chosen: Namespace) -> _T:
        """The dataclass `kind` from the options named as its fields; exits with 2 if rejected."""
        names = [f.name for f in dataclasses.fields(kind)]  # type: ignore[arg-type]
        return self._rejecting(lambda: kind(**{name: getattr(chosen, name) for name in names}))

    def at_least_one(self, chosen: Namespace, *names: str) -> None:
        """Exit with 2 where one of the options `names` is below 1."""
        for name in names:
            if getattr(chosen, name) < 1:
                self.error(f"--{name} {getattr(chosen, name)} must be at least 1")

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:  # noqa: ARG002
        """Exit with code 2 and one line."""
        self.exit(2, f"{self.prog}: {self._plain(' '.join(message.split()))} "
                     f"(see {self.prog} --help)\n")

    def format_help(self, *args: Any, **kwargs: Any) -> str:
        """Help by headings: all of it after `--help all`, else the common options."""
        shown = [a for a in self._actions if a.option_strings]
        required = [f"{a.option_strings[-1]} {a.metavar or _last(a.dest).upper()}"
                    for a in shown if a.required]
        values = [s.action for s in self._shorthands]
        values += [a for a in self._actions if not a.option_strings]
        self.usage = " ".join([self.prog, *required, "[OPTIONS]", *map(_usage, values)])
        before = self._action_groups
        self._action_groups = list(self._headings(values))  # type: ignore[arg-type]
        hidden = len([a for a in self._actions if not a.dest.endswith(".help")]) - sum(
            len(g._group_actions) for g in self._action_groups) + len(self._shorthands)
        self.epilog = f"{hidden} more options: {self.prog} --help all" if hidden else None
        try:
            return super().format_help(*args, **kwargs)
        finally:
            self._action_groups = before

    def _headings(self, values: Sequence[argparse.Action]) -> Iterator[argparse._ArgumentGroup]:
        """The groups to print: arguments, the parser's own groups, and those of `groups`."""
        def group(title: str | None, actions: Iterable[argparse.Action]) -> argparse._ArgumentGroup:
            made = argparse._ArgumentGroup(self, title)
            made._group_actions = list(actions)
            return made

        yield group("arguments", values)
        grouped = [a for names in self._help_groups.values() for a in self._actions
                   if _in(a.dest, names)]
        for own in self._action_groups:
            rest = [a for a in own._group_actions if a.option_strings and a not in grouped
                    and not a.dest.endswith(".help")]
            if rest:
                # A dataclass's heading is its docstring's first sentence; its first clause will do.
                yield group((own.title or "").partition(";")[0], rest)
        for title, names in self._help_groups.items():
            ordered = dict.fromkeys(a for name in names for a in self._actions
                                    if _in(a.dest, (name,)))
            actions = [a for a in ordered if self.full_help or a.dest in self._common]
            if actions:
                yield group(title, actions)

    def _split(self, args: Sequence[str]) -> tuple[list[str], list[str], dict[str, str]]:
        """Options with their values, positionals, and the options' values by name.

        argparse takes positionals only where they stand together.
        """
        options: list[str] = []
        positionals: list[str] = []
        given: dict[str, str] = {}
        rest = list(args)
        while rest:
            arg = rest.pop(0)
            if arg == "--":
                positionals += rest
                break
            if arg == "-" or not arg.startswith("-"):
                positionals.append(arg)
                continue
            flag, equals, value = arg.partition("=")
            if flag in ("-h", "--help"):
                self.full_help = (value or "".join(rest[:1])) == "all"
                self.print_help()
                self.exit(0)
            name = flag.removeprefix("--").replace("-", "_")
            nargs = self._nargs(name) if flag.startswith("--") else "unknown"
            if nargs == "unknown":
                self.error(f"there is no option {flag}{self._nearest(name, '--')}")
            count = 0 if equals else {None: 1, "?": 1, 0: 0}.get(nargs, len(rest))
            values = [value] if equals else []
            while rest and len(values) < count and not rest[0].startswith("--"):
                values.append(rest.pop(0))
            options += [f"--{name}{equals}{value}"] if equals else [f"--{name}", *values]
            given[name] = " ".join(values)
        return options, positionals, given

    def _nargs(self, name: str) -> str | int | None:
        """How many values an option takes, as argparse has it; "unknown" for no option."""
        if action := self._option_string_actions.get(f"--{name}"):
            return 0 if "--print_config" in action.option_strings else action.nargs
        return None if name in self._names() else "unknown"

    def _names(self) -> list[str]:
        """Every option's name, those of a dataclass that may be None too."""
        names = [flag[2:] for flag in self._option_string_actions if flag.startswith("--")]
        for action in self._actions:
            for kind in get_args(getattr(action, "_typehint", None)):
                if dataclasses.is_dataclass(kind):
                    names += [f"{action.dest}.{f.name}" for f in dataclasses.fields(kind)]
        return names

    def _nearest(self, name: str, dashes: str = "") -> str:
        """A clause that names the options most like `name`: by the field's usual names, by the last
        part, by spelling; empty where none is like it."""
        names = [n for n in self._names() if ".help" not in n]
        last: dict[str, list[str]] = {}
        for known in names:
            last.setdefault(_last(known), []).append(known)
        synonym = _SYNONYMS.get(name.lower())
        near = [synonym] if synonym in names else last.get(_last(name), [])
        if not near and len(begun := [n for n in names if _last(n).startswith(name)]) == 1:
            near = begun
        if not near:
            close = difflib.get_close_matches(name, [*names, *last], n=1, cutoff=0.6)
            near = [close[0]] if close and close[0] in names else last[close[0]] if close else []
        return f"; did you mean {' or '.join(f'{dashes}{n}' for n in near)}?" if near else ""

    def _rejecting(self, make: Callable[[], _T]) -> _T:
        try:
            return make()
        except ValueError as error:
            # Where a dataclass may also be None, jsonargparse wraps what it raises.
            reason = error if isinstance(error, InputError) else error.__cause__
            if not isinstance(reason, InputError):
                raise
            self.exit(2, f"{self.prog}: {reason}\n")

    def _plain(self, message: str) -> str:
        """jsonargparse's message in our words, with the nearest name that exists."""
        if match := re.fullmatch(r"(the following arguments are required: )(.*)", message):
            names = {a.dest: a.metavar for a in self._actions if not a.option_strings}
            return match[1] + ", ".join(str(names.get(n) or n) for n in match[2].split(", "))
        if match := re.search(r"(?:Group '([\w.]+)' does not accept option|Option) '([\w.]+)'",
                              message):
            key = f"{match[1]}.{match[2]}" if match[1] else match[2]
            return f"there is no key {key}{self._nearest(key)}"
        if match := re.search(r'key "([\w.]+)": Does not validate .* value: (.*)', message):
            return f"{match[1]}={match[2]} is neither options of {match[1]} nor a file of them"
        if match := re.search(r'key "([\w.]+)": Expected a (.+)\. Got value: (.*)', message):
            key, kind, value = match.groups()
            if "Literal" in kind:
                choices = re.findall(r"[^\[\], ']+", kind.split("[", 1)[1])
                return f"{key}={value} is not a choice; {did_you_mean(value, choices)}"
            plain = re.sub(r"<class '(.+)'>", r"\1", kind)
            return f"{key}={value} is not of type {plain}"
        return message


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _in(dest: str, names: Sequence[str]) -> bool:
    return any(dest == name or (name.endswith(".") and dest.startswith(name)) for name in names)


def _usage(action: argparse.Action) -> str:
    name = str(action.metavar or action.dest.upper())
    return {"*": f"[{name} ...]", "+": f"{name} [{name} ...]", "?": f"[{name}]"}.get(
        str(action.nargs), name)
