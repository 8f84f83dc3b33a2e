"""Attention with the locality bias as the equations read: dense, on any device. The truth for the rest.

Half precision is computed in float32 and rounded once, at the end.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def supplement(
    row_factor: Float[Tensor, "B H N h"], column_factor: Float[Tensor, "B H N w"], num_prefix_tokens: int
) -> Float[Tensor, "B H L L"]:
    """S of Eq. 10 from its factors, zero in the rows and columns of prefix tokens."""
    dense = (row_factor[..., :, None] * column_factor[..., None, :]).flatten(-2)
    return F.pad(dense, (num_prefix_tokens, 0, num_prefix_tokens, 0))


def repeated(attn_bias: Tensor, batch: int) -> Tensor:
    """``attn_bias`` for ``batch`` images: one that has fewer, but more than one, comes again and again."""
    if attn_bias.ndim < 4 or attn_bias.shape[0] in (1, batch):
        return attn_bias
    return attn_bias.repeat(batch // attn_bias.shape[0], 1, 1, 1)


def attention_weights(
    q: Float[Tensor, "B H L K"],
    k: Float[Tensor, "B H L K"],
    row_factor: Float[Tensor, "B H N h"] | None,
    column_factor: Float[Tensor, "B H N w"] | None,
    *,
    num_prefix_tokens: int,
    attn_bias: Float[Tensor, ...] | None = None,
    scale: float | None = None,
) -> Float[Tensor, "B H L L"]:
    """softmax(q kᵀ · scale + S + attn_bias), the weights of Eq. 4. Without factors, those of plain attention.

    In at least float32.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    dtype = torch.promote_types(q.dtype, torch.float32)
    attn_logits = (q.to(dtype) * scale) @ k.to(dtype).mT
    if row_factor is not None and column_factor is not None:
        attn_logits = attn_logits + supplement(row_factor, column_factor, num_prefix_tokens).to(dtype)
    if attn_bias is not None:
        attn_logits = attn_logits + repeated(attn_bias, q.shape[0]).to(dtype)
        # a query that may look nowhere gets zeros, as torch's attention has it
        dead = (attn_logits == float("-inf")).all(dim=-1, keepdim=True)
        return attn_logits.masked_fill(dead, 0).softmax(dim=-1).masked_fill(dead, 0)
    return attn_logits.softmax(dim=-1)


def run(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    row_factor: Tensor,
    column_factor: Tensor,
    num_prefix_tokens: int,
    attn_bias: Tensor | None,
    scale: float,
    dropout_p: float,
) -> Tensor:
    """Z = softmax(q kᵀ · scale + S) v (Eq. 4)."""
    attn_weights = attention_weights(
        q,
        k,
        row_factor,
        column_factor,
        num_prefix_tokens=num_prefix_tokens,
        attn_bias=attn_bias,
        scale=scale,
    )
    attn_weights = torch.dropout(attn_weights, dropout_p, dropout_p > 0)
    return (attn_weights @ v.to(attn_weights.dtype)).to(q.dtype)
