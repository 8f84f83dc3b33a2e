"""What LocAt puts into a model, as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from locatvit.errors import LocAtError


@dataclass(frozen=True)
class LocAtConfig:
    """How ``add_locat`` changes a model. The defaults are the authors': their weights give their numbers.

    Attributes:
        gaug: add the Gaussian bias to the attention logits (Eqs. 4-10).
        prr: refine the tokens before the head (Eq. 11).
        start: ``"paper"`` starts as the authors do (alpha = ln 2, variance = 1); ``"identity"`` leaves the
            model's output as it was: alpha and PRR's share start at zero and grow by training.
        layers: indices of the blocks that get GAug, None for all.
        variance_floor: added to the variance, in patches². ``"auto"`` is the authors' rule: 0.1, doubled
            until the exponent of the furthest patch fits float16. 0 gives Eq. 8 as printed.
        distance_clamp: cap squared distances at the longest one of the trained grid, as the authors do. It
            acts on grids larger than the trained one only. False gives Eq. 8 as printed.
        variance_scaling: how the variance follows another grid than the trained one: ``"linear"`` multiplies
            by the ratio of the shorter sides (the authors' rule), ``"area"`` by its square, which covers the
            same part of the image, ``"none"`` leaves it.
        backend: a name of ``locatvit.ops.BACKENDS``, or ``"auto"`` for the first that can run.
    """

    gaug: bool = True
    prr: bool = True
    start: Literal["paper", "identity"] = "paper"
    layers: tuple[int, ...] | None = None
    variance_floor: float | Literal["auto"] = "auto"
    distance_clamp: bool = True
    variance_scaling: Literal["linear", "area", "none"] = "linear"
    backend: str = "auto"

    def __post_init__(self) -> None:
        _check_choice("start", self.start, ("paper", "identity"))
        _check_choice("variance_scaling", self.variance_scaling, ("linear", "area", "none"))
        if self.variance_floor != "auto" and not 0 <= self.variance_floor < float("inf"):
            raise LocAtError(f"variance_floor is {self.variance_floor}; it must be 'auto' or a number >= 0 (patches²)")
        if self.layers is not None:
            # a YAML file or a JSON one gives a list
            object.__setattr__(self, "layers", tuple(self.layers))


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise LocAtError(f"{name} is {value!r}; it must be one of {', '.join(choices)}")
