"""The bias as a ``score_mod`` of torch's FlexAttention, which generates a kernel for it.

It must be compiled: as a plain call it would make the L x L logits that it is there to avoid. Each new shape is
compiled anew, for seconds.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from locatvit.ops.attention.request import Request


def why_not(request: Request) -> str | None:
    """The reason for which FlexAttention cannot serve a request, or None."""
    on_cpu = request.device_type == "cpu"
    reasons = {
        f"FlexAttention runs on CUDA devices and CPUs, and this is {request.device_type}": (
            request.device_type not in ("cuda", "cpu")
        ),
        "FlexAttention has no backward on a CPU; use it under torch.no_grad()": on_cpu and request.needs_grad,
        "FlexAttention has no dropout": request.dropout_p > 0,
        "FlexAttention has no float64": request.dtype == torch.float64,
        "FlexAttention takes no heads narrower than 16": request.head_dim < 16,
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


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
    """Z = softmax(q kᵀ · scale + S + attn_bias) v (Eq. 4)."""
    key = (
        q.shape,
        k.dtype,
        v.dtype,
        num_prefix_tokens,
        row_factor.shape,
        None if attn_bias is None else attn_bias.shape,
    )
    attend = _flex if torch.compiler.is_compiling() else _compiled((*key, torch.is_grad_enabled()))
    q, k = q.to(v.dtype), k.to(v.dtype)
    return attend(q, k, v, row_factor.contiguous(), column_factor.contiguous(), num_prefix_tokens, attn_bias, scale)


def _flex(
    q: Tensor, k: Tensor, v: Tensor, row: Tensor, column: Tensor, prefix: int, attn_bias: Tensor | None, scale: float
) -> Any:
    from torch.nn.attention.flex_attention import flex_attention  # here: a third of a second to import

    width = column.shape[-1]

    def add_locality(score: Tensor, image: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        # an index outside the patches reads any patch, and is not used
        patch, other = (query - prefix).clamp(min=0), (key - prefix).clamp(min=0)
        bias = row[image, head, patch, other // width] * column[image, head, patch, other % width]
        score = score + torch.where((query >= prefix) & (key >= prefix), bias, 0.0)
        if attn_bias is None:
            return score
        # a size of 1 is broadcast, and a batch of fewer images repeated
        places = zip((image, head, query, key), attn_bias.shape, strict=True)
        return score + attn_bias[tuple(index % size for index, size in places)]

    return flex_attention(q, k, v, score_mod=add_locality, scale=scale)


@functools.lru_cache(maxsize=64)
def _compiled(key: tuple[Any, ...]) -> Callable[..., Any]:
    """One for each shape: after some shapes of one function torch would give up compiling it, and make the logits."""

    def flex(*arguments: Any) -> Any:
        return _flex(*arguments)

    # a code object of its own, which torch counts the shapes of
    flex.__code__ = flex.__code__.replace(co_name=f"flex_{abs(hash(key))}")
    return torch.compile(flex, dynamic=False, fullgraph=True)
