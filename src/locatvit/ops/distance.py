"""Distance kernels (Eqs. 8, 20, 21): how the locality bias falls with the distance of two patches."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from locatvit.grid import GridSize, axis_squared_distance, coordinates

# Narrower grids have the patches, not the lines of the grid, as neighbours in memory (strides, not shapes): loops
# over so few lines are several times slower than loops over patches, here and in what reads the factors.
_NARROW = 20


def is_narrow(grid_size: GridSize) -> bool:
    """Whether patches, not lines, are to be neighbours in the memory of what has a number for each line of the grid."""
    return max(grid_size) < _NARROW


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
    exponent_scale = -0.5 / variance
    tables = axis_squared_distances(variance, grid_size, distance_clamp)
    # in place: the product itself is needed by nobody
    row_factor, column_factor = ((exponent_scale[..., axis, None] * table).exp_() for axis, table in enumerate(tables))
    return row_factor, column_factor


@dataclass(frozen=True)
class Gaussian:
    """alpha times the Gaussian kernel, three numbers a patch: the locality bias before it is spread over keys (Eq. 10).

    Attributes:
        variance: per patch and axis (row, column), in patches², > 0; [B, H, N, 2] or what broadcasts to it.
        alpha: strength of each patch, [B, H, N].
        grid_size: (h, w), h * w = N.
        distance_clamp: cap of each axis' squared distance, in patches², or None for Eq. 8 as printed.
    """

    variance: Tensor
    alpha: Tensor
    grid_size: GridSize
    distance_clamp: float | None = None

    def factors(self) -> tuple[Float[Tensor, "B H N h"], Float[Tensor, "B H N w"]]:
        """Its two factors, alpha in the first."""
        row_factor, column_factor = gaussian_factors(self.variance, self.grid_size, distance_clamp=self.distance_clamp)
        alpha = self.alpha[..., None]
        # a variance that is the same everywhere has one table for all heads and images
        return row_factor * alpha, column_factor.expand(*alpha.shape[:-1], -1)


def laplace(
    width: Float[Tensor, "*B N 1"], grid_size: GridSize, *, distance_clamp: float | None = None
) -> Float[Tensor, "*B N N"]:
    """The Laplace kernel, G_pt = exp(-dist_pt / λ_p) (Eq. 20); dist is the Euclidean distance. It does not separate.

    Args:
        width: λ of each patch, in patches, > 0.
        grid_size: (h, w), h * w = N.
        distance_clamp: cap of each axis' squared distance, in patches², or None for the equation as printed.
    """
    return torch.exp(-_distance(width, grid_size, distance_clamp) / width)


def inverse_distance(
    width: Float[Tensor, "*B N 1"], grid_size: GridSize, *, distance_clamp: float | None = None
) -> Float[Tensor, "*B N N"]:
    """The inverse-distance kernel, G_pt = 1 / (1 + dist_pt / γ_p) (Eq. 21); as ``laplace``, with γ its width."""
    return 1 / (1 + _distance(width, grid_size, distance_clamp) / width)


@dataclass(frozen=True)
class DistanceKernel:
    """One kernel G.

    Attributes:
        num_widths: widths a patch has: 2, for rows and columns apart, or 1.
        width_exponent: the width's unit is patches to this power.
        values: itself, where it does not separate: widths to [*B, N, N]. None for the Gaussian, see ``Gaussian``.
    """

    num_widths: int
    width_exponent: int
    values: Callable[..., Tensor] | None = None


KERNELS: dict[str, DistanceKernel] = {
    "gaussian": DistanceKernel(num_widths=2, width_exponent=2),
    "laplace": DistanceKernel(num_widths=1, width_exponent=1, values=laplace),
    "inverse_distance": DistanceKernel(num_widths=1, width_exponent=1, values=inverse_distance),
}
"""The only list: the values of ``LocAtConfig.kernel``."""


def _distance(like: Tensor, grid_size: GridSize, clamp: float | None) -> Float[Tensor, "N N"]:
    """The Euclidean distance of every two patches, in patches."""
    rows, columns = axis_squared_distances(like, grid_size, clamp)
    return (rows[:, :, None] + columns[:, None, :]).flatten(1).sqrt()


def axis_squared_distances(
    like: Tensor, grid_size: GridSize, clamp: float | None
) -> tuple[Float[Tensor, "N h"], Float[Tensor, "N w"]]:
    """The squared distance of each patch to each row, and to each column, of the grid.

    In the precision and on the device of ``like``; kept for the next call.
    """
    make: Callable[..., tuple[Tensor, Tensor]] = _kept_squared_distances
    if torch.compiler.is_compiling() or type(like) is not Tensor:
        make = _squared_distances  # what is only traced must not stay
    return make(grid_size, clamp, like.dtype, like.device)


def _squared_distances(
    grid_size: GridSize, clamp: float | None, dtype: torch.dtype, device: torch.device
) -> tuple[Float[Tensor, "N h"], Float[Tensor, "N w"]]:
    with torch.inference_mode(False):  # what is made in inference mode cannot serve training later
        places = coordinates(grid_size, device=device, dtype=dtype)
        tables = [axis_squared_distance(places[:, axis], grid_size[axis], clamp) for axis in (0, 1)]
        if is_narrow(grid_size):
            tables = [table.mT.contiguous().mT for table in tables]
    return tables[0], tables[1]


_kept_squared_distances = functools.lru_cache(maxsize=16)(_squared_distances)
