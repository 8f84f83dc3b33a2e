"""Options from dataclasses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from jsonargparse import ArgumentError, ArgumentParser

from locatvit.errors import LocAtError

Config = TypeVar("Config")


def make_parser(verb: str, description: str, epilog: str = "") -> ArgumentParser:
    """A parser that raises ``LocAtError`` where the arguments are wrong, and reads YAML by ``--config``."""
    from argparse import RawDescriptionHelpFormatter

    from jsonargparse import DefaultHelpFormatter

    class Formatter(DefaultHelpFormatter, RawDescriptionHelpFormatter):
        """Defaults in the help, and examples as they are written."""

    parser = ArgumentParser(
        prog=f"locatvit {verb}",
        description=description,
        epilog=epilog,
        exit_on_error=False,
        formatter_class=Formatter,
    )
    parser.add_argument("--config", action="config", help="YAML file with any of the options below, nested")
    return parser


def parse(parser: ArgumentParser, arguments: Sequence[str], config: type[Config]) -> tuple[Config, Any]:
    """The dataclass that the arguments describe, and all that was parsed.

    Raises:
        LocAtError: an unknown option or a value of the wrong type.
    """
    try:
        parsed = parser.parse_args(list(arguments))
        built = parser.instantiate(parsed)
    except ArgumentError as error:
        raise LocAtError(_one_line(error)) from error
    fields = {name: built[name] for name in config.__dataclass_fields__}  # type: ignore[attr-defined]
    return config(**fields), built


def _one_line(error: ArgumentError) -> str:
    # a dataclass that refuses a value is quoted within jsonargparse's own, longer words
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, LocAtError):
            return str(cause)
        cause = cause.__cause__ or cause.__context__
    lines = [line.strip(" -") for line in str(error).splitlines()]
    return " ".join(line for line in lines if line)
