"""What is asked of a backend, and the form of its answer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Request:
    """What a backend must know to say whether it can run.

    Attributes:
        attn_bias_shape: four sizes, or None where there is no further bias.
        needs_grad: whether any tensor asks for a gradient.
    """

    device_type: str
    dtype: torch.dtype
    head_dim: int
    num_tokens: int
    num_prefix_tokens: int
    grid_size: tuple[int, int]
    attn_bias_shape: tuple[int, ...] | None = None
    attn_bias_needs_grad: bool = False
    dropout_p: float = 0.0
    needs_grad: bool = False


def empty_like_tokens(q: Tensor) -> Tensor:
    """Uninitialised [B, H, L, K] that is [B, L, H, K] in memory, as the reshape after attention wants it."""
    return q.new_empty(q.shape[0], q.shape[2], q.shape[1], q.shape[3]).transpose(1, 2)
