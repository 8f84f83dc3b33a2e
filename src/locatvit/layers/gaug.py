"""GAug: a learned, per-query locality bias, from the query to its two factors (Eqs. 5, 8, 9, 12-21)."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from locatvit.config import LocAtConfig
from locatvit.grid import GridSize
from locatvit.ops.distance import KERNELS, Gaussian
from locatvit.ops.narrow_linear import narrow_linear

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
    ) -> Gaussian | Float[Tensor, "B H N N"]:
        """alpha times G (Eqs. 8-10): as the numbers that make it, or where the kernel does not separate, itself.

        In at least float32.

        Args:
            q: queries, after bias and q-norm, before rotation and scaling; the prefix first, then the patches.
            grid_size: (h, w) of the patches.
            num_prefix_tokens: tokens before the patches, which get no bias.
            k: the keys, for ``alpha="auto"``.
            x: the tokens at the attention's input, for ``variance="input"``.
            allowed: which patches a mask leaves to a patch, for ``alpha="auto"``; broadcastable to [B, H, N, N].
        """
        with _without_autocast(q.device.type):
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
        first = num_prefix_tokens
        variance_logits, alpha_logits = self._logits(q, x, first)
        scale = self.variance_scale(grid_size)
        if variance_logits is None:
            fixed = float(self.config.variance) * scale
            variance = torch.tensor(fixed, dtype=_precise(q), device=q.device).expand(1, 1, 1, self.num_widths)
        else:
            variance = self._bounded(variance_logits, scale)
        if alpha_logits is not None:
            return variance, self._positive(alpha_logits)
        if self.config.alpha == "auto":
            assert k is not None, "alpha='auto' needs the keys"
            return variance, mean_logit_size(q[:, :, first:], k[:, :, first:], allowed)
        return variance, torch.ones((), dtype=_precise(q), device=q.device).expand(q[:, :, first:].shape[:-1])

    def _logits(self, q: Tensor, x: Tensor | None, first: int) -> tuple[Tensor | None, Tensor | None]:
        """What the linear layers give, [B, H, N, W] and [B, H, N]; None where there is no layer.

        Prefix tokens are left out of what comes out, which is small, and not of what goes in.
        """
        from_query = self.log_var is not None and self.config.variance != "input"
        layers = [layer for layer in (self.log_var if from_query else None, self.log_alpha) if layer is not None]
        logits = _linear(q, layers)[:, :, first:] if layers else q
        variance_logits = logits[..., : self.num_widths] if from_query else None
        if self.config.variance == "input":
            assert x is not None
            assert self.log_var is not None
            # heads * W outputs of each token, head by head
            by_head = _linear(x[:, None], [self.log_var])[:, 0, first:].unflatten(-1, (q.shape[1], self.num_widths))
            variance_logits = by_head.transpose(1, 2)
        return variance_logits, logits[..., -1] if self.log_alpha is not None else None

    def _bounded(self, variance_logits: Tensor, scale: float) -> Tensor:
        """scale * f of Eq. 5: between 0 and scale * M, f(0) = 1."""
        shift = math.log(self.variance_max - 1) if self.variance_max > 2 else 0.0
        return (self.variance_max * scale) * torch.sigmoid(variance_logits - shift)

    def _positive(self, alpha_logits: Tensor) -> Tensor:
        """Eq. 9; with the identity start shifted so that it begins at exactly 0 with a gradient."""
        alpha = F.softplus(alpha_logits)
        if self.config.start == "identity":
            alpha = alpha - F.softplus(alpha_logits.new_zeros(()))
        return alpha

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


def _without_autocast(device_type: str) -> AbstractContextManager[Any]:
    # to ask is cheap, to leave autocast costs as much as three small operations; the meta device has none. Whether a
    # device has any, which torch.amp tells, cannot be asked in a compiled graph of torch 2.11
    if device_type != "meta" and torch.is_autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()


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


def _linear(x: Float[Tensor, "B H L K"], layers: list[nn.Linear]) -> Float[Tensor, "B H L O"]:
    """All outputs of the layers, side by side, in at least float32: half has no room for the exponents to come."""
    return narrow_linear(x, *(_joined([getattr(layer, name) for layer in layers]) for name in ("weight", "bias")))


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


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
