"""Inputs of attention with the two factors of its bias, and the formulas for them."""

from __future__ import annotations

import torch
from torch import Tensor

import formulas


def make_inputs(grid_size, prefix, dtype=torch.float64, batch=2, patches_innermost=False) -> list[Tensor]:
    """q, k, v and the factors of rows and columns; 3 heads of 13."""
    height, width = grid_size
    patches = height * width
    qkv = torch.randn(batch, patches + prefix, 3, 3, 13, dtype=dtype).permute(2, 0, 3, 1, 4)
    row, column = (torch.rand(batch, 3, patches, side, dtype=dtype) * 3 for side in grid_size)
    if patches_innermost:  # as gaussian_factors lays out narrow grids
        row, column = row.mT.contiguous().mT, column.mT.contiguous().mT
    return [x.detach().requires_grad_() for x in (*qkv.unbind(0), row, column)]


def expected_attention(q, k, v, row, column, prefix, attn_bias=None) -> Tensor:
    dense = (row[..., :, None] * column[..., None, :]).flatten(-2)
    bias = q.new_zeros(*q.shape[:-1], q.shape[-2])
    bias[..., prefix:, prefix:] = dense
    return formulas.attention(q, k, v, bias if attn_bias is None else bias + attn_bias)
