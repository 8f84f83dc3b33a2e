"""The matrix products of a piece, and what of q, k and v goes into them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from locatvit.ops.attention.pieces.plan import Logits, Plan, compute_dtype
from locatvit.ops.attention.pieces.scratch import room, views
from locatvit.ops.attention.pieces.sources import Source


class Parts(NamedTuple):
    """What is read of the tensors of a piece: [m, n, queries, K], [m, n, L or more, K] twice. In at least float32."""

    q: Tensor
    k: Tensor
    v: Tensor


def cut(plan: Plan, source: Source, q: Tensor, k: Tensor, v: Tensor, *, extend_values: bool = False) -> Iterator[Parts]:
    """Of every piece; what is made more precise lives as long as its piece.

    Args:
        extend_values: values of zero for the keys that predict.
    """
    of_tokens = plan.of_queries(q), plan.of_keys(k), plan.of_keys(v)
    further_keys, further_values = source.further_keys, source.further_values if extend_values else None
    for q_part, k_part, v_part in zip(*of_tokens, strict=True):
        k_part = _extended("keys", k_part, further_keys)
        v_part = _extended("values", v_part, further_values)
        yield Parts(precise(q_part), k_part, v_part)


def _extended(name: str, tokens: Tensor, further: Tensor | None) -> Tensor:
    """The tokens, or [m, n, L + further, K]: a copy, which products read faster than the host's memory, and more.

    Args:
        further: [further, K], or None where there are none.
    """
    if further is None:
        return precise(tokens)
    m, n, num_tokens, width = tokens.shape
    shape = (m, n, num_tokens + len(further), width)
    whole, first, rest = views((name, shape, further.dtype), lambda: _split_room(name, shape, further))
    first.copy_(tokens)
    rest.copy_(further)
    return whole


def _split_room(name: str, shape: tuple[int, ...], further: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    whole = room(name, math.prod(shape), further.dtype).view(shape)
    return whole, whole[:, :, : -len(further)], whole[:, :, -len(further) :]


def precise(tensor: Tensor) -> Tensor:
    dtype = compute_dtype(tensor)
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


def product(a: Tensor, b: Tensor, *, alpha: float = 1.0, add: bool = False) -> Tensor:
    """alpha a b, [m, n, rows, K] from [m, n, rows, L] and [m, n, L, K]; the next one takes its memory.

    Args:
        add: to the last one, of the same shape.
    """
    shape = (*a.shape[:-1], b.shape[-1])
    whole, parts = views(("product", shape, a.dtype), lambda: _room_of(shape, a.dtype))
    _write(parts, a, b, alpha, add)
    return whole


def write_product(out: Tensor, a: Tensor, b: Tensor, *, alpha: float = 1.0, add: bool) -> None:
    """The same into memory of the caller's, or added to what is there."""
    parts = out.unbind(0)
    if parts[0].is_contiguous():
        _write(parts, a, b, alpha, add)
    else:  # there torch would make the products one by one
        (out.add_ if add else out.copy_)(product(a, b, alpha=alpha))


def _write(parts: Sequence[Tensor], a: Tensor, b: Tensor, alpha: float, add: bool) -> None:
    for out, one, other in zip(parts, a.unbind(0), b.unbind(0), strict=True):
        torch.baddbmm(out, one, other, beta=int(add), alpha=alpha, out=out)


def _room_of(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, tuple[Tensor, ...]]:
    whole = room("product", math.prod(shape), dtype).view(shape)
    return whole, whole.unbind(0)


def write_outer(logits: Logits, a: Tensor, b: Tensor, *, alpha: float = 1.0) -> None:
    """logits = alpha a bᵀ, with all keys, whichever way they lie in memory."""
    if logits.form.by_query:
        a, b = b, a
    for out, one, other in zip(logits.parts, a.unbind(0), b.mT.unbind(0), strict=True):
        torch.baddbmm(out, one, other, beta=0, alpha=alpha, out=out)
