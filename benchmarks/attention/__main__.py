"""Attention with LocAt over attention without, on a CPU or a GPU: time and peak memory.

    python -m benchmarks.attention

Attention alone, attention in Swin's windows, PRR, and whole models. First every contender is compared with the
reference, output and gradients, at the sizes that are timed; nothing is timed or written if one is wrong. Then the
contenders of a case run by turns in one process, so that what else the machine does meets all alike.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.attention.cases import Case, cases, is_quick
from benchmarks.attention.measure import Outcome, measure, verify
from benchmarks.attention.plots import write_figures
from benchmarks.attention.report import TITLES, tables, targets_table, write
from benchmarks.place import RESULTS, find_device, slug, stamp
from locatvit.analysis import allocator
from locatvit.cli.show import show_table
from locatvit.errors import LocAtError, near_matches

_QUICK_SECONDS, _SECONDS = 2.0, 15.0
# FlexAttention compiles every shape; torch gives up after 8, and runs it unfused
_MOST_SHAPES = 256


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    try:
        device = find_device(options.device)
        torch.set_num_threads(options.threads)
        allocator.keep()
        torch._dynamo.config.recompile_limit = _MOST_SHAPES
        chosen = choose(cases(device.type), options.only, options.quick)
        seconds = options.seconds or (_QUICK_SECONDS if options.quick else _SECONDS)
        outcomes = run(chosen, device, seconds)
        _show(outcomes)
        print("written:", *_write(outcomes, device, _command(options, seconds), options.out / _theme(options)))
    except LocAtError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def run(chosen: Sequence[Case], device: torch.device, seconds: float) -> list[Outcome]:
    """Check all cases, then measure all.

    Raises:
        LocAtError: a result is wrong.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=2 * len(chosen))

        def report_on(case: Case, what: str) -> Callable[[str], None]:
            return lambda part: progress.update(task, description=f"{what} {case.name}: {part}")

        unable = {}
        for case in chosen:
            unable[case] = verify(case, device, report_on(case, "checking"))
            progress.advance(task)
        outcomes = []
        for case in chosen:
            found = measure(case, device, seconds, unable[case], report_on(case, "measuring"))
            outcomes += found
            line = f"{case.name}: {', '.join(map(_ratio, found[1:]))}"
            progress.console.print(line, highlight=False, markup=False, soft_wrap=True)
            progress.advance(task)
    return outcomes


def _ratio(outcome: Outcome) -> str:
    return f"{outcome.contender} {outcome.ratio.median:.3f}" if outcome.ratio else f"{outcome.contender} -"


def choose(known: Sequence[Case], only: Sequence[str] | None, quick: bool) -> list[Case]:
    """Cases by name, or by the beginning of a name up to a dash; all where none are given.

    Raises:
        LocAtError: no case has this name, or none is left.
    """
    names = [case.name for case in known]
    for name in only or ():
        if not any(_begins(each, name) for each in names):
            raise LocAtError(f"case {name!r} is unknown; {near_matches(name, [*TITLES, *names])}")
    chosen = [case for case in known if only is None or any(_begins(case.name, name) for name in only)]
    chosen = [case for case in chosen if is_quick(case) or not quick]
    if not chosen:
        raise LocAtError(f"--quick has none of {', '.join(only or ())}; leave one of --quick and --only out")
    return chosen


def _begins(name: str, beginning: str) -> bool:
    return f"{name}-".startswith(f"{beginning}-")


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.attention",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    known = ", ".join(dict.fromkeys(case.name for kind in ("cpu", "cuda") for case in cases(kind)))
    parser.add_argument("--quick", action="store_true", help="a few small cases, a couple of minutes")
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="CASE",
        help=f"a level ({', '.join(TITLES)}), the beginning of a name, or of {known}",
    )
    parser.add_argument(
        "--seconds", type=float, help=f"of timing a case (default {_SECONDS:g}, quick {_QUICK_SECONDS:g})"
    )
    parser.add_argument("--device", help="cpu, cuda, ... (default: a GPU if there is one)")
    parser.add_argument("--threads", type=int, default=2, help="of torch on a CPU; the targets are for 2 (default)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder (default benchmarks/results)")
    return parser.parse_args(arguments)


def _command(options: argparse.Namespace, seconds: float) -> str:
    """What gives these figures again, on this machine."""
    words = ["python -m benchmarks.attention", *(["--quick"] if options.quick else [])]
    words += ["--only", *options.only] if options.only else []
    return " ".join([*words, f"--seconds {seconds:g} --threads {options.threads}"])


def _theme(options: argparse.Namespace) -> str:
    """What a file's name begins with: a part of the cases must not pass for all."""
    return "-".join(["attention", *(["quick"] if options.quick else []), *(options.only or ())])


def _show(outcomes: Sequence[Outcome]) -> None:
    targets = targets_table(outcomes)
    for table in (*tables(outcomes).values(), *([targets] if targets else [])):
        show_table(table)


def _write(outcomes: Sequence[Outcome], device: torch.device, command: str, path: Path) -> list[Path]:
    environment = stamp(device, outcomes[0].case.precision)
    path = path.with_name(f"{path.name}_{slug(environment)}")
    figures = write_figures(outcomes, path)
    return [*write(outcomes, environment, command, path, figures), *figures]


if __name__ == "__main__":
    sys.exit(main())
