"""Distance kernels (Eq. 8): how the locality bias falls with the distance of two patches."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from locatvit.grid import GridSize, axis_squared_distance


def gaussian_factors(
    variance: Float[Tensor, "*B N 2"], grid_size: GridSize, *, distance_clamp: float | None = None
) -> tuple[Float[Tensor, "*B N h"], Float[Tensor, "*B N w"]]:
    """The two factors of the Gaussian kernel (Eq. 8), which is separable.

        G_pt = exp(-1/2 (D_pt,row / var_p,row + D_pt,col / var_p,col))
             = row_factor[p, row(t)] * column_factor[p, col(t)]

    so a patch needs h + w exponentials, not h * w, and no N x N tensor.

    Args:
        variance: per patch and axis (row, column), in patches², > 0.
        grid_size: (h, w), h * w = N.
        distance_clamp: cap of each axis' squared distance, in patches², or None for Eq. 8 as printed.
    """
    height, width = grid_size
    exponent_scale = (-0.5 / variance).unflatten(-2, (height, width))
    rows = _squared_distances(height, variance, distance_clamp)[:, None, :]
    columns = _squared_distances(width, variance, distance_clamp)[None, :, :]
    row_factor = torch.exp(exponent_scale[..., 0:1] * rows)
    column_factor = torch.exp(exponent_scale[..., 1:2] * columns)
    return row_factor.flatten(-3, -2), column_factor.flatten(-3, -2)


def _squared_distances(size: int, like: Tensor, clamp: float | None) -> Float[Tensor, "size size"]:
    positions = torch.arange(size, device=like.device, dtype=like.dtype)
    return axis_squared_distance(positions, size, clamp)
