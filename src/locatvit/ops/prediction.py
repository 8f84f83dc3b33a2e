"""From queries to the numbers of their Gaussians (Eqs. 5, 9)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from locatvit.grid import GridSize
from locatvit.ops.distance import Gaussian
from locatvit.ops.fused_prediction import FusedPrediction, can_run


class Prediction(NamedTuple):
    """How the outputs of GAug's linear layers become variance and alpha.

        variance = variance_max sigmoid(x - shift) + floor      (Eq. 5)
        alpha    = softplus(x), or softplus(x) - softplus(0)    (Eq. 9)

    Attributes:
        variance_max, floor: in patches²; of a kernel whose width is in patches, in patches.
        shift: ln(M - 1) of Eq. 5.
        starts_at_zero: whether alpha is 0 where x is 0.
    """

    variance_max: float
    shift: float
    floor: float
    starts_at_zero: bool

    @classmethod
    def of(cls, numbers: Sequence[float]) -> Prediction:
        """From ``numbers()``."""
        variance_max, shift, floor, starts_at_zero = numbers
        return cls(variance_max, shift, floor, bool(starts_at_zero))

    def numbers(self) -> tuple[float, ...]:
        """As an operation takes it that is registered with torch."""
        return self.variance_max, self.shift, self.floor, float(self.starts_at_zero)

    def variance(self, variance_logits: Tensor) -> Tensor:
        """Eq. 5 and the floor, number by number."""
        variance = self.variance_max * torch.sigmoid(variance_logits - self.shift)
        return variance + self.floor if self.floor else variance

    def alpha(self, alpha_logits: Tensor) -> Tensor:
        """Eq. 9, number by number."""
        alpha = F.softplus(alpha_logits)
        # by the same function, so that the difference is 0 to the last bit
        return alpha - F.softplus(alpha_logits.new_zeros(())) if self.starts_at_zero else alpha


def predict(
    x: Float[Tensor, "B H L K"],
    weight: Float[Tensor, "O K"],
    bias: Float[Tensor, " O"],
    prediction: Prediction,
    num_widths: int,
    num_prefix_tokens: int,
) -> tuple[Float[Tensor, "B H N W"], Float[Tensor, "B H N"] | None]:
    """Variances (or widths) and alpha of the patches, in at least float32; a plane in memory for each output.

    Args:
        x: queries, or whatever the layer reads, in any precision and layout.
        weight, bias: of the linear layer. Its first outputs are variances, the last one, if there is one more, alpha.
        prediction: what follows the layer.
        num_widths: how many variances there are.
        num_prefix_tokens: tokens before the patches, which are left out.
    """
    if can_run(x, weight):
        outputs = FusedPrediction.apply(
            x, weight.float(), bias.float(), num_widths, num_prefix_tokens, prediction.numbers()
        )
        return outputs[0].mT, outputs[1] if len(weight) > num_widths else None
    dtype = torch.promote_types(x.dtype, torch.float32)
    # one copy here is cheaper than strided reading in what follows. Prefix tokens are left out of what comes out, which
    # is small, and not of what goes in
    logits = F.linear(x.to(dtype), weight.to(dtype), bias.to(dtype)).mT.contiguous()[..., num_prefix_tokens:]
    variance = prediction.variance(logits[:, :, :num_widths]).mT
    return variance, prediction.alpha(logits[:, :, num_widths]) if len(weight) > num_widths else None


@dataclass(frozen=True)
class PredictedGaussian:
    """A ``Gaussian`` that is not made yet: the queries and the weights that it is predicted from.

    An attention whose queries are these can predict it on the way, where it has read them anyway.

    Attributes:
        queries: [B, H, L, K], the prefix first, then the patches.
        weight: [3, K]: variance of rows, variance of columns, alpha.
        bias: [3].
        prediction: what follows the linear layer.
        num_prefix_tokens: tokens before the patches, which have no Gaussian.
        grid_size: (h, w) of the patches.
        distance_clamp: cap of each axis' squared distance, in patches², or None.
    """

    queries: Tensor
    weight: Tensor
    bias: Tensor
    prediction: Prediction
    num_prefix_tokens: int
    grid_size: GridSize
    distance_clamp: float | None = None

    def evaluate(self) -> Gaussian:
        """Its three numbers a patch, in at least float32."""
        with without_autocast(self.queries.device.type):
            variance, alpha = predict(self.queries, self.weight, self.bias, self.prediction, 2, self.num_prefix_tokens)
        assert alpha is not None
        return Gaussian(variance, alpha, self.grid_size, self.distance_clamp)

    def factors(self) -> tuple[Float[Tensor, "B H N h"], Float[Tensor, "B H N w"]]:
        """The two factors of the bias, alpha in the first."""
        return self.evaluate().factors()


def without_autocast(device_type: str) -> AbstractContextManager[Any]:
    """Arithmetic in the precision of what goes in; half has no room for the exponents to come."""
    # to ask is cheap, to leave autocast costs as much as three small operations; the meta device has none. Whether a
    # device has any, which torch.amp tells, cannot be asked in a compiled graph of torch 2.11
    if device_type != "meta" and torch.is_autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()
