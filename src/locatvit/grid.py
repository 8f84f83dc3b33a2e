"""The patch grid: coordinates (Eq. 6) and squared distances (Eq. 7)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from locatvit.errors import LocAtError

GridSize = tuple[int, int]
"""``(height, width)`` in patches; patches are numbered row by row."""


def coordinates(
    grid_size: GridSize, *, device: torch.device | None = None, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "N 2"]:
    """The (row, column) of every patch, row-major (Eq. 6). Unit: patches."""
    height, width = grid_size
    rows = torch.arange(height, device=device, dtype=dtype)
    columns = torch.arange(width, device=device, dtype=dtype)
    return torch.cartesian_prod(rows, columns)


def squared_distance(
    grid_size: GridSize, *, device: torch.device | None = None, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "N N 2"]:
    """The squared distance of every two patches, row and column apart (Eq. 7). Unit: patches²."""
    position = coordinates(grid_size, device=device, dtype=dtype)
    return (position[:, None] - position[None, :]).square()


def axis_squared_distance(positions: Float[Tensor, N], size: int, clamp: float | None) -> Float[Tensor, "N size"]:
    """Squared distance of each patch to each line of one axis, one axis of Eq. 7, capped at ``clamp``.

    Args:
        positions: the patches' places on the axis, in patches.
        size: lines on the axis.
        clamp: cap in patches², or None.
    """
    lines = torch.arange(size, device=positions.device, dtype=positions.dtype)
    squared = (positions[:, None] - lines[None, :]).square()
    return squared if clamp is None else squared.clamp(max=clamp)


def check_grid(grid_size: GridSize, num_patches: int, num_prefix_tokens: int) -> None:
    """Raise ``LocAtError`` unless the grid holds just the patches that remain after the prefix tokens."""
    height, width = grid_size
    if height * width != num_patches:
        raise LocAtError(
            f"grid_size {grid_size} has {height * width} patches but {num_patches} remain after "
            f"{num_prefix_tokens} prefix token{'s' * (num_prefix_tokens != 1)}; are there register tokens, "
            "or are tokens dropped? Set num_prefix_tokens to the tokens that stand before the patches"
        )
