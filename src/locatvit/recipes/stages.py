"""What a run of several stages shows: a bar a stage on a terminal, a line a stage elsewhere."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console

from locatvit.training.display import Bar

_SECONDS_BETWEEN_LINES = 30.0


class Stages(Bar):
    """Shows how far a run is.

    Args:
        name: of the run.
        console: see ``Bar``.
    """

    def __init__(self, name: str, *, console: Console | None = None) -> None:
        super().__init__(seconds=_SECONDS_BETWEEN_LINES, console=console)
        self._name = self._stage = name

    def begin(self, stage: str, total: int) -> Callable[[int], None]:
        """Begin a stage of ``total`` batches; call what is returned with how many are done."""
        title = self._stage = f"{self._name}: {stage}"
        self.add(title, total)
        return lambda done: self.move(done, f"{title}: {done}/{total} batches")

    def end(self, outcome: str) -> None:
        """Say what came of the stage."""
        self.line(f"{self._stage}: {outcome}")
