"""The two factors of a Gaussian on a CPU, in few passes, and their gradients, which keep nothing but the Gaussian.

The same as ``Gaussian.factors`` in torch's own operations, whose gradients take three times as long.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from locatvit.ops.distance import Gaussian, axis_squared_distances


def make_factors(gaussian: Gaussian) -> tuple[Tensor, Tensor]:
    """As ``Gaussian.factors``, once differentiable."""
    tables = axis_squared_distances(gaussian.variance, gaussian.grid_size, gaussian.distance_clamp)
    factors: tuple[Tensor, Tensor] = _Factors.apply(gaussian.variance, gaussian.alpha, *tables)
    return factors


def _exponentials(variance: Tensor, tables: Sequence[Tensor]) -> list[Tensor]:
    """exp(-D / 2 variance) of each axis, [..., N, h] and [..., N, w].

    By powers of two: the library that computes torch's ``exp`` on a CPU takes thirty times as long where the result
    leaves float32, as that of far patches does.
    """
    exponent_scale = (-0.5 * math.log2(math.e)) / variance
    return [(exponent_scale[..., axis, None] * table).exp2_() for axis, table in enumerate(tables)]


class _Factors(torch.autograd.Function):
    """variance [..., N, 2], alpha [..., N] and the squared distances [N, h], [N, w] to [..., N, h] and [..., N, w]."""

    @staticmethod
    def forward(ctx: Any, variance: Tensor, alpha: Tensor, *tables: Tensor) -> tuple[Tensor, Tensor]:
        row, column = _exponentials(variance, tables)
        ctx.save_for_backward(variance, alpha, *tables)
        # a variance that is the same everywhere has one table for all heads and images
        return row * alpha[..., None], column.expand(*alpha.shape, -1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_row: Tensor, grad_column: Tensor) -> tuple[Tensor | None, ...]:
        variance, alpha, *tables = ctx.saved_tensors
        row, column = _exponentials(variance, tables)
        grad_row = grad_row * row
        grad_variance = None
        if ctx.needs_input_grad[0]:
            of_axes = alpha * (grad_row * tables[0]).sum(-1), (grad_column * column).mul_(tables[1]).sum(-1)
            # the axes as planes of patches, as variance lies in memory
            per_patch = torch.stack(of_axes, dim=-2).mT
            grad_variance = (per_patch / (2 * variance.square())).sum_to_size(variance.shape)
        return grad_variance, grad_row.sum(-1), None, None
