"""``locatvit report``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from locatvit.cli.options import make_parser, parse_arguments

_EXAMPLES = """examples:
  a table in the terminal:
    locatvit report runs/vit runs/locatvit
  one page with curves:
    locatvit report runs/* --output report.html
"""


def run(arguments: Sequence[str]) -> None:
    """Print the runs' table, or write a report."""
    parser = make_parser("report", "Put finished runs into one table or page.", _EXAMPLES)
    parser.add_argument("runs", nargs="+", type=Path, help="run folders; seeds of one experiment are averaged")
    parser.add_argument("--output", type=Path | None, default=None, help="a file to write, .md or .html")
    parsed = parse_arguments(parser, arguments)

    from locatvit.cli.show import show_results
    from locatvit.report.runs import read_runs, write_runs_report

    show_results([run.result for run in read_runs(parsed.runs)])
    if parsed.output is not None:
        print(f"written: {write_runs_report(parsed.runs, parsed.output)}")
