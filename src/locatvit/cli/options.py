"""Options from dataclasses."""

from __future__ import annotations

import re
from argparse import HelpFormatter, RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from jsonargparse import ArgumentError, ArgumentParser, DefaultHelpFormatter, Namespace

from locatvit.cli.mistakes import cause, explain, known_options, with_option
from locatvit.errors import LocAtError
from locatvit.recipes.config import ModelConfig

Config = TypeVar("Config")


class _Formatter(DefaultHelpFormatter, RawDescriptionHelpFormatter):
    """Defaults in the help, and examples as they are written."""


class _Parser(ArgumentParser):
    """Help without the names of Python's classes."""

    def format_help(self, formatter: HelpFormatter | None = None) -> str:
        """The help's text."""
        return re.sub(r"<class\s+'Path'>", "path", super().format_help(formatter))


def make_parser(verb: str, description: str, epilog: str = "") -> ArgumentParser:
    """A parser for one verb, to be used through ``parse``. It reads YAML by ``--config``.

    Args:
        verb: its name.
        description: one sentence.
        epilog: examples.
    """
    parser = _Parser(
        prog=f"locatvit {verb}",
        usage=f"locatvit {verb} [options]",
        description=description,
        epilog=epilog,
        exit_on_error=False,
        allow_abbrev=False,
        formatter_class=_Formatter,
    )
    parser.add_argument("--config", action="config", help="YAML file with any of the options below, nested")
    return parser


def read_options(
    arguments: Sequence[str], config: type[Config], verb: str, description: str, epilog: str, *,
    resume: str | None = None,
) -> tuple[Config, Any]:  # fmt: skip
    """As ``parse``, for a verb whose options are those of a dataclass, and ``--resume`` where it goes on.

    Args:
        arguments: the verb's.
        config: the dataclass.
        verb, description, epilog: see ``make_parser``.
        resume: help of ``--resume``; None for a verb without it.

    Raises:
        LocAtError: see ``parse``.
    """
    parser = make_parser(verb, description, epilog)
    parser.add_class_arguments(config, None)
    if resume is not None:
        parser.add_argument("--resume", type=str, default="auto", help=resume)
    return parse(parser, arguments, config)


def parse(parser: ArgumentParser, arguments: Sequence[str], config: type[Config]) -> tuple[Config, Any]:
    """The dataclass that the arguments describe, and all that was parsed.

    Raises:
        LocAtError: an unknown option or a value that it does not take.
    """
    built = parse_arguments(parser, arguments, config)
    fields = {name: built[name] for name in config.__dataclass_fields__}  # type: ignore[attr-defined]
    return config(**fields), built


def refuse_two_models(run_dir: Path, given: ModelConfig) -> None:
    """Raise ``LocAtError`` where a model is described beside ``--run``, which brings its own."""
    if given != ModelConfig():
        raise LocAtError(f"--run is {run_dir}, which brings its model, and --model is given too; give one of them")


def parse_arguments(parser: ArgumentParser, arguments: Sequence[str], config: type[Any] | None = None) -> Namespace:
    """All that was parsed, dataclasses made of their options; ``config`` is what messages know types from.

    Raises:
        LocAtError: an unknown option or a value that it does not take.
    """
    options = known_options(config, parser.get_defaults().keys())
    try:
        return parser.instantiate(parser.parse_args(list(arguments)))
    except (ArgumentError, ValueError) as error:
        ours = cause(error)
        text = explain(str(error), config, options) if ours is None else with_option(str(ours), options)
        raise LocAtError(text) from error
