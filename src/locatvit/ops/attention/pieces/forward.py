"""The forward pass: attention logits, softmax and output of a piece at a time."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from locatvit.ops.attention.pieces.plan import Logits, Plan, compute_dtype, logits_room, plan_of
from locatvit.ops.attention.pieces.products import Parts, cut, product, write_outer
from locatvit.ops.attention.pieces.sources import LOG2_E, PredictedFactors, Source, source_of
from locatvit.ops.attention.request import empty_like_tokens

# Sums of powers of two, of which no maximum has been taken away, between this and its inverse: they, and their products
# with values, are far from the ends of float32, and what was too small for it is nothing beside them.
_LEAST_SUM = 2.0**-60


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
    """softmax(q kᵀ · scale + S + attn_bias) v, [B, H, L, K], piece by piece; and what ``empty_kept`` names."""
    out, kept = empty_like_tokens(q), empty_kept(q, prediction, is_training)
    threads, by_query = torch.get_num_threads(), has_patches_innermost(first)
    plan = plan_of(q, num_prefix_tokens, threads)
    source = source_of(plan, first, second, grid_size, prediction, scale, by_query)
    keep = is_training and worth_keeping(q)
    sums, of_pieces = kept_parts(kept, q, plan, source) if is_training else ([], [])
    parts_of_out = plan.of_queries(out)
    if is_training:  # the backward pass must cut as this one, whatever has changed since
        kept[-2:] = torch.tensor((threads, by_query))
    takes_maximum = False
    for index, (form, parts) in enumerate(zip(source.forms, cut(plan, source, q, k, v), strict=True)):
        weights = Logits(form, of_pieces[index]) if keep else logits_room("weights", form)
        write_logits(weights, parts, source, plan, index, attn_bias, scale)
        maximum, total = None, None if takes_maximum else _try_to_exponentiate(weights)
        if total is None:
            if not takes_maximum:  # what spoils one piece spoils the others, too
                takes_maximum = True
                write_logits(weights, parts, source, plan, index, attn_bias, scale)
            maximum, total = _exponentiate(weights, may_exclude_all=attn_bias is not None)
        # fewer numbers to divide than there are weights; in every mode, so that all give the same bits
        torch.div(product(weights.whole, parts.v), total, out=parts_of_out[index])
        if keep:
            weights.whole.div_(total)
        elif sums:
            sums[index].copy_(total.log2_() if maximum is None else total.log2_().add_(maximum))
    return out, kept


def write_logits(
    logits: Logits,
    parts: Parts,
    source: Source,
    plan: Plan,
    index: int,
    attn_bias: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """(q kᵀ · scale + S + attn_bias) log2 e of a piece; gives the factors of S."""
    write_outer(logits, parts.q, parts.k, alpha=scale * LOG2_E)
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


def worth_keeping(q: Tensor) -> bool:
    """Whether the weights take no more memory than q, k, v and the output, so that all stays linear in L.

    To make them again adds a product and an exponential to the four products of the backward pass.
    """
    num_tokens, head_dim = q.shape[2:]
    return num_tokens * compute_dtype(q).itemsize <= 4 * head_dim * q.element_size()


def empty_kept(q: Tensor, prediction: Sequence[float], is_training: bool) -> Tensor:
    """Room for what the backward pass reads: the weights if worth it, else log2 of their sums, B H L.

    Weights, B H L L, come with what else is in the logits' room, that of the keys that predict. The last two numbers
    tell how the call was cut: torch's threads, and whether queries are neighbours in memory.
    """
    if not is_training:
        return q.new_empty(0, dtype=compute_dtype(q))
    batch, num_heads, num_tokens, _ = q.shape
    further = PredictedFactors.num_keys if prediction else 0
    size = batch * num_heads * num_tokens * (num_tokens + further if worth_keeping(q) else 1)
    return q.new_empty(size + 2, dtype=compute_dtype(q))


def kept_parts(kept: Tensor, q: Tensor, plan: Plan, source: Source) -> tuple[list[Tensor], list[Tensor]]:
    """Of every piece: log2 of its sums, [m, n, queries, 1], or the memory of its logits; the other list is empty."""
    if worth_keeping(q):
        return [], list(kept[:-2].split([form.size for form in source.forms]))
    return plan.of_queries(kept[:-2].view(*q.shape[:3], 1)), []


def has_patches_innermost(factor: Tensor) -> bool:
    """As ``gaussian_factors`` lays narrow grids out, and as what is made of the factors must lie, too."""
    return factor.stride(-1) > factor.stride(-2)
