"""How far off results may be. Nothing is reported over a wrong result."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from locatvit.errors import LocAtError

# In float32, of the largest value; in half precision it is twice what plain attention is off there.
_TOLERANCE = 1e-5


class Results(dict[str, Tensor]):
    """What is compared, by name: ``"output"``, and in training ``"gradient of ..."``."""


def errors(got: Mapping[str, Tensor], truth: Mapping[str, Tensor]) -> dict[str, float]:
    """The largest difference of each, over the largest value."""
    return {
        name: ((got[name].double() - value).abs().max() / value.abs().max()).item() for name, value in truth.items()
    }


def check(
    case: str, contender: str, got: Results, truth: Results, plain: Mapping[str, float], *, times_plain: float = 2
) -> None:
    """Raise ``LocAtError`` for the first result that is too far off.

    Args:
        case, contender: for the message.
        got: of the contender.
        truth: the same in float64.
        plain: how far plain attention is off in the contender's precision, by the same names where it has them.
        times_plain: how many times that is allowed in half precision.
    """
    precise = got["output"].dtype == torch.float32
    for name, error in errors(got, truth).items():
        allowed = _TOLERANCE if precise else times_plain * plain.get(name, max(plain.values()))
        refuse(case, contender, name, error, allowed)


def refuse(case: str, contender: str, name: str, error: float, allowed: float) -> None:
    """Raise ``LocAtError`` if ``error`` is larger than ``allowed``, or no number."""
    if not error <= allowed:
        raise LocAtError(
            f"{case}, {contender}: the {name} is off by {error:.1e}, relative to its size, more than {allowed:.1e}; "
            "no time is reported over a wrong result: run the tests of the op first"
        )
