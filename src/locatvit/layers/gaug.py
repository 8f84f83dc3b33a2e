"""GAug: a learned, per-query locality bias, from the query to its two factors (Eqs. 5, 8, 9, 12-21)."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from locatvit.config import LocAtConfig
from locatvit.grid import GridSize
from locatvit.ops import Gaussian, PredictedGaussian
from locatvit.ops.distance import KERNELS
from locatvit.ops.prediction import Prediction, predict, without_autocast

# The exponent -1/2 D / variance of the furthest patch must fit float16 (details of the authors' code, section 1).
_FLOAT16_EXPONENT = 32_500.0
_FLOAT16_HALF_DISTANCE = 6_550.0


class GAug(nn.Module):
    """Predicts how wide and how strong the locality bias of each patch is, and makes the bias.

        variance = f(q W_σ + b_σ),  f(x) = M sigmoid(x - ln(M - 1)),  M = max(h, w)²      (Eq. 5)
        alpha    = softplus(q W_α + b_α)                                                  (Eq. 9)

    The weights are shared by the heads of a layer. ``LocAtConfig`` has the variants: what is not predicted has no
    weights, and a kernel with one width a patch takes f for that width.

    Args:
        head_dim: K, the width of a query.
        trained_grid: the grid that the model is built for. It sets M, the variance floor and the distance clamp,
            and they stay what they are when the model later sees other grids.
        config: see ``LocAtConfig``.
        embed_dim, num_heads: D and H of the attention, for ``variance="input"``.
    """

    log_var: nn.Linear | None
    log_alpha: nn.Linear | None

    def __init__(
        self,
        head_dim: int,
        trained_grid: GridSize,
        config: LocAtConfig,
        *,
        embed_dim: int | None = None,
        num_heads: int = 1,
    ) -> None:
        super().__init__()
        self.config = config
        self.kernel = KERNELS[config.kernel]
        self.num_widths = 1 if config.variance == "isotropic" else self.kernel.num_widths
        # The authors' names, so that checkpoints load in both directions; neither is a logarithm.
        self.log_var = self.log_alpha = None
        if config.variance == "input":
            assert embed_dim is not None, "variance='input' needs the width of the attention's input"
            self.log_var = nn.Linear(embed_dim, num_heads * self.num_widths)
        elif isinstance(config.variance, str):
            self.log_var = nn.Linear(head_dim, self.num_widths)
        if config.alpha == "learned":
            self.log_alpha = nn.Linear(head_dim, 1)
        self.trained_grid = tuple(trained_grid)
        self.variance_max = float(max(trained_grid) ** 2)
        self.variance_floor = (
            default_variance_floor(trained_grid) if config.variance_floor == "auto" else float(config.variance_floor)
        )
        self.distance_clamp = default_distance_clamp(trained_grid) if config.distance_clamp else None
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Weights truncated normal 0.02, biases 0: variance about 1 and alpha about ln 2 everywhere.

        With ``start="identity"`` the weights of alpha are 0, and alpha is 0 everywhere.
        """
        for linear in (self.log_var, self.log_alpha):
            if linear is not None:
                nn.init.trunc_normal_(linear.weight, std=0.02)
                nn.init.zeros_(linear.bias)
        if self.config.start == "identity" and self.log_alpha is not None:
            nn.init.zeros_(self.log_alpha.weight)

    def forward(
        self,
        q: Float[Tensor, "B H L K"],
        grid_size: GridSize,
        *,
        num_prefix_tokens: int = 0,
        k: Float[Tensor, "B H L K"] | None = None,
        x: Float[Tensor, "B L D"] | None = None,
        allowed: Bool[Tensor, ...] | None = None,
    ) -> Gaussian | PredictedGaussian | Float[Tensor, "B H N N"]:
        """alpha times G (Eqs. 8-10): as what makes it, or where the kernel does not separate, itself.

        Of the paper's own bias nothing is computed here: the attention does it on the way. All is in at least float32.

        Args:
            q: queries, after bias and q-norm, before rotation and scaling; the prefix first, then the patches.
            grid_size: (h, w) of the patches.
            num_prefix_tokens: tokens before the patches, which get no bias.
            k: the keys, for ``alpha="auto"``.
            x: the tokens at the attention's input, for ``variance="input"``.
            allowed: which patches a mask leaves to a patch, for ``alpha="auto"``; broadcastable to [B, H, N, N].
        """
        if self._is_predicted_from_queries():
            assert self.log_var is not None
            assert self.log_alpha is not None
            weight, bias = _joined([self.log_var, self.log_alpha])
            return PredictedGaussian(
                q, weight, bias, self._prediction(grid_size, self.variance_floor),
                num_prefix_tokens, grid_size, self.distance_clamp,
            )  # fmt: skip
        with without_autocast(q.device.type):
            variance, alpha = self.variance_and_alpha(
                q, grid_size, num_prefix_tokens=num_prefix_tokens, k=k, x=x, allowed=allowed
            )
            if self.log_var is not None and self.variance_floor:
                variance = variance + self.variance_floor
            if self.kernel.values is not None:
                values = self.kernel.values(variance, grid_size, distance_clamp=self.distance_clamp)
                return alpha[..., None] * values
            variance = variance.expand(*variance.shape[:-1], self.kernel.num_widths)
            return Gaussian(variance, alpha, grid_size, self.distance_clamp)

    def variance_and_alpha(
        self,
        q: Float[Tensor, "B H L K"],
        grid_size: GridSize,
        *,
        num_prefix_tokens: int = 0,
        k: Float[Tensor, "B H L K"] | None = None,
        x: Float[Tensor, "B L D"] | None = None,
        allowed: Bool[Tensor, ...] | None = None,
    ) -> tuple[Float[Tensor, "B H N W"], Float[Tensor, "B H N"]]:
        """Variance (or width) before the floor is added, and alpha, of the patches.

        The variances are those of row and column in patches², W = 2; or one for both, W = 1. What is fixed is a view
        of one number.
        """
        first, prediction = num_prefix_tokens, self._prediction(grid_size, floor=0.0)
        variance, alpha = self._from_queries(q, prediction, first)
        if self.config.variance == "input":
            assert x is not None
            variance = self._from_input(x, q.shape[1], prediction, first)
        elif variance is None:
            fixed = float(self.config.variance) * self.variance_scale(grid_size)
            variance = torch.tensor(fixed, dtype=_precise(q), device=q.device).expand(1, 1, 1, self.num_widths)
        if alpha is None and self.config.alpha == "auto":
            assert k is not None, "alpha='auto' needs the keys"
            alpha = mean_logit_size(q[:, :, first:], k[:, :, first:], allowed)
        elif alpha is None:
            alpha = torch.ones((), dtype=_precise(q), device=q.device).expand(q[:, :, first:].shape[:-1])
        return variance, alpha

    def _is_predicted_from_queries(self) -> bool:
        separates = self.kernel.values is None
        return separates and self.config.variance == "query" and self.config.alpha == "learned"

    def _prediction(self, grid_size: GridSize, floor: float) -> Prediction:
        """What follows the linear layers; the identity start begins at exactly 0 with a gradient."""
        shift = math.log(self.variance_max - 1) if self.variance_max > 2 else 0.0
        starts_at_zero = self.config.start == "identity"
        return Prediction(self.variance_max * self.variance_scale(grid_size), shift, floor, starts_at_zero)

    def _from_queries(self, q: Tensor, prediction: Prediction, first: int) -> tuple[Tensor | None, Tensor | None]:
        """Variance and alpha; None of what is not predicted from the queries."""
        log_var = None if self.config.variance == "input" else self.log_var
        layers = [layer for layer in (log_var, self.log_alpha) if layer is not None]
        if not layers:
            return None, None
        num_widths = 0 if log_var is None else self.num_widths
        variance, alpha = predict(q, *_joined(layers), prediction, num_widths, first)
        return variance if num_widths else None, alpha

    def _from_input(self, x: Tensor, num_heads: int, prediction: Prediction, first: int) -> Tensor:
        """Variance, of heads * W outputs of each token, head by head."""
        assert self.log_var is not None
        weight, bias = _joined([self.log_var])
        by_head, _ = predict(x[:, None], weight, bias, prediction, len(weight), first)
        return by_head[:, 0].unflatten(-1, (num_heads, self.num_widths)).transpose(1, 2)

    def variance_scale(self, grid_size: GridSize) -> float:
        """Factor on the variance for another grid than the trained one: one for both axes."""
        if self.config.variance_scaling == "none":
            return 1.0
        ratio = min(grid_size) / min(self.trained_grid)
        return ratio**self.kernel.width_exponent if self.config.variance_scaling == "area" else ratio

    def extra_repr(self) -> str:
        return (
            f"kernel={self.config.kernel!r}, variance={self.config.variance!r}, alpha={self.config.alpha!r}, "
            f"trained_grid={self.trained_grid}, variance_max={self.variance_max:g}, "
            f"variance_floor={self.variance_floor:g}, distance_clamp={self.distance_clamp}"
        )


def mean_logit_size(
    q: Float[Tensor, "B H N K"], k: Float[Tensor, "B H N K"], allowed: Bool[Tensor, ...] | None = None
) -> Float[Tensor, "B H N"]:
    """alpha_p = mean over t of |q_p| |k_t| / sqrt(K), over patches alone (Eqs. 13-19); in at least float32.

    Args:
        q, k: of the patches.
        allowed: the keys that count, broadcastable to [B, H, N, N]; None for all.
    """
    q, k = q.to(_precise(q)), k.to(_precise(k))
    sizes = k.norm(dim=-1)[..., None, :]  # [B, H, 1, N]
    if allowed is not None:
        sizes = sizes * allowed / allowed.float().mean(dim=-1, keepdim=True).clamp(min=1 / k.shape[-2])
    return q.norm(dim=-1) * (sizes.mean(dim=-1) * q.shape[-1] ** -0.5)


def _joined(layers: list[nn.Linear]) -> tuple[Float[Tensor, "O K"], Float[Tensor, " O"]]:
    """Weight and bias of one layer with the outputs of all, side by side."""
    if len(layers) == 1:
        return layers[0].weight, layers[0].bias
    return torch.cat([layer.weight for layer in layers]), torch.cat([layer.bias for layer in layers])


def _precise(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def default_variance_floor(trained_grid: GridSize) -> float:
    """The authors' floor in patches²: 0.1, doubled until the furthest patch's exponent fits float16."""
    floor, longest = 0.1, max(trained_grid) - 1
    while 0.5 * longest**2 / floor**2 > _FLOAT16_EXPONENT:
        floor *= 2
    return floor


def default_distance_clamp(trained_grid: GridSize) -> float:
    """The authors' cap on a squared distance: that of the trained grid's longest side, within float16."""
    return min(float((max(trained_grid) - 1) ** 2), 2 * _FLOAT16_HALF_DISTANCE)
