"""A report as one HTML file: no script, no font, no picture from elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from locatvit.report.sections import Section
from locatvit.storage import write_text


def write_report(path: Path, *, title: str, summary: str, sections: Sequence[Section]) -> Path:
    """Write one self-contained page, whole or not at all, and return its path.

    Args:
        path: the HTML file.
        title: the heading of the page.
        summary: what the reader should know if nothing else is read; plain text.
        sections: in order; more than three get a table of contents.

    Raises:
        LocAtError: the disk is full or the folder is not writable; an older file is then as it was.
    """
    path = Path(path)
    write_text(path, render(title=title, summary=summary, sections=sections))
    return path


def render(*, title: str, summary: str, sections: Sequence[Section]) -> str:
    """The page's HTML. All text is escaped: nothing in a result is read as markup."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("locatvit.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    page = environment.get_template("report.html.j2")
    return page.render(title=title, summary=summary, sections=list(sections))
