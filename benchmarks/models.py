"""LocAt over the same plain timm model on a CPU: time of forward and of forward + backward, and peak memory.

    python -m benchmarks.models

Both models of a case run by turns in one process, so that what else the machine does meets both alike; times are
medians. Peak memory is that of a fresh process each. Outputs and gradients are compared with ``backend="reference"``
first, and nothing is written if they differ.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.cases import CASES, Case
from benchmarks.measure import make_step, times, verify
from locatvit.analysis.memory import peak_memory
from locatvit.analysis.timing import Spread
from locatvit.errors import LocAtError, near_matches
from locatvit.results import environment
from locatvit.storage import write_json, write_text

RESULTS = Path(__file__).parent / "results"


def main() -> int:
    options = _options()
    try:
        cases = _chosen(options.only)
        torch.set_num_threads(options.threads)
        rows = []
        for case in cases:
            rows.append(_measure(case, options.seconds))
            print(_line(rows[-1]), flush=True)
    except LocAtError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\nwritten:", *_write(rows, options.threads, options.out))
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.models",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--threads", type=int, default=2, help="of torch; the targets are for 2 (default)")
    parser.add_argument("--seconds", type=float, default=20, help="of timing a case (default 20)")
    parser.add_argument("--only", nargs="+", metavar="CASE", help="of " + ", ".join(c.name for c in CASES))
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder (default benchmarks/results)")
    return parser.parse_args()


def _chosen(names: list[str] | None) -> list[Case]:
    known = {case.name: case for case in CASES}
    for name in names or ():
        if name not in known:
            raise LocAtError(f"case {name!r} is unknown; {near_matches(name, known)}")
    return [known[name] for name in names or known]


def _measure(case: Case, seconds: float) -> dict[str, Any]:
    print(f"{case.name}: peak memory", file=sys.stderr, flush=True)
    peak = [peak_memory(make_step, case, kind) for kind in ("plain", "locat")]
    print(f"{case.name}: correctness, then times", file=sys.stderr, flush=True)
    verify(case)
    plain, locat = times(case, seconds)
    by_turn = Spread.of([b / a for a, b in zip(plain, locat, strict=True)])
    return {
        "case": case,
        "peak": peak,
        "plain": plain,
        "locat": locat,
        "ratio": statistics.median(locat) / statistics.median(plain),
        "spread": (by_turn.low, by_turn.high),
    }


def _verdict(ratio: float, target: float | None) -> str:
    if target is None:
        return "no target"
    if ratio <= target:
        return f"{target:.2f} met"
    return f"{target:.2f} missed by {ratio - target:.3f}"


def _line(row: dict[str, Any]) -> str:
    """One row of the table."""
    case: Case = row["case"]
    plain, locat = (1e3 * statistics.median(row[kind]) for kind in ("plain", "locat"))
    plain_mib, locat_mib = (size / 2**20 for size in row["peak"])
    return (
        f"| {case.name} | {case.batch_size} | {len(row['plain'])} | {plain:.1f} | {locat:.1f} | {row['ratio']:.3f} "
        f"| {row['spread'][0]:.3f} - {row['spread'][1]:.3f} | {_verdict(row['ratio'], case.time_target)} "
        f"| {plain_mib:.0f} | {locat_mib:.0f} | {locat_mib / plain_mib:.3f} "
        f"| {_verdict(locat_mib / plain_mib, case.memory_target)} |"
    )


_HEAD = """\
| case | images | turns | plain, ms | LocAt, ms | time ratio | quartiles by turn | target | plain, MiB | LocAt, MiB \
| memory ratio | target |
| --- | --: | --: | --: | --: | --: | --- | --- | --: | --: | --: | --- |"""


def _write(rows: list[dict[str, Any]], threads: int, folder: Path) -> tuple[Path, Path]:
    stamp = environment(f"cpu, {threads} threads") | {"processor": _processor()}
    path = folder / f"models_cpu-{threads}-threads_{stamp['date']}"
    folder.mkdir(parents=True, exist_ok=True)
    text = "\n".join(
        [
            "# Cost of LocAt, model level",
            "",
            f"`python -m benchmarks.models --threads {threads}`, float32, {stamp['processor']}, {stamp['date']}, "
            f"commit {stamp['commit']}, torch {stamp['versions']['torch']}, timm {stamp['versions']['timm']}.",
            "",
            "Times are medians of steps taken by turns; memory is the peak above that of the started process. "
            "Outputs (and in training gradients) agreed with the dense reference.",
            "",
            _HEAD,
            *map(_line, rows),
            "",
        ]
    )
    write_text(path.with_suffix(".md"), text)
    write_json(path.with_suffix(".json"), {"environment": stamp, "cases": [_as_data(row) for row in rows]})
    return path.with_suffix(".md"), path.with_suffix(".json")


def _as_data(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "case": {"name": row["case"].name, **asdict(row["case"])}}


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


if __name__ == "__main__":
    sys.exit(main())
