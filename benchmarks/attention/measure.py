"""One case: who takes part, whether they are right, how long they take and how much memory they hold."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import ModuleType

import torch
from torch._inductor.exc import InductorError

from benchmarks.attention import model, op, refinement
from benchmarks.attention.cases import Case, ModelCase, OpCase, RefinementCase, WindowCase
from benchmarks.attention.limits import least_seconds
from locatvit.analysis.memory import peak_memory
from locatvit.analysis.timing import Spread, by_turns

_LEVELS: dict[type[Case], ModuleType] = {
    OpCase: op,
    WindowCase: op,
    RefinementCase: refinement,
    ModelCase: model,
}
_TOO_LARGE = "needs more memory than there is"
Report = Callable[[str], None]


@dataclass(frozen=True)
class Outcome:
    """Of one contender in one case.

    Attributes:
        seconds: of single calls, turn by turn; empty if it did not run.
        ratio: its seconds over those of the first contender, turn by turn.
        peak_bytes: the most memory held at a time; None where the device does not tell, or it makes no sense.
        least_seconds: what no call can beat on this device, or None.
        why_not: why it did not run, or None.
    """

    case: Case
    contender: str
    seconds: tuple[float, ...] = ()
    ratio: Spread | None = None
    peak_bytes: int | None = None
    least_seconds: float | None = None
    why_not: str | None = None


def contenders(case: Case, device: torch.device) -> tuple[str, ...]:
    """Who takes part; the first is what the others are compared with."""
    return _LEVELS[type(case)].contenders(case, device)


def verify(case: Case, device: torch.device, report: Report) -> dict[str, str]:
    """Check every contender of a case but the first, which the others are compared with.

    Returns:
        Those that cannot run, with the reason.

    Raises:
        LocAtError: a result is wrong.
    """
    _, *others = contenders(case, device)
    unable = dict.fromkeys(others, _TOO_LARGE)
    for name in others:
        report(name)
        with _memory_freed(device):
            try:
                _LEVELS[type(case)].verify(case, name, device)
                del unable[name]
            except InductorError as error:  # FlexAttention is compiled for each shape
                unable[name] = f"torch cannot compile it: {str(error).splitlines()[0]}"
    return unable


def measure(case: Case, device: torch.device, seconds: float, unable: dict[str, str], report: Report) -> list[Outcome]:
    """Memory of each contender by itself; then times, each by turns with the first, at least five turns.

    In pairs: what a third one leaves in caches would be in the times of the next.

    Args:
        case: what is measured.
        device: where.
        seconds: of timing for the second contender, the backend that is taken by itself; the others get a third.
        unable: those that cannot run, with the reason.
        report: is told what goes on.
    """
    base, *others = contenders(case, device)
    outcomes = {name: Outcome(case, name, why_not=unable.get(name, _TOO_LARGE)) for name in (base, *others)}
    peaks = {}
    for name in outcomes:
        if name not in unable:
            report(f"{name}, memory")
            with _memory_freed(device):
                peaks[name] = _peak(case, name, device)
    for name in others:
        if name in peaks:
            report(f"{name}, times")
            with _memory_freed(device):
                pair = _timed(case, (base, name), device, seconds if name == others[0] else seconds / 3, peaks)
                outcomes[name] = pair[1]
                if not outcomes[base].seconds:
                    outcomes[base] = pair[0]
    return list(outcomes.values())


def _timed(
    case: Case, pair: tuple[str, str], device: torch.device, seconds: float, peaks: dict[str, int | None]
) -> list[Outcome]:
    make_step = _LEVELS[type(case)].make_step
    turns = by_turns([make_step(case, name, device) for name in pair], seconds, device)
    return [
        Outcome(
            case,
            name,
            tuple(each / case.calls for each in taken),
            Spread.of([own / base for own, base in zip(taken, turns[0], strict=True)]),
            peaks[name],
            least_seconds(case, name, device),
        )
        for name, taken in zip(pair, turns, strict=True)
    ]


@contextmanager
def _memory_freed(device: torch.device) -> Iterator[None]:
    """Too little memory ends what happens inside, and nothing else."""
    with suppress(torch.OutOfMemoryError, BrokenProcessPool):
        yield
    if device.type != "cpu":
        torch.accelerator.empty_cache()


def _peak(case: Case, contender: str, device: torch.device) -> int | None:
    if contender == "flex" and device.type == "cpu":
        return None  # its compiler's memory would be in it
    return peak_memory(_LEVELS[type(case)].make_step, case, contender, device, device=device)
