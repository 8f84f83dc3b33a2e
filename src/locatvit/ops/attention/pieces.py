"""Attention with the locality bias on a CPU: the bias of a piece of the queries at a time, in cache.

Order of this file: pieces, forward, backward, registration, autograd. The mathematics is in README.md.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# Bytes of bias that are alive at a time. Measured on 2 cores with 1 MiB of L2 cache each: the forward pass writes and
# reads its piece once and is flat from 4 to 8 MiB; the backward pass goes over two of them several times.
_FORWARD_BYTES = 6 << 20
_BACKWARD_BYTES = 3 << 20
# Queries that torch's CPU kernel takes at a time when it is given a piece of this size.
_QUERY_BLOCK = 64


@dataclass(frozen=True)
class _Piece:
    """Some images and some of their queries, prefix queries first where there are any."""

    images: slice
    queries: slice
    num_prefix_tokens: int

    @property
    def num_prefix_queries(self) -> int:
        return min(
            max(self.num_prefix_tokens - self.queries.start, 0), self.queries.stop - self.queries.start
        )

    @property
    def patches(self) -> slice:
        """The patches among the queries, as indices into the factors."""
        first = self.queries.start + self.num_prefix_queries - self.num_prefix_tokens
        return slice(first, first + self.queries.stop - self.queries.start - self.num_prefix_queries)

    def of_queries(self, tensor: Tensor) -> Tensor:
        """This piece of a tensor [B, H, L, ...], or of one that broadcasts to it."""
        images = self.images if tensor.shape[0] > 1 else slice(None)
        queries = self.queries if tensor.shape[2] > 1 else slice(None)
        return tensor[images, :, queries]

    def of_factor(self, factor: Tensor) -> Tensor:
        return factor[self.images, :, self.patches]

    def of_patches(self, logits: Tensor, grid_size: tuple[int, int]) -> Tensor:
        """The view [b, H, n, h, w] of logits [b, H, queries, L] in which query and key are patches."""
        return logits[:, :, self.num_prefix_queries :, self.num_prefix_tokens :].unflatten(-1, grid_size)


def _pieces(q: Tensor, num_prefix_tokens: int, budget: int) -> Iterator[_Piece]:
    """All images and as many queries as fit the budget of bytes, or else fewer images."""
    batch, heads, tokens, _ = q.shape
    row_bytes = 4 * heads * tokens
    queries = budget // (row_bytes * batch) // _QUERY_BLOCK * _QUERY_BLOCK
    queries = min(tokens, max(_QUERY_BLOCK, queries))
    images = max(1, min(batch, budget // (row_bytes * queries)))
    for image in range(0, batch, images):
        for query in range(0, tokens, queries):
            yield _Piece(
                slice(image, min(batch, image + images)),
                slice(query, min(tokens, query + queries)),
                num_prefix_tokens,
            )


_scratch = threading.local()


def _buffer(index: int, pieces: list[_Piece], q: Tensor, dtype: torch.dtype) -> Tensor:
    """Room for the logits of any of the pieces.

    Kept for the next call, a few MiB a thread: fresh memory of this size costs more in page faults than the bias
    costs in arithmetic.
    """
    size = max(math.prod(_logits_shape(piece, q)) for piece in pieces)
    key = (index, dtype)
    kept: dict[tuple[int, torch.dtype], Tensor] = _scratch.__dict__.setdefault("buffers", {})
    if key not in kept or kept[key].numel() < size:
        with torch.inference_mode(False):  # what is made in inference mode cannot be written outside of it
            kept[key] = torch.empty(size, dtype=dtype)
    return kept[key]


def _logits_shape(piece: _Piece, q: Tensor) -> tuple[int, int, int, int]:
    images, queries = piece.images.stop - piece.images.start, piece.queries.stop - piece.queries.start
    return images, q.shape[1], queries, q.shape[2]


def _write_bias(
    bias: Tensor,
    piece: _Piece,
    row: Tensor,
    column: Tensor,
    attn_bias: Tensor | None,
    start: Tensor | None = None,
) -> None:
    """bias = start + S + attn_bias. ``start`` is one number a query, [b, H, queries, 1], or None for zero."""
    prefix_queries, patches = (
        piece.num_prefix_queries,
        piece.of_patches(bias, (row.shape[-1], column.shape[-1])),
    )
    row, column = piece.of_factor(row)[..., :, None], piece.of_factor(column)[..., None, :]
    bias[:, :, :prefix_queries] = 0 if start is None else start[:, :, :prefix_queries]
    bias[..., : piece.num_prefix_tokens] = 0 if start is None else start
    if start is None:
        torch.mul(row, column, out=patches)
    else:
        torch.addcmul(start[:, :, prefix_queries:, :, None], row, column, out=patches)
    if attn_bias is not None:
        bias += piece.of_queries(attn_bias)


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    row: Tensor,
    column: Tensor,
    attn_bias: Tensor | None,
    num_prefix_tokens: int,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """(out [B, H, L, K], logsumexp [B, H, L])."""
    out, logsumexp = _empty_outputs(q)
    pieces = list(_pieces(q, num_prefix_tokens, _FORWARD_BYTES))
    buffer = _buffer(0, pieces, q, row.dtype)
    for piece in pieces:
        shape = _logits_shape(piece, q)
        bias = buffer[: math.prod(shape)].view(shape)
        _write_bias(bias, piece, row, column, attn_bias)
        part = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            piece.of_queries(q), k[piece.images], v[piece.images], attn_mask=bias, scale=scale
        )
        piece.of_queries(logsumexp).copy_(part[1])
        if len(pieces) == 1 and part[0].stride() == out.stride():
            return part[0], logsumexp
        piece.of_queries(out).copy_(part[0])
    return out, logsumexp


def _empty_outputs(q: Tensor) -> tuple[Tensor, Tensor]:
    batch, heads, tokens, head_dim = q.shape
    # [B, L, H, K] in memory, as torch's kernel gives it and the reshape after attention wants it
    out = q.new_empty(batch, tokens, heads, head_dim).transpose(1, 2)
    return out, q.new_empty(batch, heads, tokens, dtype=torch.promote_types(q.dtype, torch.float32))


def backward(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    row: Tensor,
    column: Tensor,
    attn_bias: Tensor | None,
    out: Tensor,
    logsumexp: Tensor,
    num_prefix_tokens: int,
    scale: float,
    needs_grad_bias: bool,
) -> list[Tensor]:
    """Gradients of q, k, v, row, column and attn_bias; nothing N x N was kept, the weights are made again."""
    dtype = logsumexp.dtype
    q_scaled = (q.to(dtype) * scale).contiguous()
    k_, v_, grad_out_ = (x.to(dtype).contiguous() for x in (k, v, grad_out))
    delta = (grad_out_ * out).sum(-1, keepdim=True)
    grads = [torch.zeros_like(x) for x in (q_scaled, k_, v_, row, column)]
    grads.append(
        torch.zeros_like(attn_bias) if needs_grad_bias and attn_bias is not None else row.new_empty(0)
    )
    pieces = list(_pieces(q, num_prefix_tokens, _BACKWARD_BYTES))
    buffers = [_buffer(index, pieces, q, dtype) for index in range(2)]
    for piece in pieces:
        shape = _logits_shape(piece, q)
        weights, grad_logits = (buffer[: math.prod(shape)].view(shape) for buffer in buffers)
        _write_bias(weights, piece, row, column, attn_bias, -piece.of_queries(logsumexp)[..., None])
        grad_logits.copy_(-piece.of_queries(delta).expand(shape))
        tensors = (
            piece.of_queries(q_scaled),
            k_[piece.images],
            v_[piece.images],
            piece.of_queries(grad_out_),
        )
        grad_views = (piece.of_queries(grads[0]), grads[1][piece.images], grads[2][piece.images])
        _dot_product_backward(weights, grad_logits, tensors, grad_views)
        _factors_backward(grad_logits, piece, (row, column), (grads[3], grads[4]))
        if needs_grad_bias:
            grad_bias = piece.of_queries(grads[5])
            grad_bias += grad_logits.sum_to_size(grad_bias.shape)
    grads[0] *= scale
    return [*(grad.to(q.dtype) for grad in grads[:3]), *grads[3:]]


def _dot_product_backward(
    weights: Tensor, grad_logits: Tensor, tensors: tuple[Tensor, ...], grads: tuple[Tensor, ...]
) -> None:
    """On entry weights = bias - logsumexp and grad_logits = -delta; both are completed in place."""
    weights, grad_logits = weights.flatten(0, 1), grad_logits.flatten(0, 1)
    q, k, v, grad_out = (tensor.flatten(0, 1) for tensor in tensors)
    grad_q, grad_k, grad_v = grads
    weights.baddbmm_(q, k.mT).exp_()
    grad_v.flatten(0, 1).baddbmm_(weights.mT, grad_out)
    grad_logits.baddbmm_(grad_out, v.mT).mul_(weights)
    grad_q.copy_(torch.bmm(grad_logits, k).view(grad_q.shape))
    grad_k.flatten(0, 1).baddbmm_(grad_logits.mT, q)


def _factors_backward(
    grad_logits: Tensor, piece: _Piece, factors: tuple[Tensor, Tensor], grads: tuple[Tensor, Tensor]
) -> None:
    """d row = sum over columns of d logits * column, and the other way round."""
    row, column = (piece.of_factor(factor) for factor in factors)
    grad_row, grad_column = (piece.of_factor(grad) for grad in grads)
    patches = piece.of_patches(grad_logits, (row.shape[-1], column.shape[-1]))
    grad_row.copy_((patches * column[..., None, :]).sum(-1))
    grad_column.copy_((patches * row[..., :, None]).sum(-2))


# Registered so that torch.compile sees one node, with shapes but no values. The kernels are called through the
# dispatcher alone: torch.library.custom_op costs 0.1 ms a call, 1 % of a small ViT.
_TENSORS = "Tensor q, Tensor k, Tensor v, Tensor row, Tensor column, Tensor? attn_bias"
_library = torch.library.Library("locatvit", "DEF")
_library.define(f"pieces_forward({_TENSORS}, int num_prefix_tokens, float scale) -> (Tensor, Tensor)")
_library.define(
    f"pieces_backward(Tensor grad_out, {_TENSORS}, Tensor out, Tensor logsumexp, int num_prefix_tokens, "
    "float scale, bool needs_grad_bias) -> Tensor[]"
)
_library.impl("pieces_forward", forward, "CPU")
_library.impl("pieces_backward", backward, "CPU")


@torch.library.register_fake("locatvit::pieces_forward", lib=_library)
def _(q: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return _empty_outputs(q)


@torch.library.register_fake("locatvit::pieces_backward", lib=_library)
def _(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    row: Tensor,
    column: Tensor,
    attn_bias: Tensor | None,
    *_: Any,
) -> list[Tensor]:
    contiguous = [x.new_empty(x.shape) for x in (q, k, v)]
    return [*contiguous, row.new_empty(row.shape), column.new_empty(column.shape), row.new_empty(0)]


class PiecewiseAttention(torch.autograd.Function):
    """softmax(q kᵀ · scale + S + attn_bias) v with gradients, in memory linear in the number of tokens."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        *tensors, num_prefix_tokens, scale = arguments
        out, logsumexp = torch.ops.locatvit.pieces_forward(*arguments)
        ctx.save_for_backward(*tensors, out, logsumexp)
        ctx.num_prefix_tokens, ctx.scale = num_prefix_tokens, scale
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        grads = torch.ops.locatvit.pieces_backward(
            grad_out, *ctx.saved_tensors, ctx.num_prefix_tokens, ctx.scale, ctx.needs_input_grad[5]
        )
        needed = zip(grads, ctx.needs_input_grad, strict=False)
        return (*(grad if need else None for grad, need in needed), None, None)
