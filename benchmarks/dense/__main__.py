"""What dense evaluation costs beside the backbone: mIoU of a set, and nearest neighbours in a memory.

    python -m benchmarks.dense

Each contender's result is checked first; nothing is timed or written if one is wrong. On a CPU of two cores it takes
less than ten minutes: there, a part of the queries is searched, and the report says which.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from benchmarks.dense import miou, search
from benchmarks.dense.cases import Case, MiouCase, cases
from benchmarks.dense.outcome import Outcome
from benchmarks.dense.report import TITLES, tables, write
from benchmarks.place import RESULTS, find_device, slug, stamp
from locatvit.cli.show import show_table
from locatvit.errors import LocAtError

_SECONDS = 60.0


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    try:
        device = find_device(options.device)
        torch.set_num_threads(options.threads)
        torch.backends.cuda.matmul.allow_tf32 = False
        chosen = [case for case in cases(device.type, options.quick) if case.level in options.only]
        outcomes = run(chosen, device, options.seconds)
        for table in tables(outcomes).values():
            show_table(table)
        print("written:", *_write(outcomes, device, options))
    except LocAtError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def run(chosen: Sequence[Case], device: torch.device, seconds: float) -> list[Outcome]:
    """Check and measure all cases.

    Raises:
        LocAtError: a result is wrong.
    """
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    outcomes: list[Outcome] = []
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=None)

        def report(what: str) -> None:
            progress.update(task, description=what)

        for case in chosen:
            is_miou = isinstance(case, MiouCase)
            outcomes += miou.measure(case, seconds, report) if is_miou else search.measure(case, device, report)
    return outcomes


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.dense", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="small cases, less than a minute")
    parser.add_argument("--only", nargs="+", choices=TITLES, default=list(TITLES), help="a level (default: all)")
    parser.add_argument(
        "--seconds", type=float, default=_SECONDS, help=f"of counting, for each contender (default {_SECONDS:g})"
    )
    parser.add_argument(
        "--device", help="cpu, cuda, ... (default: a GPU if there is one); pixels are counted on the CPU"
    )
    parser.add_argument("--threads", type=int, default=2, help="of torch and faiss on a CPU (default 2)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder (default benchmarks/results)")
    return parser.parse_args(arguments)


def _write(outcomes: Sequence[Outcome], device: torch.device, options: argparse.Namespace) -> list[Path]:
    environment = stamp(device, "float32")
    if any(outcome.contender == search.FAISS for outcome in outcomes):
        environment["versions"]["faiss"] = metadata.version("faiss-cpu")
    part = [] if len(options.only) == len(TITLES) else options.only
    theme = "-".join(["dense", *(["quick"] if options.quick else []), *part])
    words = [
        "python -m benchmarks.dense",
        *(["--quick"] if options.quick else []),
        *(["--only", *part] if part else []),
    ]
    command = " ".join([*words, f"--seconds {options.seconds:g} --threads {options.threads}"])
    return write(outcomes, environment, command, options.out / f"{theme}_{slug(environment)}")


if __name__ == "__main__":
    sys.exit(main())
