"""What was measured as tables, in Markdown and JSON."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.attention.cases import Case, ModelCase
from benchmarks.attention.contenders import DENSE, PLAIN
from benchmarks.attention.limits import DEVICES
from benchmarks.attention.measure import Outcome
from locatvit.analysis.timing import Spread
from locatvit.report.tables import NONE, Table
from locatvit.storage import write_json, write_text

TITLES = {
    "op": "Attention alone",
    "windows": "Attention in Swin's windows",
    "prr": "PRR",
    "model": "Whole models",
}
_EXPLANATIONS = {
    "op": (
        "From queries, keys, values, variances and alpha to the output: with LocAt exponentials are evaluated, too; "
        "in `triton, factors` they are made first and the kernels read them. A model on a CPU predicts variances and "
        "alpha in the same products, which the tables of whole models show."
    ),
    "windows": "7 x 7 windows, 64 an image, with the relative positions' bias and the mask added in all of them.",
    "prr": "A classifier reads the [CLS] row of the refined tokens: that row alone, over all rows.",
    "model": "A timm model with LocAt over the same model without.",
}
_HEAD = """\
Times are those of single calls or, of models, passes: medians over turns that a contender and the first one of its case
take in the same process, one after the other; on a CPU it keeps most of what is let go (glibc, below 32 MiB a tensor),
or chance would decide who pays for page faults. Ratios are to that first one, turn by turn; "middle half": between the
quartiles. Memory is the peak above that of the {process}. Names: level, model whose sizes it has, patches
(of models: pixels), pass. `sdpa`, `flex`, `triton`, `reference`: LocAt by that backend. `{dense}`: LocAt with the bias
made in full, by a [B, H, N, N, 2] quotient, as the authors' code makes it. Outputs and gradients of all agreed with the
reference."""


def tables(outcomes: Sequence[Outcome]) -> dict[str, Table]:
    """By level."""
    by_level: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        by_level.setdefault(outcome.case.level, []).append(outcome)
    return {level: _table(group) for level, group in by_level.items()}


def targets_table(outcomes: Sequence[Outcome]) -> Table | None:
    """What LocAt may cost at most, and what it does; None where no case has a target."""
    rows = list(_target_rows(outcomes))
    return Table(("case", "backend", "over plain", "target", "measured", ""), tuple(rows), 3) if rows else None


def write(
    outcomes: Sequence[Outcome], environment: dict[str, Any], command: str, path: Path, figures: Sequence[Path]
) -> list[Path]:
    """``path`` with .md and with .json."""
    markdown, data = path.with_name(f"{path.name}.md"), path.with_name(f"{path.name}.json")
    write_text(markdown, _markdown(outcomes, environment, command, figures))
    write_json(data, {"environment": environment, "command": command, "outcomes": [_as_data(o) for o in outcomes]})
    return [markdown, data]


def _markdown(outcomes: Sequence[Outcome], environment: dict[str, Any], command: str, figures: Sequence[Path]) -> str:
    versions = environment["versions"]
    named = ", ".join(f"{name} {versions[name]}" for name in ("torch", "triton", "timm") if versions[name])
    where = f"{environment['device']} ({environment['processor']}), {environment['precision']}"
    on_cpu = environment["device"].startswith("cpu")
    process = "started process, which gives memory back as soon as it is free" if on_cpu else "device before"
    parts = [
        "# Cost of LocAt",
        f"`{command}`: {where}, {environment['date']}, commit {environment['commit']}, {named}.",
        _HEAD.format(process=process, dense=DENSE),
    ]
    if on_cpu:
        parts.append("Memory of `flex` on a CPU is not told: its compiler's would be in it, as its time is not.")
    if environment["device"] in DEVICES:
        parts.append(_limits_explained(environment["device"]))
    found = targets_table(outcomes)
    if found is not None:
        parts += ["## Targets", found.to_markdown().strip()]
    for level, table in tables(outcomes).items():
        parts += [f"## {TITLES[level]}", _EXPLANATIONS[level], table.to_markdown().strip()]
        parts += [f"![{TITLES[level]}]({figure.name})" for figure in figures if f"_{level}-" in figure.name]
    return "\n\n".join(parts) + "\n"


def _limits_explained(name: str) -> str:
    limits = DEVICES[name]
    return (
        f'"Of the limit": the least time that operations ({limits.operations / 1e12:.0f} TFLOP/s, dense bfloat16) and '
        f"bytes ({limits.bytes / 1e12:.1f} TB/s) allow, over the time taken; of models, operations alone. The formulas "
        "are in `benchmarks/attention/limits.py`."
    )


def _table(outcomes: Sequence[Outcome]) -> Table:
    has_limit = any(outcome.least_seconds is not None for outcome in outcomes)
    columns = ["case", "", "batch", "turns", "ms", "middle half", "ratio", "middle half", "MiB", "ratio"]
    rows = [_row(outcome, _base(outcome, outcomes), has_limit) for outcome in outcomes]
    return Table((*columns, *(["of the limit"] if has_limit else [])), tuple(rows), 2)


def _row(outcome: Outcome, base: Outcome, has_limit: bool) -> tuple[str, ...]:
    head = (outcome.case.name, outcome.contender, str(outcome.case.batch_size))
    if not outcome.seconds:
        return (*head, *(NONE,) * 4, outcome.why_not or NONE, *(NONE,) * (3 if has_limit else 2))
    assert outcome.ratio is not None
    time = Spread.of([1e3 * each for each in outcome.seconds])
    memory = _memory_ratio(outcome, base)
    cells = (
        *head,
        str(time.count),
        _milliseconds(time.median),
        f"{_milliseconds(time.low)} to {_milliseconds(time.high)}",
        f"{outcome.ratio.median:.3f}",
        f"{outcome.ratio.low:.3f} to {outcome.ratio.high:.3f}",
        NONE if outcome.peak_bytes is None else f"{outcome.peak_bytes / 2**20:.0f}",
        NONE if memory is None else f"{memory:.3f}",
    )
    if not has_limit:
        return cells
    least = outcome.least_seconds
    return (*cells, NONE if least is None else f"{least / statistics.median(outcome.seconds):.2f}")


def _milliseconds(number: float) -> str:
    return f"{number:,.0f}" if number >= 1000 else f"{number:#.4g}"


def _base(outcome: Outcome, outcomes: Sequence[Outcome]) -> Outcome:
    return next(each for each in outcomes if each.case == outcome.case)


def _memory_ratio(outcome: Outcome, base: Outcome) -> float | None:
    if outcome.peak_bytes is None or not base.peak_bytes:
        return None
    return outcome.peak_bytes / base.peak_bytes


def _target_rows(outcomes: Sequence[Outcome]) -> Iterator[tuple[str, ...]]:
    """Targets are for the backend that is taken by itself: the first after the plain model."""
    for base in outcomes:
        case = base.case
        if not isinstance(case, ModelCase) or base.contender != PLAIN:
            continue
        ours = next(each for each in outcomes if each.case == case and each.contender != PLAIN)
        time = ours.ratio.median if ours.ratio else None
        for what, value, target in (
            ("time", time, case.time_target),
            ("memory", _memory_ratio(ours, base), case.memory_target),
        ):
            if target is not None:
                shown = NONE if value is None else f"{value:.3f}"
                yield case.name, ours.contender, what, f"{target:.2f}", shown, _verdict(value, target)


def _verdict(ratio: float | None, target: float) -> str:
    if ratio is None:
        return "not measured"
    return "met" if ratio <= target else f"missed by {ratio - target:.3f}"


def _as_data(outcome: Outcome) -> dict[str, Any]:
    case: Case = outcome.case
    seconds = asdict(Spread.of(outcome.seconds)) if outcome.seconds else None
    return {**asdict(outcome), "seconds": seconds, "case": {"name": case.name, "level": case.level, **asdict(case)}}
