"""What was measured of one contender."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.dense.cases import Case
from locatvit.analysis.timing import Spread

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Outcome:
    """Of one contender in one case.

    Attributes:
        seconds: of single calls; empty if it did not run.
        units_a_call: images or queries that a call deals with.
        units: of the whole set.
        why_not: why it did not run, or None.
    """

    case: Case
    contender: str
    seconds: tuple[float, ...]
    units_a_call: int
    units: int
    why_not: str | None = None

    @property
    def measured(self) -> int:
        """Images or queries that were dealt with."""
        return len(self.seconds) * self.units_a_call

    @property
    def is_whole(self) -> bool:
        """Whether every image or query of the set was dealt with."""
        return self.measured >= self.units

    @property
    def spread(self) -> Spread:
        """Seconds of single calls."""
        return Spread.of(self.seconds) if len(self.seconds) > 1 else Spread(*self.seconds * 3, count=1)
