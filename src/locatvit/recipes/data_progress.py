"""A bar for work on many images, on a terminal; plain lines now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_SECONDS_BETWEEN_LINES = 10.0


@contextmanager
def progress(description: str, console: Console | None = None) -> Iterator[Callable[[int, int], None]]:
    """Gives ``on_progress(done, total)``, which shows them on standard error.

    Args:
        description: what is being done, e.g. ``"preparing ade20k"``.
        console: for tests; None for standard error.
    """
    console = console or Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    task = bar.add_task(description, total=None)
    next_line = time.monotonic() + _SECONDS_BETWEEN_LINES

    def on_progress(done: int, total: int) -> None:
        nonlocal next_line
        bar.update(task, completed=done, total=total)
        if not console.is_terminal and time.monotonic() >= next_line:
            next_line = time.monotonic() + _SECONDS_BETWEEN_LINES
            console.print(f"{description}: {done} of {total}", markup=False, highlight=False, soft_wrap=True)

    with bar:
        yield on_progress
