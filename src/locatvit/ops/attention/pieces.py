"""Attention with the locality bias on a CPU: the attention logits of a piece at a time, in cache.

Order of this file: products, forward, backward, registration, autograd. How a call is cut into pieces is in
``plan.py``, the mathematics in README.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from locatvit.ops.attention.plan import Logits, Piece, Plan, compute_dtype, room
from locatvit.ops.attention.request import empty_like_tokens

# Bytes of the logits of a piece, of which the backward pass has two rooms: measured on 2 cores with 1 MiB of L2 cache
# each and 32 MiB of L3 between them.
_PIECE_BYTES = 5 << 20
_LOG2_E = math.log2(math.e)


class _Parts(NamedTuple):
    """What is read of the tensors of a piece: [n, queries, K], [n, L, K] twice, [n, patches, h, 1], [n, patches, 1, w].

    Tokens are in at least float32.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    row: Tensor
    column: Tensor


class _Rooms:
    """The logits that the pieces of one call write, one after another, in the same memory."""

    def __init__(self, plan: Plan, row: Tensor, column: Tensor, num_prefix_tokens: int, dtype: torch.dtype) -> None:
        self._plan, self._num_prefix_tokens, self._dtype = plan, num_prefix_tokens, dtype
        self._grid_size = row.shape[-1], column.shape[-1]
        # ``gaussian_factors`` lays narrow grids out with patches as neighbours, and so must what is made of them
        self._by_query = row.stride(-1) > row.stride(-2)
        self._made: dict[tuple[Any, ...], Logits] = {}
        self._taken = 0

    def named(self, name: str, piece: Piece, parts: _Parts) -> Logits:
        """Room that the next piece takes again; made once for all pieces of one form."""
        shape, prefix = _shape(parts), self._plan.num_prefix_queries(piece)
        if (name, shape, prefix) not in self._made:
            memory = room(name, shape[0] * shape[1] * shape[2], self._dtype)
            self._made[name, shape, prefix] = self._inside(memory, piece, parts)
        return self._made[name, shape, prefix]

    def kept(self, memory: Tensor, piece: Piece, parts: _Parts) -> Logits:
        """The next piece's own room in the memory of all."""
        start, self._taken = self._taken, self._taken + math.prod(_shape(parts))
        return self._inside(memory[start : self._taken], piece, parts)

    def _inside(self, memory: Tensor, piece: Piece, parts: _Parts) -> Logits:
        prefix = self._plan.num_prefix_queries(piece)
        return Logits(memory, _shape(parts), self._by_query, self._grid_size, prefix, self._num_prefix_tokens)


def _shape(parts: _Parts) -> tuple[int, int, int]:
    return (*parts.q.shape[:2], parts.k.shape[1])


def _cut(plan: Plan, q: Tensor, k: Tensor, v: Tensor, row: Tensor, column: Tensor) -> Iterator[_Parts]:
    """Of every piece; what is made more precise lives as long as its piece."""
    of_tokens = plan.of_queries(q), plan.of_keys(k), plan.of_keys(v)
    of_factors = plan.of_factor(row[..., :, None]), plan.of_factor(column[..., None, :])
    for parts in zip(*of_tokens, *of_factors, strict=True):
        yield _Parts(_precise(parts[0]), _precise(parts[1]), _precise(parts[2]), *parts[3:])


def _precise(tensor: Tensor) -> Tensor:
    dtype = compute_dtype(tensor)
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


def _product(a: Tensor, b: Tensor, *, alpha: float = 1.0) -> Tensor:
    """alpha a b, [n, m, K] from [n, m, L] and [n, L, K]; the next one takes its memory."""
    shape = (*a.shape[:-1], b.shape[-1])
    product = room("product", math.prod(shape), a.dtype).view(shape)
    return torch.baddbmm(product, a, b, beta=0, alpha=alpha, out=product)


def _write_outer(logits: Logits, a: Tensor, b: Tensor, *, alpha: float = 1.0) -> None:
    """logits = alpha a bᵀ, whichever way they lie in memory."""
    if logits.by_query:
        a, b = b, a
    torch.baddbmm(logits.in_memory, a, b.mT, beta=0, alpha=alpha, out=logits.in_memory)


def _write_logits(
    logits: Logits, parts: _Parts, plan: Plan, piece: Piece, attn_bias: Tensor | None, scale: float
) -> None:
    """(q kᵀ · scale + S + attn_bias) log2 e of a piece."""
    _write_outer(logits, parts.q, parts.k, alpha=scale * _LOG2_E)
    logits.patches.addcmul_(parts.row, parts.column, value=_LOG2_E)
    if attn_bias is not None:
        for part, bias in plan.with_bias(piece, logits.whole, attn_bias):
            part.add_(bias, alpha=_LOG2_E)


def _exponentiate(logits: Logits, *, may_exclude_all: bool) -> tuple[Tensor, Tensor]:
    """2 ** (logits - their maximum) in place; that maximum and the sum for each query, [n, queries, 1].

    By single steps: torch's softmax takes half as long again, for its exponential is slower than ``exp2``.

    Args:
        may_exclude_all: a query may be left without a key, its logits all -inf; what it gets is zero then.
    """
    maximum = logits.in_memory.amax(logits.keys_dim, keepdim=True)
    if may_exclude_all:
        maximum.clamp_(min=torch.finfo(maximum.dtype).min)
    total = logits.in_memory.sub_(maximum).exp2_().sum(logits.keys_dim, keepdim=True)
    if may_exclude_all:
        total.clamp_(min=torch.finfo(total.dtype).tiny)
    return (maximum.mT, total.mT) if logits.by_query else (maximum, total)


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    row: Tensor,
    column: Tensor,
    attn_bias: Tensor | None,
    num_prefix_tokens: int,
    scale: float,
    is_training: bool,
) -> tuple[Tensor, Tensor]:
    """softmax(q kᵀ · scale + S + attn_bias) v, [B, H, L, K], piece by piece; and what ``_empty_kept`` names."""
    out, kept = empty_like_tokens(q), _empty_kept(q, is_training)
    plan = Plan(q, num_prefix_tokens, _PIECE_BYTES)
    rooms = _Rooms(plan, row, column, num_prefix_tokens, compute_dtype(q))
    keep = is_training and worth_keeping(q)
    parts_of_out, sums = plan.of_queries(out), plan.of_queries(kept[..., None]) if is_training and not keep else []
    for index, (piece, parts) in enumerate(zip(plan.pieces, _cut(plan, q, k, v, row, column), strict=True)):
        weights = rooms.kept(kept, piece, parts) if keep else rooms.named("weights", piece, parts)
        _write_logits(weights, parts, plan, piece, attn_bias, scale)
        maximum, total = _exponentiate(weights, may_exclude_all=attn_bias is not None)
        # fewer numbers to divide than there are weights; in every mode, so that all give the same bits
        torch.div(_product(weights.whole, parts.v), total, out=parts_of_out[index])
        if keep:
            weights.whole.div_(total)
        elif sums:
            torch.add(total.log2_(), maximum, out=sums[index])
    return out, kept


def worth_keeping(q: Tensor) -> bool:
    """Whether the weights take no more memory than q, k, v and the output, so that all stays linear in L.

    To make them again adds a product and an exponential to the four products of the backward pass.
    """
    num_tokens, head_dim = q.shape[2:]
    return num_tokens * compute_dtype(q).itemsize <= 4 * head_dim * q.element_size()


def _empty_kept(q: Tensor, is_training: bool) -> Tensor:
    """Room for what the backward pass reads: the weights, B H L L, if worth it, else log2 of their sums, [B, H, L]."""
    batch, num_heads, num_tokens, _ = q.shape
    shape = (batch * num_heads * num_tokens**2,) if worth_keeping(q) else (batch, num_heads, num_tokens)
    return q.new_empty(shape if is_training else 0, dtype=compute_dtype(q))


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
    """Gradients of q, k, v, row, column and attn_bias; empty where nobody ``needs`` one."""
    grads = _empty_gradients(q, row, column, attn_bias, needs)
    if needs[5]:
        grads[5].zero_()
    plan = Plan(q, num_prefix_tokens, _PIECE_BYTES)
    rooms, parts_of_grads = _Rooms(plan, row, column, num_prefix_tokens, compute_dtype(q)), _gradient_parts(plan, grads)
    is_kept = worth_keeping(q)
    grads_out, sums = plan.of_queries(grad_out), [] if is_kept else plan.of_queries(kept[..., None])
    for index, (piece, parts) in enumerate(zip(plan.pieces, _cut(plan, q, k, v, row, column), strict=True)):
        weights = rooms.kept(kept, piece, parts) if is_kept else rooms.named("weights", piece, parts)
        if not is_kept:
            _write_logits(weights, parts, plan, piece, attn_bias, scale)
            weights.whole.sub_(sums[index]).exp2_()
        grad_logits = rooms.named("grad_logits", piece, parts)
        own = [part[index] if part else None for part in parts_of_grads]
        _products_backward(
            weights, grad_logits, _precise(grads_out[index]), parts, own[:3], scale, add=piece.queries.start > 0
        )
        if own[3] is not None and own[4] is not None:
            # what is kept may be needed by another backward pass
            product = rooms.named("weights", piece, parts) if is_kept else weights
            _factors_backward(grad_logits, product, parts, own[3], own[4])
        if needs[5]:
            for part, grad in plan.with_bias(piece, grad_logits.whole, grads[5]):
                grad += part.sum_to_size(grad.shape)
    return _rounded(grads, q, attn_bias)


def _empty_gradients(
    q: Tensor, row: Tensor, column: Tensor, attn_bias: Tensor | None, needs: list[bool]
) -> list[Tensor]:
    tokens = [q.new_empty(q.shape, dtype=compute_dtype(q)) if need else row.new_empty(0) for need in needs[:3]]
    factors = [torch.empty_like(x) if needs[3] or needs[4] else row.new_empty(0) for x in (row, column)]
    of_bias = row.new_empty(0)
    if needs[5] and attn_bias is not None:
        # a sum over many pieces: in half precision it would lose what the later ones add
        of_bias = torch.empty_like(attn_bias, dtype=compute_dtype(attn_bias))
    return [*tokens, *factors, of_bias]


def _rounded(grads: list[Tensor], q: Tensor, attn_bias: Tensor | None) -> list[Tensor]:
    """In the precision of what they belong to."""
    of_bias = grads[5] if attn_bias is None else grads[5].to(attn_bias.dtype)
    return [*(grad.to(q.dtype) for grad in grads[:3]), *grads[3:5], of_bias]


def _gradient_parts(plan: Plan, grads: list[Tensor]) -> list[list[Tensor]]:
    """Those of q, k, v, row and column by pieces; an empty list where there is none."""
    cuts = (plan.of_queries, plan.of_keys, plan.of_keys, plan.of_factor, plan.of_factor)
    return [cut(grad) if grad.numel() else [] for cut, grad in zip(cuts, grads, strict=False)]


def _products_backward(
    weights: Logits,
    grad_logits: Logits,
    grad_out: Tensor,
    parts: _Parts,
    grads: list[Tensor | None],
    scale: float,
    *,
    add: bool,
) -> None:
    """Writes the gradient of the logits, and those of q, k and v that are wanted.

    Args:
        add: an earlier piece of these heads has written the gradients of k and v.
    """
    grad_q, grad_k, grad_v = grads
    if grad_v is not None:
        _write(grad_v, _product(weights.whole.mT, grad_out), add=add)
    _write_outer(grad_logits, grad_out, parts.v)
    _softmax_backward(grad_logits, weights)
    if grad_q is not None:
        grad_q.copy_(_product(grad_logits.whole, parts.k, alpha=scale))
    if grad_k is not None:
        _write(grad_k, _product(grad_logits.whole.mT, parts.q, alpha=scale), add=add)


def _write(part: Tensor, product: Tensor, *, add: bool) -> None:
    (part.add_ if add else part.copy_)(product)


def _softmax_backward(grad: Logits, weights: Logits) -> None:
    """In place: the gradient of the logits, weights * (grad - sum over keys of weights * grad)."""
    torch.ops.aten._softmax_backward_data.out(
        grad.in_memory, weights.in_memory, grad.keys_dim, grad.in_memory.dtype, grad_input=grad.in_memory
    )


def _factors_backward(
    grad_logits: Logits, product: Logits, parts: _Parts, grad_row: Tensor, grad_column: Tensor
) -> None:
    """d row = sum over columns of d logits * column, and the other way round."""
    torch.sum(torch.mul(grad_logits.patches, parts.column, out=product.patches), -1, out=grad_row)
    torch.sum(torch.mul(grad_logits.patches, parts.row, out=product.patches), -2, out=grad_column)


# Registered so that torch.compile sees one node, with shapes but no values. The kernels are called through the
# dispatcher alone: torch.library.custom_op costs 0.1 ms a call, 1 % of a small ViT.
_TENSORS = "Tensor q, Tensor k, Tensor v, Tensor row, Tensor column, Tensor? attn_bias"
_library = torch.library.Library("locatvit", "DEF")
_library.define(f"pieces_forward({_TENSORS}, int num_prefix_tokens, float scale, bool is_training) -> (Tensor, Tensor)")
_library.define(
    f"pieces_backward(Tensor grad_out, {_TENSORS}, Tensor kept, int num_prefix_tokens, float scale, "
    "bool[] needs) -> Tensor[]"
)
_library.impl("pieces_forward", forward, "CPU")
_library.impl("pieces_backward", backward, "CPU")


@torch.library.register_fake("locatvit::pieces_forward", lib=_library)
def _(q: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return empty_like_tokens(q), _empty_kept(q, rest[-1])


@torch.library.register_fake("locatvit::pieces_backward", lib=_library)
def _(grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, row: Tensor, column: Tensor, *rest: Any) -> list[Tensor]:
    attn_bias, needs = rest[0], rest[-1]
    return _rounded(_empty_gradients(q, row, column, attn_bias, needs), q, attn_bias)


class PiecewiseAttention(torch.autograd.Function):
    """softmax(q kᵀ · scale + S + attn_bias) v with gradients, in memory linear in the number of tokens."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        *tensors, num_prefix_tokens, scale = arguments
        out, kept = torch.ops.locatvit.pieces_forward(*arguments, any(ctx.needs_input_grad))
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
