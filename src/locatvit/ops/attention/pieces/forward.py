"""The forward pass: attention logits, softmax and output of a piece at a time."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from locatvit.ops.attention.pieces.plan import Logits, Plan, compute_dtype, logits_room, plan_of, worth_keeping
from locatvit.ops.attention.pieces.products import Parts, cut, product, write_outer
from locatvit.ops.attention.pieces.sources import LOG2_E, PredictedFactors, Source, num_further_keys, source_of
from locatvit.ops.layout import empty_like_tokens

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
    if is_training:  # the backward pass must cut as this one, whatever has changed since
        kept[-2:] = torch.tensor((threads, by_query))

    def attend(first_group: int, *, takes_maximum: bool) -> int | None:
        # a query's maximum is that of all its keys
        plan = plan_of(q, grid_size, num_prefix_tokens, threads, may_cut_keys=not takes_maximum)
        source = source_of(plan, first, second, grid_size, prediction, scale, by_query)
        return _attend(plan, source, q, k, v, attn_bias, scale, out, kept, is_training, takes_maximum, first_group)

    spoilt = attend(0, takes_maximum=False)
    if spoilt is not None:  # what spoils one group spoils others, too
        attend(spoilt, takes_maximum=True)
    return out, kept


def _attend(
    plan: Plan,
    source: Source,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_bias: Tensor | None,
    scale: float,
    out: Tensor,
    kept: Tensor,
    is_training: bool,
    takes_maximum: bool,
    first_group: int,
) -> int | None:
    """Write the output, and what is kept of it, of the pieces of a group of heads and images and of those after it.

    Returns:
        The group where the maximum has to be taken away, or None when all is done.
    """
    logs, of_pieces = kept_parts(kept, q, plan, source) if is_training else ([], [])
    total: Tensor
    pieces = zip(plan.pieces, source.forms, cut(plan, source, q, k, v), plan.of_queries(out), strict=True)
    first = first_group * plan.pieces_of_one
    for index, (piece, form, parts, part_of_out) in itertools.islice(enumerate(pieces), first, None):
        weights = Logits(form, of_pieces[index]) if of_pieces else logits_room("weights", form)
        write_logits(weights, parts, source, plan, index, attn_bias, scale)
        maximum = _subtract_maximum(weights, may_exclude_all=attn_bias is not None) if takes_maximum else None
        sums = _exponentiate(weights)
        total = sums if piece.is_first_for_queries else total.add_(sums)
        is_last = piece.keys.stop == q.shape[2]
        if is_last and maximum is None and not _is_trustworthy(total):
            return index // plan.pieces_of_one
        values = product(weights.whole, parts.v, add=not piece.is_first_for_queries)
        if not is_last:
            continue
        if maximum is not None and attn_bias is not None:
            total.clamp_(min=torch.finfo(total.dtype).tiny)  # a query without a key gets zero
        # fewer numbers to divide than there are weights; in every mode, so that all give the same bits
        torch.div(values, total, out=part_of_out)
        if of_pieces:
            weights.whole.div_(total)
        elif logs:
            logs[index].copy_(total.log2_() if maximum is None else total.log2_().add_(maximum))
    return None


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


def _subtract_maximum(logits: Logits, *, may_exclude_all: bool) -> Tensor:
    """The maximum of each query, [m, n, queries, 1], taken away.

    Args:
        may_exclude_all: a query may be left without a key, its logits all -inf.
    """
    maximum = logits.in_memory.amax(logits.keys_dim, keepdim=True)
    if may_exclude_all:
        maximum.clamp_(min=torch.finfo(maximum.dtype).min)
    logits.in_memory.sub_(maximum)
    return maximum.mT if logits.form.by_query else maximum


def _exponentiate(logits: Logits) -> Tensor:
    """2 ** logits in place; the sum for each query, [m, n, queries, 1].

    By single steps: torch's softmax takes half as long again, for its exponential is slower than ``exp2``.
    """
    total = logits.in_memory.exp2_().sum(logits.keys_dim, keepdim=True)
    return total.mT if logits.form.by_query else total


def _is_trustworthy(total: Tensor) -> bool:
    """Whether no sum is too large or too small, or not a number, though no maximum has been taken away.

    Nearly always it is so: what a power of two is off does not depend on its size.
    """
    least, most = torch.aminmax(total)
    return _LEAST_SUM < least.item() <= most.item() < 1 / _LEAST_SUM


def empty_kept(q: Tensor, prediction: Sequence[float], is_training: bool) -> Tensor:
    """Room for what the backward pass reads: the weights if worth it, else log2 of their sums, B H L.

    Weights, B H L L, come with what else is in the logits' room, that of the keys that predict. The last two numbers
    tell how the call was cut: torch's threads, and whether queries are neighbours in memory.
    """
    if not is_training:
        return q.new_empty(0, dtype=compute_dtype(q))
    batch, num_heads, num_tokens, _ = q.shape
    further = num_further_keys(prediction)
    size = batch * num_heads * num_tokens * (num_tokens + further if worth_keeping(q) else 1)
    return q.new_empty(size + 2, dtype=compute_dtype(q))


def kept_parts(kept: Tensor, q: Tensor, plan: Plan, source: Source) -> tuple[list[Tensor], list[Tensor]]:
    """Of every piece: log2 of its sums, [m, n, queries, 1], or the memory of its logits; the other list is empty."""
    if plan.keeps_weights:
        return [], list(kept[:-2].split([form.size for form in source.forms]))
    return plan.of_queries(kept[:-2].view(*q.shape[:3], 1)), []


def has_patches_innermost(factor: Tensor) -> bool:
    """As ``gaussian_factors`` lays narrow grids out, and as what is made of the factors must lie, too."""
    return factor.stride(-1) > factor.stride(-2)
