"""What LocAt puts into a model, as data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from locatvit.errors import LocAtError

Kernel = Literal["gaussian", "laplace", "inverse_distance"]
VarianceSource = Literal["query", "input", "isotropic"]
AlphaSource = Literal["learned", "none", "auto"]


_OF_THE_BIAS = {"kernel": "gaussian", "variance": "query", "alpha": "learned", "layers": None}
"""Fields that mean nothing without GAug, and their defaults."""


@dataclass(frozen=True)
class LocAtConfig:
    """How ``add_locat`` changes a model. The defaults are the authors': their weights give their numbers.

    Attributes:
        gaug: add the locality bias to the attention logits (Eqs. 4-10).
        prr: refine the tokens before the head (Eq. 11).
        kernel: how the bias falls with the distance: ``"gaussian"`` (Eq. 8), ``"laplace"`` (Eq. 20) or
            ``"inverse_distance"`` (Eq. 21). The last two do not separate into rows and columns: they make an N x N
            bias, and have one width a patch, in patches, in the place of the variances.
        variance: where the width comes from: ``"query"`` (Eq. 5); ``"input"``, the attention module's input, with
            weights for each head (Table 7, "Gaussian from x"); ``"isotropic"``, one for both axes (Eq. 12); or a
            number, the same for all patches: a variance in patches², for the other kernels a width in patches.
        alpha: how strong the bias is: ``"learned"`` from the query (Eq. 9), ``"none"`` for alpha = 1, ``"auto"`` for
            the mean size of the logits, without parameters (Eqs. 13-19).
        start: ``"paper"`` starts as the authors do (alpha = ln 2, variance = 1); ``"identity"`` leaves the
            model's output as it was: alpha and PRR's share start at zero and grow by training.
        layers: indices of the blocks that get GAug, counted through the stages; None for all.
        pooling: ``"host"`` keeps what the head reads; ``"avg"`` gives it the mean of the patch tokens, in the place
            of [CLS] and PRR (Table 5, "GAP").
        position_embedding: False removes the host's absolute position embedding (Table 5, "- PE").
        variance_floor: added to a predicted variance, in patches². ``"auto"`` is the authors' rule: 0.1, doubled
            until the exponent of the furthest patch fits float16. 0 gives Eq. 8 as printed.
        distance_clamp: cap squared distances at the longest one of the trained grid, as the authors do. It
            acts on grids larger than the trained one only. False gives Eq. 8 as printed.
        variance_scaling: how the variance follows another grid than the trained one: ``"linear"`` multiplies
            by the ratio of the shorter sides (the authors' rule), ``"area"`` by its square, which covers the
            same part of the image, ``"none"`` leaves it. Of Swin the grid is the window, which only
            ``set_input_size`` and images smaller than a window change. A width in patches is multiplied by the
            ratio by both.
        backend: a name of ``locatvit.ops.BACKENDS``, or ``"auto"`` for the first that can run.

    Raises:
        LocAtError: a value outside its range, or values that make no sense together.
    """

    gaug: bool = True
    prr: bool = True
    kernel: Kernel = "gaussian"
    variance: VarianceSource | float = "query"
    alpha: AlphaSource = "learned"
    start: Literal["paper", "identity"] = "paper"
    layers: tuple[int, ...] | None = None
    pooling: Literal["host", "avg"] = "host"
    position_embedding: bool = True
    variance_floor: float | Literal["auto"] = "auto"
    distance_clamp: bool = True
    variance_scaling: Literal["linear", "area", "none"] = "linear"
    backend: str = "auto"

    def __post_init__(self) -> None:
        for name in ("gaug", "prr", "position_embedding", "distance_clamp"):
            if not isinstance(getattr(self, name), bool):
                raise LocAtError(f"{name} is {getattr(self, name)!r}; it must be True or False")
        _check_choice("kernel", self.kernel, get_args(Kernel))
        _check_choice("alpha", self.alpha, get_args(AlphaSource))
        _check_choice("start", self.start, ("paper", "identity"))
        _check_choice("pooling", self.pooling, ("host", "avg"))
        _check_choice("variance_scaling", self.variance_scaling, ("linear", "area", "none"))
        if isinstance(self.variance, str):
            _check_choice("variance", self.variance, (*get_args(VarianceSource), "a number"))
        elif not (_is_number(self.variance) and 0 < self.variance < math.inf):
            raise LocAtError(f"variance is {self.variance!r}; a fixed one must be a number > 0 (patches²)")
        floor = self.variance_floor
        if floor != "auto" and not (_is_number(floor) and 0 <= floor < math.inf):
            raise LocAtError(f"variance_floor is {floor!r}; it must be 'auto' or a number >= 0 (patches²)")
        if self.layers is not None:
            if not isinstance(self.layers, list | tuple) or not all(type(layer) is int for layer in self.layers):
                raise LocAtError(f"layers is {self.layers!r}; it must be None or the numbers of blocks, e.g. (0, 1)")
            # a YAML file or a JSON one gives a list
            object.__setattr__(self, "layers", tuple(self.layers))
        self._check_combinations()

    def _check_combinations(self) -> None:
        if not self.gaug:
            for name, default in _OF_THE_BIAS.items():
                if getattr(self, name) != default:
                    raise LocAtError(
                        f"{name} is {getattr(self, name)!r} but gaug is False, so there is no bias for it to shape: "
                        f"set gaug to True, or leave {name} at {default!r}"
                    )
        if self.layers == ():
            raise LocAtError("layers is empty; give block indices, None for all blocks, or set gaug to False")
        if self.kernel != "gaussian" and self.variance == "isotropic":
            raise LocAtError(
                f"variance is 'isotropic' but the {self.kernel} kernel has one width for both axes as it is: "
                "leave variance at 'query'"
            )
        if self.gaug and self.start == "identity" and self.alpha != "learned":
            raise LocAtError(
                f"start is 'identity' but alpha is {self.alpha!r}, which cannot begin at zero: "
                "use alpha='learned' or start='paper'"
            )
        if self.pooling == "avg" and self.prr:
            raise LocAtError("pooling is 'avg' and prr is True; the average takes PRR's place: set prr to False")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise LocAtError(f"{name} is {value!r}; it must be one of {', '.join(choices)}")
