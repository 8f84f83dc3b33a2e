"""The one exception for mistakes that a user can mend."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LocAtError(ValueError):
    """Bad input: the message says what, which value, the rule and the remedy, in one line.

    The command line prints it without a traceback and exits with code 2.
    """


def near_matches(name: str, known: Iterable[str]) -> str:
    """``"did you mean a, b?"``, or the full list when nothing is near. For messages about unknown names."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"did you mean {', '.join(near)}?" if near else f"known: {', '.join(known)}"
