"""Attention with the locality bias on a CPU: the attention logits of a piece at a time, in cache.

Order of this file: products, forward, backward, registration, autograd. How a call is cut into pieces is in
``plan.py``, where the bias comes from in ``piece_factors.py``, the mathematics in README.md.

Of both forms of the bias: ``first`` and ``second`` are its two factors; or, where there is a ``prediction``, weight and
bias of the layer that predicts it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from locatvit.ops.attention.piece_factors import LOG2_E, GivenFactors, PredictedFactors
from locatvit.ops.attention.plan import Logits, Plan, compute_dtype, logits_room, plan_of
from locatvit.ops.attention.request import empty_like_tokens
from locatvit.ops.attention.scratch import room, views
from locatvit.ops.prediction import PredictedGaussian, Prediction

# Bytes of the logits of a piece, of which the backward pass has two rooms: measured on 2 cores with 1 MiB of L2 cache
# each and 32 MiB of L3 between them.
_PIECE_BYTES = 5 << 20
# Sums of powers of two, of which no maximum has been taken away, between this and its inverse: they, and their products
# with values, are far from the ends of float32, and what was too small for it is nothing beside them.
_LEAST_SUM = 2.0**-60

_Source = GivenFactors | PredictedFactors


class _Parts(NamedTuple):
    """What is read of the tensors of a piece: [m, n, queries, K], [m, n, L or more, K] twice. In at least float32."""

    q: Tensor
    k: Tensor
    v: Tensor


def _source(
    plan: Plan,
    first: Tensor,
    second: Tensor,
    grid_size: Sequence[int],
    prediction: Sequence[float],
    scale: float,
    grads: Sequence[Tensor] = (),
) -> _Source:
    if not prediction:
        return GivenFactors(plan, first, second, grads)
    *numbers, clamp = prediction
    height, width = grid_size
    return PredictedFactors(plan, first, second, (height, width), Prediction.of(numbers), clamp, scale, grads)


def _cut(plan: Plan, source: _Source, q: Tensor, k: Tensor, v: Tensor, *, extend_v: bool = False) -> Iterator[_Parts]:
    """Of every piece; what is made more precise lives as long as its piece.

    Args:
        extend_v: values of zero for the keys that predict.
    """
    of_tokens = plan.of_queries(q), plan.of_keys(k), plan.of_keys(v)
    further_keys, further_values = source.further_keys, source.further_values if extend_v else None
    for piece, q_part, k_part, v_part in zip(plan.pieces, *of_tokens, strict=True):
        is_new = piece.queries.start == 0  # else the keys of the piece before are there
        k_part = _extended("keys", k_part, further_keys, is_new)
        v_part = _extended("values", v_part, further_values, is_new)
        yield _Parts(_precise(q_part), k_part, v_part)


def _extended(name: str, tokens: Tensor, further: Tensor | None, is_new: bool) -> Tensor:
    """The tokens, or [m, n, L + further, K]: a copy, which products read faster than the host's memory, and more.

    Args:
        further: [further, K], or None where there are none.
        is_new: whether tokens or what is further have changed.
    """
    if further is None:
        return _precise(tokens)
    m, n, num_tokens, width = tokens.shape
    shape = (m, n, num_tokens + len(further), width)
    whole, first, rest = views((name, shape, further.dtype), lambda: _split_room(name, shape, further))
    if is_new:
        first.copy_(tokens)
        rest.copy_(further)
    return whole


def _split_room(name: str, shape: tuple[int, ...], further: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    whole = room(name, math.prod(shape), further.dtype).view(shape)
    return whole, whole[:, :, : -len(further)], whole[:, :, -len(further) :]


def _precise(tensor: Tensor) -> Tensor:
    dtype = compute_dtype(tensor)
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


def _product(a: Tensor, b: Tensor, *, alpha: float = 1.0) -> Tensor:
    """alpha a b, [m, n, rows, K] from [m, n, rows, L] and [m, n, L, K]; the next one takes its memory."""
    shape = (*a.shape[:-1], b.shape[-1])
    whole, parts = views(("product", shape, a.dtype), lambda: _product_room(shape, a.dtype))
    for out, one, other in zip(parts, a.unbind(0), b.unbind(0), strict=True):
        torch.baddbmm(out, one, other, beta=0, alpha=alpha, out=out)
    return whole


def _product_room(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, tuple[Tensor, ...]]:
    whole = room("product", math.prod(shape), dtype).view(shape)
    return whole, whole.unbind(0)


def _write_outer(logits: Logits, a: Tensor, b: Tensor, *, alpha: float = 1.0) -> None:
    """logits = alpha a bᵀ, with all keys, whichever way they lie in memory."""
    if logits.form.by_query:
        a, b = b, a
    for out, one, other in zip(logits.parts, a.unbind(0), b.mT.unbind(0), strict=True):
        torch.baddbmm(out, one, other, beta=0, alpha=alpha, out=out)


def _write_logits(
    logits: Logits,
    parts: _Parts,
    source: _Source,
    plan: Plan,
    index: int,
    attn_bias: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """(q kᵀ · scale + S + attn_bias) log2 e of a piece; gives the factors of S."""
    _write_outer(logits, parts.q, parts.k, alpha=scale * LOG2_E)
    if isinstance(source, PredictedFactors):
        source.finish(logits)
    row, column = factors = source.of_piece(index, logits)
    logits.patches.addcmul_(row, column, value=LOG2_E)
    if attn_bias is not None:
        for part, bias in plan.with_bias(plan.pieces[index], logits.whole, attn_bias):
            part.add_(bias, alpha=LOG2_E)
    return factors


def _try_to_exponentiate(logits: Logits) -> Tensor | None:
    """2 ** logits in place, without the maximum that a softmax takes away first; the sums, [m, n, queries, 1].

    Nearly always it does: what a power of two is off does not depend on its size. None where a sum is too large or too
    small to trust, or not a number; the logits are spoilt then.
    """
    total = logits.in_memory.exp2_().sum(logits.keys_dim, keepdim=True)
    least, most = torch.aminmax(total)
    if not _LEAST_SUM < least.item() <= most.item() < 1 / _LEAST_SUM:
        return None
    return total.mT if logits.form.by_query else total


def _exponentiate(logits: Logits, *, may_exclude_all: bool) -> tuple[Tensor, Tensor]:
    """2 ** (logits - their maximum) in place; that maximum and the sum for each query, [m, n, queries, 1].

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
    return (maximum.mT, total.mT) if logits.form.by_query else (maximum, total)


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    first: Tensor,
    second: Tensor,
    attn_bias: Tensor | None,
    grid_size: list[int],
    prediction: list[float],
    num_prefix_tokens: int,
    scale: float,
    is_training: bool,
) -> tuple[Tensor, Tensor]:
    """softmax(q kᵀ · scale + S + attn_bias) v, [B, H, L, K], piece by piece; and what ``_empty_kept`` names."""
    out, kept = empty_like_tokens(q), _empty_kept(q, prediction, is_training)
    plan = plan_of(q, num_prefix_tokens, _PIECE_BYTES)
    source = _source(plan, first, second, grid_size, prediction, scale)
    keep = is_training and worth_keeping(q)
    parts_of_out, sums = plan.of_queries(out), plan.of_queries(kept[..., None]) if is_training and not keep else []
    of_pieces = kept.split([form.size for form in source.forms]) if keep else []
    takes_maximum = False
    for index, (form, parts) in enumerate(zip(source.forms, _cut(plan, source, q, k, v), strict=True)):
        weights = Logits(form, of_pieces[index]) if keep else logits_room("weights", form)
        _write_logits(weights, parts, source, plan, index, attn_bias, scale)
        maximum, total = None, None if takes_maximum else _try_to_exponentiate(weights)
        if total is None:
            if not takes_maximum:  # what spoils one piece spoils the others, too
                takes_maximum = True
                _write_logits(weights, parts, source, plan, index, attn_bias, scale)
            maximum, total = _exponentiate(weights, may_exclude_all=attn_bias is not None)
        # fewer numbers to divide than there are weights; in every mode, so that all give the same bits
        torch.div(_product(weights.whole, parts.v), total, out=parts_of_out[index])
        if keep:
            weights.whole.div_(total)
        elif sums:
            sums[index].copy_(total.log2_() if maximum is None else total.log2_().add_(maximum))
    return out, kept


def worth_keeping(q: Tensor) -> bool:
    """Whether the weights take no more memory than q, k, v and the output, so that all stays linear in L.

    To make them again adds a product and an exponential to the four products of the backward pass.
    """
    num_tokens, head_dim = q.shape[2:]
    return num_tokens * compute_dtype(q).itemsize <= 4 * head_dim * q.element_size()


def _empty_kept(q: Tensor, prediction: Sequence[float], is_training: bool) -> Tensor:
    """Room for what the backward pass reads: the weights if worth it, else log2 of their sums, [B, H, L].

    Weights, B H L L, come with what else is in the logits' room, that of the keys that predict.
    """
    batch, num_heads, num_tokens, _ = q.shape
    further = PredictedFactors.num_keys if prediction else 0
    weights = (batch * num_heads * num_tokens * (num_tokens + further),)
    shape = weights if worth_keeping(q) else (batch, num_heads, num_tokens)
    return q.new_empty(shape if is_training else 0, dtype=compute_dtype(q))


def backward(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    first: Tensor,
    second: Tensor,
    attn_bias: Tensor | None,
    out: Tensor,
    kept: Tensor,
    grid_size: list[int],
    prediction: list[float],
    num_prefix_tokens: int,
    scale: float,
    needs: list[bool],
) -> list[Tensor]:
    """Gradients of q, k, v, first, second and attn_bias; empty where nobody ``needs`` one."""
    grads = _empty_gradients(q, first, second, attn_bias, needs)
    if needs[5]:
        grads[5].zero_()
    plan = plan_of(q, num_prefix_tokens, _PIECE_BYTES)
    source = _source(plan, first, second, grid_size, prediction, scale, grads[3:5])
    of_q, of_k, of_v = _gradient_parts(plan, grads)
    needs_weight = source.num_keys > 0 and (needs[3] or needs[4])
    needs_factors = needs[3] or needs[4] or (needs[0] and source.num_keys > 0)
    is_kept = worth_keeping(q)
    outs, grads_out = plan.of_queries(out), plan.of_queries(grad_out)
    of_pieces = kept.split([form.size for form in source.forms]) if is_kept else []
    sums = [] if is_kept else plan.of_queries(kept[..., None])
    for index, (form, parts) in enumerate(zip(source.forms, _cut(plan, source, q, k, v, extend_v=True), strict=True)):
        if is_kept:
            weights = Logits(form, of_pieces[index])
            factors = source.of_piece(index, weights)
        else:
            weights = logits_room("weights", form)
            factors = _write_logits(weights, parts, source, plan, index, attn_bias, scale)
            weights.whole.sub_(sums[index]).exp2_()
        grad_logits, add = logits_room("grad_logits", form), plan.pieces[index].queries.start > 0
        _logits_backward(
            grad_logits, weights, _precise(grads_out[index]), _precise(outs[index]), parts,
            of_v[index] if of_v else None, add=add,
        )  # fmt: skip
        if needs_factors:
            # what is kept may be needed by another backward pass
            product = logits_room("weights", form) if is_kept else weights
            _factors_backward(grad_logits, product, factors, source.gradients(index))
            source.backward(weights, grad_logits)
        _products_backward(
            grad_logits, parts, of_q[index] if of_q else None, of_k[index] if of_k else None,
            source, needs_weight, scale, add=add,
        )  # fmt: skip
        if needs[5]:
            for part, grad in plan.with_bias(plan.pieces[index], grad_logits.whole, grads[5]):
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
    """Those of q, k and v by pieces; an empty list where there is none."""
    cuts = (plan.of_queries, plan.of_keys, plan.of_keys)
    return [cut(grad) if grad.numel() else [] for cut, grad in zip(cuts, grads, strict=False)]


def _logits_backward(
    grad_logits: Logits,
    weights: Logits,
    grad_out: Tensor,
    out: Tensor,
    parts: _Parts,
    grad_v: Tensor | None,
    *,
    add: bool,
) -> None:
    """Writes the gradient of the logits, weights * (grad_out vᵀ - sum of out * grad_out), and that of v if wanted."""
    if grad_v is not None:
        _write(grad_v, _product(weights.whole.mT, grad_out), add=add)
    delta = (grad_out * out).sum(-1, keepdim=True)
    _write_outer(grad_logits, grad_out, parts.v)
    grad_logits.in_memory.sub_(delta.mT if grad_logits.form.by_query else delta).mul_(weights.in_memory)


def _factors_backward(
    grad_logits: Logits, product: Logits, factors: tuple[Tensor, Tensor], grads: tuple[Tensor, Tensor]
) -> None:
    """d row = sum over columns of d logits * column, and the other way round."""
    row, column = factors
    grad_row, grad_column = grads
    torch.sum(torch.mul(grad_logits.patches, column, out=product.patches), -1, out=grad_row)
    torch.sum(torch.mul(grad_logits.patches, row, out=product.patches), -2, out=grad_column)


def _products_backward(
    grad_logits: Logits,
    parts: _Parts,
    grad_q: Tensor | None,
    grad_k: Tensor | None,
    source: _Source,
    needs_weight: bool,
    scale: float,
    *,
    add: bool,
) -> None:
    """Writes the gradients of q and k that are wanted, and what those of GAug's weights have of the same products.

    Args:
        add: an earlier piece of these heads has written the gradient of k.
    """
    if grad_q is not None:
        grad_q.copy_(_product(grad_logits.all_keys, parts.k, alpha=scale))
    if grad_k is not None:
        num_tokens = grad_k.shape[2]
        of_keys = _product(grad_logits.all_keys.mT, parts.q, alpha=scale)
        _write(grad_k, of_keys[:, :, :num_tokens], add=add)
        of_further = of_keys[:, :, num_tokens:]
    elif needs_weight:
        of_further = _product(grad_logits.of_further, parts.q, alpha=scale)
    if needs_weight:
        source.add_grad_weight(of_further)


def _write(part: Tensor, product: Tensor, *, add: bool) -> None:
    (part.add_ if add else part.copy_)(product)


# Registered so that torch.compile sees one node, with shapes but no values. The kernels are called through the
# dispatcher alone: torch.library.custom_op costs 0.1 ms a call, 1 % of a small ViT.
_TENSORS = "Tensor q, Tensor k, Tensor v, Tensor first, Tensor second, Tensor? attn_bias"
_SETTINGS = "int[] grid_size, float[] prediction, int num_prefix_tokens, float scale"
_library = torch.library.Library("locatvit", "DEF")
_library.define(f"pieces_forward({_TENSORS}, {_SETTINGS}, bool is_training) -> (Tensor, Tensor)")
_library.define(
    f"pieces_backward(Tensor grad_out, {_TENSORS}, Tensor out, Tensor kept, {_SETTINGS}, bool[] needs) -> Tensor[]"
)
_library.impl("pieces_forward", forward, "CPU")
_library.impl("pieces_backward", backward, "CPU")


@torch.library.register_fake("locatvit::pieces_forward", lib=_library)
def _(q: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    prediction, is_training = rest[6], rest[-1]
    return empty_like_tokens(q), _empty_kept(q, prediction, is_training)


@torch.library.register_fake("locatvit::pieces_backward", lib=_library)
def _(grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, first: Tensor, second: Tensor, *rest: Any) -> list[Tensor]:
    attn_bias, needs = rest[0], rest[-1]
    return _rounded(_empty_gradients(q, first, second, attn_bias, needs), q, attn_bias)


class PiecewiseAttention(torch.autograd.Function):
    """softmax(q kᵀ · scale + S + attn_bias) v with gradients, in memory linear in the number of tokens."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        tensors, settings = arguments[:6], arguments[6:]
        out, kept = torch.ops.locatvit.pieces_forward(*arguments, any(ctx.needs_input_grad))
        ctx.save_for_backward(*tensors, out, kept)
        ctx.settings = settings
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        needs = list(ctx.needs_input_grad[:6])
        grads = torch.ops.locatvit.pieces_backward(grad_out, *ctx.saved_tensors, *ctx.settings, needs)
        return (*(grad if need else None for grad, need in zip(grads, needs, strict=True)), *(None,) * 4)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    row_factor: Tensor,
    column_factor: Tensor,
    num_prefix_tokens: int,
    attn_bias: Tensor | None,
    scale: float,
) -> Tensor:
    """With the two factors of S."""
    grid_size = row_factor.shape[-1], column_factor.shape[-1]
    return _apply(q, k, v, row_factor, column_factor, attn_bias, grid_size, (), num_prefix_tokens, scale)


def attend_predicted(
    q: Tensor, k: Tensor, v: Tensor, gaussian: PredictedGaussian, attn_bias: Tensor | None, scale: float
) -> Tensor:
    """With an S that is predicted from these queries."""
    dtype = compute_dtype(q)
    clamp = math.inf if gaussian.distance_clamp is None else gaussian.distance_clamp
    return _apply(
        q, k, v, gaussian.weight.to(dtype), gaussian.bias.to(dtype), attn_bias, gaussian.grid_size,
        (*gaussian.prediction.numbers(), clamp), gaussian.num_prefix_tokens, scale,
    )  # fmt: skip


def _apply(*arguments: Any) -> Tensor:
    if torch.is_grad_enabled():
        return PiecewiseAttention.apply(*arguments)
    out: Tensor = torch.ops.locatvit.pieces_forward(*arguments, False)[0]
    return out
