"""Attention with the locality bias on a CPU: the attention logits of a piece at a time, in cache.

Order of this file: pieces, products, forward, backward, registration, autograd. The mathematics is in README.md.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

# Bytes of logits that are alive at a time, and the least queries of one head that are worth a matrix product.
# Measured on 2 cores with 1 MiB of L2 cache each and 32 MiB of L3 between them.
_FORWARD_BYTES = 5 << 20
_BACKWARD_BYTES = 9 << 20
_QUERY_BLOCK = 64


@dataclass(frozen=True)
class _Piece:
    """Heads of one image; or one head of some images; or, where not even that fits, some queries of one head.

    So the heads and images of a piece are one axis of memory with one stride, as the batched products need it: the
    queries, keys and values are read where the host's projection wrote them.
    """

    images: slice
    heads: slice
    queries: slice
    num_prefix_tokens: int

    @property
    def num_prefix_queries(self) -> int:
        return max(min(self.num_prefix_tokens, self.queries.stop) - self.queries.start, 0)

    def of_queries(self, tensor: Tensor) -> Tensor:
        """This piece of a tensor [B, H, L, ...], or of one that broadcasts to it: [b, h, queries, ...]."""
        whole = slice(None)
        own = (self.images, self.heads, self.queries)
        return tensor[tuple(x if n > 1 else whole for x, n in zip(own, tensor.shape, strict=False))]

    def of_keys(self, tensor: Tensor) -> Tensor:
        return tensor[self.images, self.heads]

    def of_factor(self, factor: Tensor) -> Tensor:
        """The factors of the patches among the queries."""
        first = self.queries.start + self.num_prefix_queries - self.num_prefix_tokens
        return factor[self.images, self.heads, first : self.queries.stop - self.num_prefix_tokens]

    def with_heads(self, logits: Tensor) -> Tensor:
        """[b * h, queries, L] as [b, h, queries, L]."""
        return logits.unflatten(0, (-1, self.heads.stop - self.heads.start))

    def with_bias(self, logits: Tensor, attn_bias: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Logits [b, h, queries, L], and the bias that is theirs and broadcasts to them.

        In as many parts as it takes: a bias of fewer images comes again and again.
        """
        logits, period = self.with_heads(logits), attn_bias.shape[0]
        if period == 1:
            yield logits, self.of_queries(attn_bias)
            return
        start = self.images.start
        while start < self.images.stop:
            first = start % period
            stop = min(self.images.stop, start - first + period)
            of_bias = replace(self, images=slice(first, first + stop - start))
            yield logits[start - self.images.start : stop - self.images.start], of_bias.of_queries(attn_bias)
            start = stop

    def of_patches(self, logits: Tensor, grid_size: tuple[int, int]) -> Tensor:
        """The view [b, h, n, grid height, grid width] of logits in which query and key are patches."""
        patches = logits[:, self.num_prefix_queries :, self.num_prefix_tokens :]
        return self.with_heads(patches).unflatten(-1, grid_size)


def _pieces(q: Tensor, num_prefix_tokens: int, budget: int) -> list[_Piece]:
    batch, num_heads, tokens, _ = q.shape
    row_bytes = _compute_dtype(q).itemsize * tokens
    pairs = max(1, budget // (row_bytes * tokens))
    queries = tokens
    if row_bytes * tokens > budget:
        queries = max(_QUERY_BLOCK, budget // row_bytes // _QUERY_BLOCK * _QUERY_BLOCK)
    threads = torch.get_num_threads()
    # a product of many matrices gives whole ones to threads, a product of one is shared out inside
    if pairs > threads:
        pairs -= pairs % threads
    by_head = (batch % threads == 0, batch) > (num_heads % threads == 0, num_heads)
    return [
        _Piece(image, head, query, num_prefix_tokens)
        for image in _parts(batch, pairs if by_head else 1)
        for head in _parts(num_heads, 1 if by_head else pairs)
        for query in _parts(tokens, queries)
    ]


def _parts(length: int, size: int) -> Iterator[slice]:
    for start in range(0, length, size):
        yield slice(start, min(length, start + size))


_scratch = threading.local()


def _room(name: str, size: int, dtype: torch.dtype) -> Tensor:
    """Uninitialised memory, kept for the next call, a few MiB a thread.

    Fresh memory of this size costs more in page faults than the bias costs in arithmetic.
    """
    kept: dict[tuple[str, torch.dtype], Tensor] = _scratch.__dict__.setdefault("rooms", {})
    if (name, dtype) not in kept or kept[name, dtype].numel() < size:
        with torch.inference_mode(False):  # what is made in inference mode cannot be written outside of it
            kept[name, dtype] = torch.empty(size, dtype=dtype)
    return kept[name, dtype][:size]


def _room_for_logits(room: str | Tensor, piece: _Piece, q: Tensor, row: Tensor) -> Tensor:
    """Uninitialised logits of a piece, [b * h, queries, L], in a room of that name or in the memory given.

    Neighbours in memory are keys; or queries, if they are neighbours in the factors: see ``gaussian_factors``, which
    lays out narrow grids so.
    """
    images, heads, queries, _ = piece.of_queries(q).shape
    pairs, keys = images * heads, q.shape[2]
    if isinstance(room, str):
        room = _room(room, pairs * queries * keys, _compute_dtype(q))
    if row.stride(-1) > row.stride(-2):
        return room.view(pairs, keys, queries).mT
    return room.view(pairs, queries, keys)


def _pairs(tensor: Tensor) -> Tensor:
    """[b, h, n, K] of a piece as [b * h, n, K], in at least float32."""
    return tensor.flatten(0, 1).to(_compute_dtype(tensor))


def _compute_dtype(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _write_product(part: Tensor, a: Tensor, b: Tensor, *, alpha: float = 1.0, add: bool = False) -> None:
    """part = alpha a b, or part += alpha a b; part is [b, h, n, K], a and b have b * h in one axis."""
    room = _room("product", part.numel(), a.dtype).view(a.shape[0], *part.shape[2:])
    torch.baddbmm(room, a, b, beta=0, alpha=alpha, out=room)
    (part.add_ if add else part.copy_)(room.view(part.shape))


def _write_logits(logits: Tensor, a: Tensor, b: Tensor, *, alpha: float = 1.0, add: bool = False) -> None:
    """logits = alpha a bᵀ, or logits += alpha a bᵀ, whichever way they lie in memory."""
    if not logits.is_contiguous():
        logits, a, b = logits.mT, b, a
    torch.baddbmm(logits, a, b.mT, beta=float(add), alpha=alpha, out=logits)


def _in_memory_order(logits: Tensor) -> tuple[Tensor, int]:
    """A contiguous view of logits, and its dimension of the keys."""
    return (logits, -1) if logits.is_contiguous() else (logits.mT, -2)


def _weights(
    piece: _Piece,
    q: Tensor,
    k: Tensor,
    row: Tensor,
    column: Tensor,
    attn_bias: Tensor | None,
    scale: float,
    room: str | Tensor = "weights",
) -> Tensor:
    """softmax(q kᵀ · scale + S + attn_bias) of a piece, [b * h, queries, L], in ``room``."""
    logits = _room_for_logits(room, piece, q, row)
    logits[:, : piece.num_prefix_queries] = 0
    logits[..., : piece.num_prefix_tokens] = 0
    patches = piece.of_patches(logits, (row.shape[-1], column.shape[-1]))
    torch.mul(piece.of_factor(row)[..., :, None], piece.of_factor(column)[..., None, :], out=patches)
    if attn_bias is not None:
        for part, bias in piece.with_bias(logits, attn_bias):
            part.add_(bias)
    _write_logits(logits, _pairs(piece.of_queries(q)), _pairs(piece.of_keys(k)), alpha=scale, add=True)
    in_memory, keys = _in_memory_order(logits)
    dead = None
    if attn_bias is not None and attn_bias.numel() and attn_bias.min() == float("-inf"):
        dead = (logits == float("-inf")).all(dim=-1, keepdim=True)  # a query that may look nowhere
    torch.softmax(in_memory, keys, out=in_memory)
    return logits if dead is None else logits.masked_fill_(dead, 0)  # as torch's attention has it


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    row: Tensor,
    column: Tensor,
    attn_bias: Tensor | None,
    num_prefix_tokens: int,
    scale: float,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    """softmax(q kᵀ · scale + S + attn_bias) v, [B, H, L, K], and the softmax if it is to be kept, piece by piece."""
    out, kept = _empty_output(q), _empty_weights(q, keep)
    done = 0
    for piece in _pieces(q, num_prefix_tokens, _FORWARD_BYTES):
        size = _num_weights(piece, q)
        weights = _weights(piece, q, k, row, column, attn_bias, scale, kept[done : done + size] if keep else "weights")
        _write_product(piece.of_queries(out), weights, _pairs(piece.of_keys(v)))
        done += size
    return out, kept


def worth_keeping(q: Tensor) -> bool:
    """Whether the weights take no more memory than q, k, v and the output, so that all stays linear in L.

    To make them again would take a third of the backward pass.
    """
    num_tokens, head_dim = q.shape[2:]
    return num_tokens * _compute_dtype(q).itemsize <= 4 * head_dim * q.element_size()


def _num_weights(piece: _Piece, q: Tensor) -> int:
    images, heads, queries, _ = piece.of_queries(q).shape
    return images * heads * queries * q.shape[2]


def _empty_weights(q: Tensor, keep: bool) -> Tensor:
    batch, num_heads, num_tokens, _ = q.shape
    return q.new_empty(batch * num_heads * num_tokens**2 if keep else 0, dtype=_compute_dtype(q))


def _empty_output(q: Tensor) -> Tensor:
    """[B, L, H, K] in memory, as the reshape after attention wants it."""
    return q.new_empty(q.shape[0], q.shape[2], q.shape[1], q.shape[3]).transpose(1, 2)


def backward(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    row: Tensor,
    column: Tensor,
    attn_bias: Tensor | None,
    kept: Tensor,
    num_prefix_tokens: int,
    scale: float,
    needs: list[bool],
) -> list[Tensor]:
    """Gradients of q, k, v, row, column and attn_bias; empty where nobody ``needs`` one.

    Weights that were not kept are made again.
    """
    grads = _empty_gradients(q, row, column, attn_bias, needs)
    if needs[5]:
        grads[5].zero_()
    is_kept, done = kept.numel() > 0, 0
    for piece in _pieces(q, num_prefix_tokens, _FORWARD_BYTES if is_kept else _BACKWARD_BYTES):
        if is_kept:
            size = _num_weights(piece, q)
            weights = _room_for_logits(kept[done : done + size], piece, q, row)
            done += size
        else:
            weights = _weights(piece, q, k, row, column, attn_bias, scale)
        grad_logits = _products_backward(piece, weights, grad_out, (q, k, v), grads[:3], row, scale)
        if needs[3] or needs[4]:
            # what is kept may be needed by another backward pass
            room = _room_for_logits("weights", piece, q, row) if is_kept else weights
            _factors_backward(piece, grad_logits, room, (row, column), grads[3:5])
        if needs[5]:
            for part, grad in piece.with_bias(grad_logits, grads[5]):
                grad += part.sum_to_size(grad.shape)
    return [*(grad.to(q.dtype) for grad in grads[:3]), *grads[3:]]


def _empty_gradients(
    q: Tensor, row: Tensor, column: Tensor, attn_bias: Tensor | None, needs: list[bool]
) -> list[Tensor]:
    tokens = [q.new_empty(q.shape, dtype=_compute_dtype(q)) if need else row.new_empty(0) for need in needs[:3]]
    factors = [torch.empty_like(x) if needs[3] or needs[4] else row.new_empty(0) for x in (row, column)]
    of_bias = torch.empty_like(attn_bias) if needs[5] and attn_bias is not None else row.new_empty(0)
    return [*tokens, *factors, of_bias]


def _products_backward(
    piece: _Piece,
    weights: Tensor,
    grad_out: Tensor,
    tensors: tuple[Tensor, Tensor, Tensor],
    grads: list[Tensor],
    row: Tensor,
    scale: float,
) -> Tensor:
    """Writes the gradients of q, k, v, those that are not empty; returns that of the logits."""
    q, grad_out = _pairs(piece.of_queries(tensors[0])), _pairs(piece.of_queries(grad_out))
    k, v = (_pairs(piece.of_keys(tensor)) for tensor in tensors[1:])
    grad_q, grad_k, grad_v = grads
    add = piece.queries.start > 0  # an earlier piece of these heads has written
    grad_logits = _room_for_logits("grad_logits", piece, tensors[0], row)
    if grad_v.numel():
        _write_product(piece.of_keys(grad_v), weights.mT, grad_out, add=add)
    _write_logits(grad_logits, grad_out, v)
    _softmax_backward(grad_logits, weights)
    if grad_q.numel():
        _write_product(piece.of_queries(grad_q), grad_logits, k, alpha=scale)
    if grad_k.numel():
        _write_product(piece.of_keys(grad_k), grad_logits.mT, q, alpha=scale, add=add)
    return grad_logits


def _softmax_backward(grad_weights: Tensor, weights: Tensor) -> None:
    """In place: the gradient of the logits, weights * (grad_weights - sum over keys of weights * grad_weights)."""
    grad, keys = _in_memory_order(grad_weights)
    weights, _ = _in_memory_order(weights)
    torch.ops.aten._softmax_backward_data.out(grad, weights, keys, grad.dtype, grad_input=grad)


def _factors_backward(
    piece: _Piece, grad_logits: Tensor, room: Tensor, factors: tuple[Tensor, Tensor], grads: list[Tensor]
) -> None:
    """d row = sum over columns of d logits * column, and the other way round."""
    row, column = (piece.of_factor(factor) for factor in factors)
    grad_row, grad_column = (piece.of_factor(grad) for grad in grads)
    patches, product = (piece.of_patches(x, (row.shape[-1], column.shape[-1])) for x in (grad_logits, room))
    torch.sum(torch.mul(patches, column[..., None, :], out=product), -1, out=grad_row)
    torch.sum(torch.mul(patches, row[..., :, None], out=product), -2, out=grad_column)


# Registered so that torch.compile sees one node, with shapes but no values. The kernels are called through the
# dispatcher alone: torch.library.custom_op costs 0.1 ms a call, 1 % of a small ViT.
_TENSORS = "Tensor q, Tensor k, Tensor v, Tensor row, Tensor column, Tensor? attn_bias"
_library = torch.library.Library("locatvit", "DEF")
_library.define(f"pieces_forward({_TENSORS}, int num_prefix_tokens, float scale, bool keep) -> (Tensor, Tensor)")
_library.define(
    f"pieces_backward(Tensor grad_out, {_TENSORS}, Tensor kept, int num_prefix_tokens, float scale, bool[] needs) "
    "-> Tensor[]"
)
_library.impl("pieces_forward", forward, "CPU")
_library.impl("pieces_backward", backward, "CPU")


@torch.library.register_fake("locatvit::pieces_forward", lib=_library)
def _(q: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return _empty_output(q), _empty_weights(q, rest[-1])


@torch.library.register_fake("locatvit::pieces_backward", lib=_library)
def _(grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, row: Tensor, column: Tensor, *rest: Any) -> list[Tensor]:
    attn_bias, needs = rest[0], rest[-1]
    grads = _empty_gradients(q, row, column, attn_bias, needs)
    return [*(grad.to(q.dtype) for grad in grads[:3]), *grads[3:]]


class PiecewiseAttention(torch.autograd.Function):
    """softmax(q kᵀ · scale + S + attn_bias) v with gradients, in memory linear in the number of tokens."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        *tensors, num_prefix_tokens, scale = arguments
        keep = any(ctx.needs_input_grad) and worth_keeping(tensors[0])
        out, kept = torch.ops.locatvit.pieces_forward(*arguments, keep)
        ctx.save_for_backward(*tensors, kept)
        ctx.num_prefix_tokens, ctx.scale = num_prefix_tokens, scale
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        needs = list(ctx.needs_input_grad[:6])
        grads = torch.ops.locatvit.pieces_backward(
            grad_out, *ctx.saved_tensors, ctx.num_prefix_tokens, ctx.scale, needs
        )
        return (*(grad if need else None for grad, need in zip(grads, needs, strict=True)), None, None)
