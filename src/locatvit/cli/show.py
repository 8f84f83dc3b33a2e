"""Results on the terminal."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console

from locatvit.report.tables import difference_table, results_table
from locatvit.results import Result

# A file or a pipe has no width of its own; this one holds every column.
_FILE_WIDTH = 120


def show_results(results: Iterable[Result]) -> None:
    """Print the table of the results, and the differences LocAt makes where twins are among them."""
    results = list(results)
    console = Console()
    if not console.is_terminal:
        console.width = _FILE_WIDTH
    console.print(results_table(results).to_rich())
    differences = difference_table(results)
    if differences is not None:
        console.print(differences.to_rich())
