"""A bar for work on many images, on a terminal; plain lines now and then elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console

from locatvit.training.display import Bar


@contextmanager
def progress(description: str, console: Console | None = None) -> Iterator[Callable[[int, int], None]]:
    """Gives ``on_progress(done, total)``, which shows them on standard error.

    Args:
        description: what is being done, e.g. ``"preparing ade20k"``.
        console: for tests; None for standard error.
    """
    with Bar(console=console) as bar:
        bar.add(description, None)
        yield lambda done, total: bar.move(done, f"{description}: {done} of {total}", total=total)
