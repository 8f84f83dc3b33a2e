"""What a run of several stages shows: a bar a stage on a terminal, a line a stage elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

_SECONDS_BETWEEN_LINES = 30.0


class Stages:
    """Shows how far a run is, on standard error.

    Args:
        name: of the run.
        console: for tests; None for standard error.
    """

    def __init__(self, name: str, *, console: Console | None = None) -> None:
        self._name, self._console = name, console or Console(stderr=True)
        self._stage, self._total, self._next_line = "", 0, 0.0
        self._task: TaskID | None = None
        self._bar = Progress(
            TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
            console=self._console, disable=not self._console.is_terminal,
        )  # fmt: skip

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.stop()

    def begin(self, stage: str, total: int) -> Callable[[int], None]:
        """Begin a stage of ``total`` batches; call what is returned with how many are done."""
        self._stage, self._total = stage, total
        self._next_line = time.monotonic() + _SECONDS_BETWEEN_LINES
        self._task = self._bar.add_task(f"{self._name}: {stage}", total=total)
        return self._update

    def end(self, outcome: str) -> None:
        """Say what came of the stage."""
        self._line(f"{self._stage}: {outcome}")

    def _update(self, done: int) -> None:
        assert self._task is not None
        self._bar.update(self._task, completed=done)
        if not self._console.is_terminal and time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + _SECONDS_BETWEEN_LINES
            self._line(f"{self._stage}: {done}/{self._total} batches")

    def _line(self, text: str) -> None:
        self._console.print(f"{self._name}: {text}", markup=False, highlight=False, soft_wrap=True)
