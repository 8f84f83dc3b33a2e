"""What was measured as tables, in Markdown and JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.dense.cases import MiouCase, SearchCase
from benchmarks.dense.outcome import Outcome
from locatvit.report.tables import NONE, Table
from locatvit.storage import write_json, write_text

TITLES = {"miou": "mIoU of a set", "search": "Nearest neighbours"}
_HEAD = """\
All contenders gave the same result before any was timed: the mIoU to 1e-6 of a count by sets, scores to 2e-6 of
float64. They then ran by turns in one process. `whole set` is the measured time of all images or queries; where
only a part was measured it stays empty, and the rate is that of the part: nothing is extrapolated. Ratios are of
rates, to the first contender."""


def tables(outcomes: Sequence[Outcome]) -> dict[str, Table]:
    """By level."""
    by_level: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        by_level.setdefault(outcome.case.level, []).append(outcome)
    return {level: _table(level, group) for level, group in by_level.items()}


def write(outcomes: Sequence[Outcome], environment: dict[str, Any], command: str, path: Path) -> list[Path]:
    """``path`` with .md and with .json."""
    markdown, data = path.with_name(f"{path.name}.md"), path.with_name(f"{path.name}.json")
    versions = environment["versions"]
    named = ", ".join(
        f"{name} {versions[name]}" for name in ("torch", "torchmetrics", "faiss", "numpy") if versions.get(name)
    )
    where = f"{environment['device']} ({environment['processor']}), {environment['precision']}"
    parts = [
        "# Speed of dense evaluation",
        f"`{command}`: {where}, {environment['date']}, commit {environment['commit']}, {named}.",
        _HEAD,
    ]
    for level, table in tables(outcomes).items():
        cases = dict.fromkeys(outcome.case for outcome in outcomes if outcome.case.level == level)
        parts += [f"## {TITLES[level]}", *map(_explained, cases), table.to_markdown().strip()]
    write_text(markdown, "\n\n".join(parts) + "\n")
    write_json(data, {"environment": environment, "command": command, "outcomes": [_as_data(o) for o in outcomes]})
    return [markdown, data]


def _explained(case: MiouCase | SearchCase) -> str:
    if isinstance(case, MiouCase):
        height, width = case.image_size
        return (
            f"`{case.name}`: {case.num_images:,} predictions of {height} x {width} pixels, {case.num_classes} classes, "
            "one `update` an image, counted on the CPU. A run on a CPU sets torch's deterministic algorithms, under "
            "which torchmetrics counts in another way, and needs the memory that is told."
        )
    measured = min(case.measured_queries, case.num_queries)
    part = f"; {measured:,} of them measured" if measured < case.num_queries else ""
    return (
        f"`{case.name}`: {case.num_images:,} x {case.patches} queries in a memory of {case.num_rows:,} x {case.width}, "
        f"k = {case.neighbours}, {case.queries_a_turn:,} queries a call{part}."
    )


def _table(level: str, outcomes: Sequence[Outcome]) -> Table:
    unit = "image" if level == "miou" else "query"
    columns = ("case", "", f"{'images' if level == 'miou' else 'queries'} measured", "whole set (s)")
    columns += (f"ms / {unit}", "middle half", "times slower")
    return Table(columns, tuple(_row(outcome, _base(outcome, outcomes)) for outcome in outcomes), 2)


def _row(outcome: Outcome, base: Outcome) -> tuple[str, ...]:
    head = (outcome.case.name, outcome.contender)
    if not outcome.seconds:
        return (*head, "0", outcome.why_not or NONE, NONE, NONE, NONE)
    spread, scale = outcome.spread, 1e3 / outcome.units_a_call
    mean, mean_of_base = (sum(each.seconds) / each.measured for each in (outcome, base))
    return (
        *head,
        f"{outcome.measured:,} of {outcome.units:,}",
        f"{sum(outcome.seconds):.1f}" if outcome.is_whole else NONE,
        f"{1e3 * mean:#.3g}",
        f"{scale * spread.low:#.3g} to {scale * spread.high:#.3g}",
        f"{mean / mean_of_base:.2f}",
    )


def _base(outcome: Outcome, outcomes: Sequence[Outcome]) -> Outcome:
    return next(each for each in outcomes if each.case == outcome.case)


def _as_data(outcome: Outcome) -> dict[str, Any]:
    return {
        "case": {"level": outcome.case.level, **asdict(outcome.case)},
        "contender": outcome.contender,
        "measured": outcome.measured,
        "units": outcome.units,
        "total_seconds": sum(outcome.seconds) if outcome.seconds else None,
        "seconds_a_call": asdict(outcome.spread) if outcome.seconds else None,
        "units_a_call": outcome.units_a_call,
        "why_not": outcome.why_not,
    }
