"""What is asked of a backend."""

from __future__ import annotations

from dataclasses import dataclass

import torch


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
