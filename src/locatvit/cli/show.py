"""Tables on the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from locatvit.report.tables import Table, difference_table, results_table
from locatvit.results import Result

# A file or a pipe has no width of its own; this one holds every column.
_FILE_WIDTH = 160


def show_table(table: Table, notes: Sequence[str] = ()) -> None:
    """Print a table, and below it lines that explain it."""
    console = Console()
    if not console.is_terminal:
        console.width = _FILE_WIDTH
    console.print(table.to_rich())
    for note in notes:
        console.print(Text(note))


def show_results(results: Iterable[Result]) -> None:
    """Print the table of the results, and the differences LocAt makes where twins are among them."""
    results = list(results)
    show_table(results_table(results))
    differences = difference_table(results)
    if differences is not None:
        show_table(differences)


def show_run(
    result: Result, run_dir: Path, files: str, following: str | None = None, *,
    below: tuple[Table, Sequence[str]] | None = None,
) -> None:  # fmt: skip
    """What a run prints when it has ended: its result, its files, and what comes next. The first process alone does.

    Args:
        result: the run's.
        run_dir: its folder.
        files: what is in it, in words.
        following: the command that comes next; None for a report.
        below: another table, with lines that explain it.
    """
    from locatvit.training.runtime import is_main_process

    if not is_main_process():
        return
    show_results([result])
    if below is not None:
        show_table(*below)
    print(f"in {run_dir}: {files}")
    print(f"next: {following or f'locatvit report {run_dir} OTHER_RUNS... --output report.html'}")
