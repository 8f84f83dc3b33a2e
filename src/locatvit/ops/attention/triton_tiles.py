"""Sizes of the fused kernels' launches: how many queries and keys a program holds at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

SMALL_SHARED_BYTES = 99 * 1024
"""Of the devices with the least, those for graphics; all tiles fit it unless more is named."""
_FOR_STAGES_OF_BIAS = 112 * 1024
_SHORT = 256  # patches; so few tiles of keys have no time to fill a pipeline
_WINDOW = 64  # patches of a window, which one tile of queries holds


class Tiles(NamedTuple):
    """Sizes of one launch: queries and keys (a block of the grid) that a program holds at a time."""

    queries: int
    rows: int
    columns: int
    num_warps: int = 4
    num_stages: int = 2
    """Tiles that are on their way from memory at a time."""

    def fit(self, grid_size: Sequence[int]) -> bool:
        """Whether blocks of keys fill the grid to its edges."""
        return grid_size[0] % self.rows == 0 and grid_size[1] % self.columns == 0


def choose_tiles(
    kernel: str,
    grid_size: Sequence[int],
    head_dim: int,
    dtype: torch.dtype,
    shared_bytes: int = SMALL_SHARED_BYTES,
    *,
    has_bias: bool = False,
) -> Tiles:
    """Blocks of the grid with little padding, and not too small: work grows with what is padded.

    For heads of up to 64 in half precision, sizes and stages are the fastest of those tried on an H200 with factors,
    for grids of 14 and 32, but for ``backward_keys``. All others have the fewest instructions a logit, compiled for
    sm_90, that stay in registers.

    Args:
        kernel: ``"forward"``, ``"backward_queries"`` or ``"backward_keys"``.
        shared_bytes: shared memory that a program may have on the device.
        has_bias: whether tiles of an attn_bias are on their way, too.
    """
    if has_bias and shared_bytes < _FOR_STAGES_OF_BIAS:
        tiles = choose_tiles(kernel, grid_size, head_dim, dtype, shared_bytes)
        return tiles._replace(num_stages=min(tiles.num_stages, 2))
    num_patches = grid_size[0] * grid_size[1]
    if dtype == torch.float32:
        return _precise_tiles(kernel, grid_size, head_dim)
    if head_dim > 64:
        return _wide_tiles(kernel, grid_size, shared_bytes)
    block = _block(kernel, grid_size, 64)
    is_short = num_patches <= _SHORT
    if kernel == "backward_keys":
        return Tiles(64, *block)
    if kernel == "backward_queries":
        return Tiles(64, *block, num_stages=1 if is_short else 3)
    return Tiles(128 if is_short and num_patches > _WINDOW else 64, *block, num_stages=3)


def _precise_tiles(kernel: str, grid_size: Sequence[int], head_dim: int) -> Tiles:
    """In float32, where products run in the ordinary units and their operands fill the registers."""
    block = _block(kernel, grid_size, 32)
    if kernel == "backward_keys":
        return Tiles(16, *block, num_warps=8 if head_dim > 64 else 4, num_stages=1)
    return Tiles(32, *block)


def _wide_tiles(kernel: str, grid_size: Sequence[int], shared_bytes: int) -> Tiles:
    """Heads of more than 64, half precision: the units of a group of four warps take 64 lines or more."""
    is_window = grid_size[0] * grid_size[1] <= _WINDOW
    by_keys_fits = shared_bytes >= 112 * 1024  # which the tiles below take there
    if is_window or kernel == "backward_queries" or (kernel == "backward_keys" and not by_keys_fits):
        return Tiles(64, *_block(kernel, grid_size, 32))
    return Tiles(128, *_block(kernel, grid_size, 64), num_warps=8, num_stages=1 if kernel == "backward_keys" else 2)


def _block(kernel: str, grid_size: Sequence[int], most: int) -> tuple[int, int]:
    """Rows and columns of the keys, at most ``most`` together, both powers of two."""
    height, width = grid_size

    def work(block: tuple[int, int]) -> tuple[float, float]:
        rows, columns = block
        padded = -(-height // rows) * rows * (-(-width // columns) * columns)
        # by keys, all factors are made anew for each tile: a thread has those of all rows and of every fourth column
        return padded * (1 + 16 / (rows * columns)), rows + columns / 4 if kernel == "backward_keys" else rows

    sides = (1, 2, 4, 8, 16, 32, 64)
    return min(
        ((rows, columns) for rows in sides for columns in sides if 16 <= rows * columns <= most and rows <= 8), key=work
    )
