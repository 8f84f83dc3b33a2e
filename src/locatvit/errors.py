"""The one exception for mistakes that a user can mend."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_MOST_SHOWN = 20


class LocAtError(ValueError):
    """Bad input: the message says what, which value, the rule and the remedy, in one line.

    The command line prints it without a traceback and exits with code 2.
    """


def near_matches(name: str, known: Iterable[str]) -> str:
    """``"did you mean a, b?"``, or the list (its first 20) when nothing is near: for unknown names."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if near:
        return f"did you mean {', '.join(near)}?"
    shown = ", ".join(known[:_MOST_SHOWN])
    more = len(known) - _MOST_SHOWN
    return f"known: {shown}" + (f" and {more} more" if more > 0 else "")
