"""GAug: a learned, per-query Gaussian bias, from the query to its two factors (Eqs. 5, 8, 9)."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from locatvit.config import LocAtConfig
from locatvit.grid import GridSize
from locatvit.ops.distance import gaussian_factors

# The exponent -1/2 D / variance of the furthest patch must fit float16 (details of the authors' code, section 1).
_FLOAT16_EXPONENT = 32_500.0
_FLOAT16_HALF_DISTANCE = 6_550.0


class GAug(nn.Module):
    """Predicts variance and alpha from a query, shared by the heads of a layer.

        variance = f(q W_σ + b_σ),  f(x) = M sigmoid(x - ln(M - 1)),  M = max(h, w)²      (Eq. 5)
        alpha    = softplus(q W_α + b_α)                                                  (Eq. 9)

    Args:
        head_dim: K, the width of a query.
        trained_grid: the grid that the model is built for. It sets M, the variance floor and the distance clamp,
            and they stay what they are when the model later sees other grids.
        config: see ``LocAtConfig``.
    """

    def __init__(self, head_dim: int, trained_grid: GridSize, config: LocAtConfig) -> None:
        super().__init__()
        # The authors' names, so that checkpoints load in both directions; neither is a logarithm.
        self.log_var = nn.Linear(head_dim, 2)
        self.log_alpha = nn.Linear(head_dim, 1)
        self.trained_grid = tuple(trained_grid)
        self.variance_max = float(max(trained_grid) ** 2)
        self.variance_floor = (
            default_variance_floor(trained_grid) if config.variance_floor == "auto" else float(config.variance_floor)
        )
        self.distance_clamp = default_distance_clamp(trained_grid) if config.distance_clamp else None
        self.variance_scaling = config.variance_scaling
        self.starts_at_identity = config.start == "identity"
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Weights truncated normal 0.02, biases 0: variance about 1 and alpha about ln 2 everywhere.

        With ``start="identity"`` the weights of alpha are 0, and alpha is 0 everywhere.
        """
        for linear in (self.log_var, self.log_alpha):
            nn.init.trunc_normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)
        if self.starts_at_identity:
            nn.init.zeros_(self.log_alpha.weight)

    def forward(
        self, q: Float[Tensor, "B H N K"], grid_size: GridSize
    ) -> tuple[Float[Tensor, "B H N h"], Float[Tensor, "B H N w"]]:
        """The factors whose product is alpha times G (Eqs. 8-10), in at least float32.

        Args:
            q: queries of the patches, after bias and q-norm, before rotation and scaling; no prefix tokens.
            grid_size: (h, w) of these patches.
        """
        with torch.autocast(q.device.type, enabled=False):
            variance, alpha = self.variance_and_alpha(q, grid_size)
            variance = variance + self.variance_floor if self.variance_floor else variance
            row_factor, column_factor = gaussian_factors(variance, grid_size, distance_clamp=self.distance_clamp)
            return row_factor * alpha[..., None], column_factor

    def variance_and_alpha(
        self, q: Float[Tensor, "B H N K"], grid_size: GridSize
    ) -> tuple[Float[Tensor, "B H N 2"], Float[Tensor, "B H N"]]:
        """Variance per axis (row, column) in patches² before the floor is added, and alpha."""
        weight = torch.cat((self.log_var.weight, self.log_alpha.weight))
        bias = torch.cat((self.log_var.bias, self.log_alpha.bias))
        # half precision has no room for the exponents to come
        dtype = torch.promote_types(q.dtype, torch.float32)
        logits = F.linear(q.to(dtype), weight.to(dtype), bias.to(dtype))
        # three planes of patches: one copy here is cheaper than strided reading in what follows
        logits = logits.mT.contiguous().mT
        return self._bounded(logits[..., :2], self.variance_scale(grid_size)), self._positive(logits[..., 2])

    def _bounded(self, variance_logits: Tensor, scale: float) -> Tensor:
        """scale * f of Eq. 5: between 0 and scale * M, f(0) = 1."""
        shift = math.log(self.variance_max - 1) if self.variance_max > 2 else 0.0
        return (self.variance_max * scale) * torch.sigmoid(variance_logits - shift)

    def _positive(self, alpha_logits: Tensor) -> Tensor:
        """Eq. 9; with the identity start shifted so that it begins at exactly 0 with a gradient."""
        alpha = F.softplus(alpha_logits)
        if self.starts_at_identity:
            alpha = alpha - F.softplus(alpha_logits.new_zeros(()))
        return alpha

    def variance_scale(self, grid_size: GridSize) -> float:
        """Factor on the variance for another grid than the trained one: one for both axes."""
        if self.variance_scaling == "none" or tuple(grid_size) == self.trained_grid:
            return 1.0
        ratio = min(grid_size) / min(self.trained_grid)
        return ratio if self.variance_scaling == "linear" else ratio**2

    def extra_repr(self) -> str:
        return (
            f"trained_grid={self.trained_grid}, variance_max={self.variance_max:g}, "
            f"variance_floor={self.variance_floor:g}, distance_clamp={self.distance_clamp}"
        )


def default_variance_floor(trained_grid: GridSize) -> float:
    """The authors' floor in patches²: 0.1, doubled until the furthest patch's exponent fits float16."""
    floor, longest = 0.1, max(trained_grid) - 1
    while 0.5 * longest**2 / floor**2 > _FLOAT16_EXPONENT:
        floor *= 2
    return floor


def default_distance_clamp(trained_grid: GridSize) -> float:
    """The authors' cap on a squared distance: that of the trained grid's longest side, within float16."""
    return min(float((max(trained_grid) - 1) ** 2), 2 * _FLOAT16_HALF_DISTANCE)
