"""What a report is made of: sections of words, tables, pictures and commands, before any markup."""

from __future__ import annotations

import base64
import json
import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from html import escape
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from locatvit.errors import LocAtError
from locatvit.report.aggregate import by_task, flatten, titles
from locatvit.report.tables import MARKDOWN_ESCAPES, Table
from locatvit.results import Result

_PNG = b"\x89PNG\r\n\x1a\n"
# pictures hold two pixels a CSS pixel
_DENSITY = 2
_PLACE = re.compile(r"(?:file://|(?<![^\s=,;'\"(\[{]))(?:~|[A-Za-z]:)?[/\\][^\s,;'\")\]}]+")


@dataclass(frozen=True)
class Picture:
    """A PNG image (``figures.to_png_bytes``) with words for those who see it and those who do not.

    Attributes:
        png: the file's bytes.
        alt: what the picture shows, for a reader who cannot see it; never empty.
        caption: what to notice, set below it.
    """

    png: bytes
    alt: str
    caption: str = ""

    def __post_init__(self) -> None:
        if not self.png.startswith(_PNG):
            raise LocAtError(f"a picture starts with {self.png[:8]!r}; it must be a PNG file, see figures.to_png_bytes")
        if not self.alt.strip():
            raise LocAtError("a picture's alt text is empty; say in a sentence what it shows")

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in CSS pixels."""
        width, height = struct.unpack(">II", self.png[16:24])
        return height // _DENSITY, width // _DENSITY

    @property
    def uri(self) -> str:
        return "data:image/png;base64," + base64.b64encode(self.png).decode("ascii")


@dataclass(frozen=True)
class Section:
    """One headed part of a report. What is empty is left out; the order is that of the attributes.

    Attributes:
        title: the heading.
        paragraphs: plain text, no markup.
        tables: as ``tables`` makes them.
        pictures: as ``figures`` draws them; a Markdown report has their captions only.
        facts: (term, value) pairs.
        code: commands to copy, one a line.
        details: (summary, text) pairs that open on a click.
    """

    title: str
    paragraphs: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    pictures: tuple[Picture, ...] = ()
    facts: tuple[tuple[str, str], ...] = ()
    code: str = ""
    details: tuple[tuple[str, str], ...] = ()

    def to_markdown(self) -> str:
        """The section under a second-level heading."""
        blocks = [f"## {_escape(self.title)}", *map(_escape, self.paragraphs)]
        blocks += [table.to_markdown().rstrip() for table in self.tables]
        blocks += [f"*{_escape(picture.caption or picture.alt)}*" for picture in self.pictures]
        blocks += ["\n".join(f"- **{_escape(term)}:** {_escape(value)}" for term, value in self.facts)]
        blocks += [_fenced(self.code)] if self.code else []
        blocks += [
            f"<details><summary>{escape(summary)}</summary>\n\n{_fenced(text)}\n\n</details>"
            for summary, text in self.details
        ]
        return "\n\n".join(block for block in blocks if block) + "\n"


def provenance_section(results: Iterable[Result], command: str = "") -> Section:
    """ "How this was made": date, commit, device, versions, time and configuration of every result.

    Folders outside the run are cut to their last name: a report tells nothing about the machine's disk.

    Args:
        results: the results that the report shows.
        command: the command line that made the report or the runs, if there is one.
    """
    results = list(results)
    made = [result.environment for result in results]
    versions = [flatten(environment.get("versions") or {}) for environment in made]
    seconds = [result.seconds for result in results if result.seconds is not None]
    facts = {
        "Command": portable(command),
        "Date": _each(environment.get("date") for environment in made),
        "Device": _each(environment.get("device") for environment in made),
        "Commit": _each(environment.get("commit") for environment in made),
        "Versions": _each(f"{name} {number}" for found in versions for name, number in found.items() if number),
        "Time": f"{_duration(sum(seconds))} for {len(seconds)} run{'s' * (len(seconds) != 1)}" if seconds else "",
    }
    return Section(
        title="How this was made",
        facts=tuple((term, value) for term, value in facts.items() if value),
        details=tuple(_configurations(results)),
    )


def portable(text: str) -> str:
    """``text`` with every absolute path cut to its last name."""
    if "\n" not in text and (PurePosixPath(text).is_absolute() or PureWindowsPath(text).is_absolute()):
        return _last_name(text)
    return _PLACE.sub(lambda found: _last_name(found.group()), text)


def _last_name(path: str) -> str:
    return PureWindowsPath(path).name or "..."


def _configurations(results: Iterable[Result]) -> Iterable[tuple[str, str]]:
    """A heading and ``key: value`` lines for each experiment that knows its configuration."""
    for (task, data), groups in by_task(results).items():
        for title, group in zip(titles(groups), groups, strict=True):
            configs = [flatten(result.config) for result in group.results]
            keys = dict.fromkeys(key for config in configs for key in config)
            values = {key: dict.fromkeys(_plain(config.get(key)) for config in configs) for key in keys}
            if keys:
                count = f"{len(configs)} run{'s' * (len(configs) != 1)}"
                lines = [f"{key}: {' | '.join(values[key])}" for key in keys]
                yield f"Configuration of {title}, {task} on {data} ({count})", "\n".join(lines)


def _plain(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_plain, value)) + "]"
    return portable(value) if isinstance(value, str) else json.dumps(value, default=str)


def _each(values: Iterable[Any]) -> str:
    """The different values, in order of first appearance."""
    return ", ".join(dict.fromkeys(portable(str(value)) for value in values if value is not None))


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = ((hours, "h"), (minutes, "min"), (rest, "s"))
    return " ".join(f"{count} {unit}" for count, unit in parts if count) or "0 s"


def _escape(text: str) -> str:
    return text.translate(MARKDOWN_ESCAPES)


def _fenced(text: str) -> str:
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}\n{text.strip()}\n{fence}"
