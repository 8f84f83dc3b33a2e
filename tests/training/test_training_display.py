"""What long work shows: a bar on a terminal, and lines that are far enough apart elsewhere."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from locatvit.training.display import Bar


def shown(terminal: bool = False, **options: Any) -> str:
    written = io.StringIO()
    with Bar(console=Console(file=written, force_terminal=terminal, width=100), **options) as bar:
        bar.add("counting [b]sheep[/b]", 3)
        for done in range(1, 4):
            bar.move(done, f"{done} [/] of 3")
        bar.line("they sleep")
    return written.getvalue()


def test_lines_are_apart_where_there_is_no_terminal() -> None:
    assert shown(seconds=0) == "1 [/] of 3\n2 [/] of 3\n3 [/] of 3\nthey sleep\n"
    assert shown(seconds=1000) == "they sleep\n"
    assert shown(seconds=1000, at_once=True) == "1 [/] of 3\nthey sleep\n"


def test_a_terminal_has_a_bar_in_the_place_of_lines() -> None:
    text = shown(terminal=True, seconds=0)
    assert "counting [b]sheep[/b]" in text
    assert "3/3" in text
    assert "they sleep" in text
    assert "[/] of 3" not in text


def test_one_that_is_off_shows_nothing() -> None:
    assert shown(enabled=False, seconds=0) == shown(terminal=True, enabled=False, seconds=0) == ""
