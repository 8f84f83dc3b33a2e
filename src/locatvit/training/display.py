"""What long work shows on standard error: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

_SECONDS_BETWEEN_LINES = 10.0


class Bar:
    """A bar on a terminal; elsewhere a line now and then. To be entered with ``with``.

    Args:
        *columns: more of the bar, before the time that remains.
        seconds: between two lines.
        at_once: the first line is due at once, and not after ``seconds``.
        enabled: False shows nothing (all processes but the first).
        console: for tests; None for standard error.
    """

    def __init__(
        self, *columns: ProgressColumn, seconds: float = _SECONDS_BETWEEN_LINES, at_once: bool = False,
        enabled: bool = True, console: Console | None = None,
    ) -> None:  # fmt: skip
        self._console = console or Console(stderr=True)
        self._seconds, self._enabled = seconds, enabled
        self._next_line = time.monotonic() + (0 if at_once else seconds)
        self._task: TaskID | None = None
        self._bar = Progress(
            TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), *columns,
            TimeRemainingColumn(), console=self._console, disable=not (enabled and self._console.is_terminal),
        )  # fmt: skip

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.stop()

    def add(self, description: str, total: int | None, **fields: Any) -> None:
        """Add a bar below those that are there; ``move`` moves this one from now on."""
        self._task = self._bar.add_task(description, total=total, **fields)

    def move(self, done: int, line: str | None = None, *, total: int | None = None, **fields: Any) -> None:
        """Move the bar to ``done``; where there is none, print ``line`` if one is due."""
        assert self._task is not None, "add comes first"
        self._bar.update(self._task, completed=done, total=total, **fields)
        if line is not None and self.line_is_due:
            self.line(line)

    @property
    def line_is_due(self) -> bool:
        """Whether there is no bar, and the last line is long enough ago."""
        return not self._console.is_terminal and time.monotonic() >= self._next_line

    def line(self, text: str) -> None:
        """Print a line, also on a terminal."""
        self._next_line = time.monotonic() + self._seconds
        if self._enabled:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)


class Display(Bar):
    """Shows updates and metric rows of a training.

    Args:
        description: what is being done, e.g. ``"training locatvit_tiny"``.
        num_updates: updates of the run.
        enabled, console: see ``Bar``.
    """

    def __init__(
        self, description: str, num_updates: int, *, enabled: bool = True, console: Console | None = None
    ) -> None:
        now = TextColumn("{task.fields[now]}", markup=False)
        super().__init__(now, at_once=True, enabled=enabled, console=console)
        self._description, self._num_updates = description, num_updates
        self.add(description, num_updates, now="")

    def update(self, update: int, loss: float, lr: float, images_per_second: float) -> None:
        """Move the bar to ``update``."""
        self.move(update, now=f"loss {loss:.3f}  lr {lr:.2e}  {images_per_second:.0f} images/s")

    def row(self, row: dict[str, Any], *, evaluated: bool) -> None:
        """Print a metrics row as a line: each with an evaluation, of the others one every ten seconds."""
        if not (evaluated or self.line_is_due):
            return
        rest = ", ".join(f"{name} {value:.4g}" for name, value in row.items() if name not in ("update", "seconds"))
        self.line(f"{self._description}: update {row['update']}/{self._num_updates}, {rest}")
