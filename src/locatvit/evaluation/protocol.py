"""What a protocol is: a name, what it measures, its settings and where it is from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Protocol:
    """One entry of ``locatvit.evaluation.PROTOCOLS``.

    Attributes:
        name: as result files and the command line spell it.
        measures: the measured quantity, in a phrase.
        config: the dataclass of its settings; the defaults are the source's.
        citation: the source of the procedure.
    """

    name: str
    measures: str
    config: type[Any]
    citation: str
