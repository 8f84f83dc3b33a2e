"""What a run shows while it trains: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_SECONDS_BETWEEN_LINES = 10.0


class Display:
    """Shows updates and metric rows on standard error.

    Args:
        description: what is being done, e.g. ``"training locatvit_tiny"``.
        num_updates: updates of the run.
        enabled: False shows nothing (all processes but the first).
        console: for tests; None for standard error.
    """

    def __init__(
        self, description: str, num_updates: int, *, enabled: bool = True, console: Console | None = None
    ) -> None:
        self._console = console or Console(stderr=True)
        self._description, self._num_updates, self._enabled = description, num_updates, enabled
        self._next_line = 0.0
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[now]}", markup=False),
            TimeRemainingColumn(),
            console=self._console,
            disable=not (enabled and self._console.is_terminal),
        )
        self._task = self._bar.add_task(description, total=num_updates, now="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.stop()

    def update(self, update: int, loss: float, lr: float, images_per_second: float) -> None:
        """Move the bar to ``update``."""
        now = f"loss {loss:.3f}  lr {lr:.2e}  {images_per_second:.0f} images/s"
        self._bar.update(self._task, completed=update, now=now)

    def row(self, row: dict[str, Any], *, evaluated: bool) -> None:
        """Print a metrics row as a line: each with an evaluation, of the others one every ten seconds."""
        due = evaluated or (not self._console.is_terminal and time.monotonic() >= self._next_line)
        if not (self._enabled and due):
            return
        self._next_line = time.monotonic() + _SECONDS_BETWEEN_LINES
        rest = ", ".join(f"{name} {value:.4g}" for name, value in row.items() if name not in ("update", "seconds"))
        line = f"{self._description}: update {row['update']}/{self._num_updates}, {rest}"
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)
