"""How tensors of tokens lie in memory."""

from __future__ import annotations

from torch import Tensor


def empty_like_tokens(q: Tensor) -> Tensor:
    """Uninitialised [B, H, L, K] that is [B, L, H, K] in memory, as the reshape after attention wants it."""
    return q.new_empty(q.shape[0], q.shape[2], q.shape[1], q.shape[3]).transpose(1, 2)
