"""Wrong arguments in one line each, option, value and rule, made of jsonargparse's longer words."""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from locatvit.errors import LocAtError, near_matches

_WORDS: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    Path: "a path",
    dict: "a mapping such as {key: value}",
    type(None): "null",
}
_PLURALS: dict[Any, str] = {int: "whole numbers", float: "numbers", str: "texts"}
_VALUE = re.compile(r"Got value: (.*)$|Given value: (?!NestedArg)(.*)$", re.MULTILINE)


def known_options(config: type[Any] | None, others: Iterable[str]) -> list[str]:
    """All options, dotted: the fields of a dataclass with those of its parts, and the parser's others."""
    return sorted({*others, *(() if config is None else _fields(config))})


def explain(text: str, config: type[Any] | None, options: Sequence[str]) -> str:
    """One line for an error of jsonargparse's.

    Args:
        text: its message.
        config: the dataclass whose fields are the options, if there is one.
        options: all options; see ``known_options``.
    """
    if text.startswith("unrecognized arguments: "):
        return _unknown(text.removeprefix("unrecognized arguments: ").split()[0], options)
    if found := re.search(r"argument (--\S+): expected (?:one|at least one) argument", text):
        return f"{found[1]} has no value; give one behind it: {found[1]} VALUE"
    if found := re.search(r"the following arguments are required: (.*)", text):
        return f"{found[1]} must be given"
    keys = re.findall(r'Parser key "([^"]+)"', text)
    if found := re.search(r"(?:File does not exist|Path is not a file|Unable to load config):? '(.*)'", text):
        return f"--{keys[0]} is {found[1]}, which is no file that can be read; give a YAML file"
    if found := re.search(r"Group '(.+)' does not accept option '(.+)'", text):
        return _unknown(f"{found[1]}.{found[2]}", options)
    if found := re.search(r"Option '(.+)' is not accepted", text):
        return _unknown(".".join([*keys, found[1]]), options)
    if text.startswith("Problems parsing config"):
        return f"--config is no YAML: {_flat(text.partition(': ')[2])}"
    if text.startswith("Unexpected config"):
        return "--config holds no options; it must be a YAML mapping, such as training: {epochs: 3}"
    expected = None if config is None else _expected(config, ".".join(keys))
    value = _VALUE.search(text)
    if not keys or expected is None or value is None:
        return _flat(text)
    return f"--{'.'.join(keys)} is {value[1] or value[2] or ''!r}; it must be {expected}"


def with_option(text: str, options: Sequence[str]) -> str:
    """``"lr is -1; ..."`` to ``"--training.lr is -1; ..."``, where one option alone has this last name."""
    name, is_, rest = text.partition(" is ")
    candidates = [option for option in options if option.rpartition(".")[2] == name]
    return f"--{candidates[0]}{is_}{rest}" if is_ and len(candidates) == 1 else text


def cause(error: BaseException) -> LocAtError | None:
    """The ``LocAtError`` of a dataclass that refused a value, among the errors that led to this one."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, LocAtError):
            return found
        found = found.__cause__ or found.__context__
    return None


def _unknown(given: str, options: Sequence[str]) -> str:
    name = given.lstrip("-").partition("=")[0]
    if not given.startswith("-") and "." not in given:
        return f"{given!r} stands where an option should; options are --NAME VALUE, see --help"
    last = name.rpartition(".")[2]
    same = [f"--{option}" for option in options if option.rpartition(".")[2] == last]
    if same:
        return f"--{name} is no option; did you mean {', '.join(same)}?"
    near = near_matches(f"--{name}", [f"--{option}" for option in options])
    return f"--{name} is no option; {near if near.startswith('did you mean') else '--help lists them'}"


def _expected(config: type[Any], key: str) -> str | None:
    """What the field at a dotted key must be, in words; None where there is no such field."""
    hint: Any = config
    for name in key.split("."):
        parts = [hint, *typing.get_args(hint)]
        holder = next((part for part in parts if dataclasses.is_dataclass(part)), None)
        hints = {} if holder is None else typing.get_type_hints(holder)
        if name not in hints:
            return None
        hint = hints[name]
    return _words(hint)


def _words(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return f"one of {', '.join(map(str, arguments))}" if len(arguments) > 1 else str(arguments[0])
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_words(argument) for argument in arguments)
    if origin is tuple:
        plural = _PLURALS.get(arguments[0], "values")
        if arguments[-1] is ...:
            return f"a list of {plural}, such as [A, B]"
        return f"a list of {len(arguments)} {plural}, [{', '.join('ABC'[: len(arguments)])}]"
    if dataclasses.is_dataclass(hint):
        return "settings such as {name: value}"
    return _WORDS.get(origin or hint, str(hint))


def _fields(config: type[Any], prefix: str = "") -> list[str]:
    found = []
    for name, hint in typing.get_type_hints(config).items():
        found.append(prefix + name)
        for part in (hint, *typing.get_args(hint)):
            if dataclasses.is_dataclass(part) and isinstance(part, type):
                found += _fields(part, f"{prefix}{name}.")
    return found


def _flat(text: str) -> str:
    lines = [line.strip(" -") for line in text.splitlines()]
    return " ".join(line for line in lines if line)
