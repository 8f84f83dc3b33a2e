"""The backward pass: the weights of a piece made again, or kept, and the gradients of all that went into it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from locatvit.ops.attention.pieces.forward import kept_parts, write_logits
from locatvit.ops.attention.pieces.plan import Logits, Plan, compute_dtype, logits_room, plan_of
from locatvit.ops.attention.pieces.products import Parts, cut, precise, product, write_outer, write_product
from locatvit.ops.attention.pieces.sources import Source, num_further_keys, source_of


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
    grads = empty_gradients(q, first, second, attn_bias, prediction, needs)
    if needs[5]:
        grads[5].zero_()
    threads, by_query = kept[-2:].tolist()
    # a gradient's part in the softmax is taken from the output, unless that was rounded: from all keys then
    may_cut_keys = out.dtype == compute_dtype(out)
    plan = plan_of(q, grid_size, num_prefix_tokens, int(threads), may_cut_keys=may_cut_keys)
    source = source_of(plan, first, second, grid_size, prediction, scale, bool(by_query), grads[3:5])
    of_q, of_k, of_v = _gradient_parts(plan, grads, source.num_keys)
    needs_weight = source.num_keys > 0 and (needs[3] or needs[4])
    needs_factors = needs[3] or needs[4] or (needs[0] and source.num_keys > 0)
    logs, of_pieces = kept_parts(kept, q, plan, source)
    outs, grads_out = plan.of_queries(out), plan.of_queries(grad_out)
    for index, (form, parts) in enumerate(
        zip(source.forms, cut(plan, source, q, k, v, extend_values=True), strict=True)
    ):
        if plan.keeps_weights:
            weights = Logits(form, of_pieces[index])
            factors = source.of_piece(index, weights) if needs_factors else None
        else:
            weights = logits_room("weights", form)
            factors = write_logits(weights, parts, source, plan, index, attn_bias, scale)
            weights.whole.sub_(logs[index]).exp2_()
        grad_logits, piece = logits_room("grad_logits", form), plan.pieces[index]
        _logits_backward(
            grad_logits, weights, precise(grads_out[index]), outs[index], parts,
            of_v[index] if of_v else None, add=not piece.is_first_for_keys,
        )  # fmt: skip
        if needs_factors:
            assert factors is not None
            # what is kept may be needed by another backward pass
            spare = logits_room("weights", form) if plan.keeps_weights else weights
            _factors_backward(
                grad_logits, spare, factors, source.gradients(index), add_column=not piece.is_first_for_queries
            )
            source.backward(index, weights, grad_logits)
        _products_backward(
            grad_logits, parts, of_q[index] if of_q else None, of_k[index] if of_k else None,
            source, needs_weight, scale,
            add_q=not piece.is_first_for_queries, add_k=not piece.is_first_for_keys,
        )  # fmt: skip
        if needs[5]:
            for part, grad in plan.with_bias(piece, grad_logits.whole, grads[5]):
                grad += part.sum_to_size(grad.shape)
    return rounded(grads, q, first, second, attn_bias)


def empty_gradients(
    q: Tensor,
    first: Tensor,
    second: Tensor,
    attn_bias: Tensor | None,
    prediction: Sequence[float],
    needs: list[bool],
) -> list[Tensor]:
    """Room for all gradients; behind those of the keys, and in one memory, for those of the keys that predict."""
    rooms = zip(needs[:3], (0, num_further_keys(prediction), 0), strict=True)
    tokens = [_empty_tokens(q, further) if need else first.new_empty(0) for need, further in rooms]
    # what is a sum over pieces: in half precision it would lose what the later ones add
    needs_locality, of_bias = needs[3] or needs[4], first.new_empty(0)
    locality = [
        torch.empty_like(x, dtype=compute_dtype(x)) if needs_locality else first.new_empty(0) for x in (first, second)
    ]
    if needs[5] and attn_bias is not None:
        of_bias = torch.empty_like(attn_bias, dtype=compute_dtype(attn_bias))
    return [*tokens, *locality, of_bias]


def rounded(grads: list[Tensor], q: Tensor, first: Tensor, second: Tensor, attn_bias: Tensor | None) -> list[Tensor]:
    """In the precision of what they belong to."""
    owners = (q, q, q, first, second, grads[5] if attn_bias is None else attn_bias)
    return [grad.to(owner.dtype) for grad, owner in zip(grads, owners, strict=True)]


def _empty_tokens(q: Tensor, num_further: int) -> Tensor:
    """[B, H, L, K], with room for further tokens behind each L; the matrices of one product side by side."""
    batch, num_heads, num_tokens, width = q.shape
    sizes, dtype = (num_tokens + num_further, width), compute_dtype(q)
    if batch > num_heads:  # as plans mostly have it; elsewhere a product is copied
        whole = q.new_empty((num_heads, batch, *sizes), dtype=dtype).transpose(0, 1)
    else:
        whole = q.new_empty((batch, num_heads, *sizes), dtype=dtype)
    return whole[:, :, :num_tokens]


def _gradient_parts(plan: Plan, grads: list[Tensor], num_further: int) -> list[list[Tensor]]:
    """Those of q, k, with the keys that predict, and v by pieces; an empty list where there is none."""
    ways = (plan.of_queries, plan.of_keys, plan.of_keys)
    of_all = [parts_of(grad) if grad.numel() else [] for parts_of, grad in zip(ways, grads, strict=False)]
    if num_further:
        of_all[1] = [_with_further(part, num_further) for part in of_all[1]]
    return of_all


def _with_further(part: Tensor, num_further: int) -> Tensor:
    """[m, n, L + further, K] of [m, n, L, K] with so much room behind each L."""
    m, n, num_tokens, width = part.shape
    return part.as_strided((m, n, num_tokens + num_further, width), part.stride())


def _logits_backward(
    grad_logits: Logits,
    weights: Logits,
    grad_out: Tensor,
    out: Tensor,
    parts: Parts,
    grad_v: Tensor | None,
    *,
    add: bool,
) -> None:
    """Writes the gradient of the logits, weights * (grad_out vᵀ - sum of out * grad_out), and that of v if wanted."""
    if grad_v is not None:
        write_product(grad_v, weights.whole.mT, grad_out, add=add)
    write_outer(grad_logits, grad_out, parts.v)
    if out.dtype == grad_out.dtype:
        delta = (grad_out * out).sum(-1, keepdim=True)
        delta = delta.mT if grad_logits.form.by_query else delta
    else:  # the output was rounded to half precision; of large values with small differences little would be left
        delta = (grad_logits.in_memory * weights.in_memory).sum(grad_logits.keys_dim, keepdim=True)
    grad_logits.in_memory.sub_(delta).mul_(weights.in_memory)


def _factors_backward(
    grad_logits: Logits,
    spare: Logits,
    factors: tuple[Tensor, Tensor],
    grads: tuple[Tensor, Tensor],
    *,
    add_column: bool,
) -> None:
    """d row = sum over columns of d logits * column, and the other way round.

    Args:
        spare: memory of the same form, to be written.
        add_column: earlier pieces of these queries have written the gradient of the columns, for other rows.
    """
    row, column = factors
    grad_row, grad_column = grads
    patches = grad_logits.patches
    if not grad_logits.form.by_query and torch.backends.mkl.is_available():
        # nothing of the logits' size is written
        _write_line_products(grad_row, column, patches.mT, add=False)
        _write_line_products(grad_column, row.mT, patches, add=add_column)
        return
    torch.sum(torch.mul(patches, column, out=spare.patches), -1, out=grad_row)
    torch.mul(patches, row, out=spare.patches)
    if add_column:
        grad_column.add_(spare.patches.sum(-2))
    else:
        torch.sum(spare.patches, -2, out=grad_column)


def _write_line_products(out: Tensor, lines: Tensor, matrices: Tensor, *, add: bool) -> None:
    """Or add them: [m, n, patches, columns] from [m, n, patches, 1, rows] and [m, n, patches, rows, columns]."""
    rest = lines.to(matrices.dtype).unbind(0), matrices.unbind(0)
    for each, *factors in zip(out[..., None, :].unbind(0), *rest, strict=True):
        write_product(each, *factors, add=add)


def _products_backward(
    grad_logits: Logits,
    parts: Parts,
    grad_q: Tensor | None,
    grad_k: Tensor | None,
    source: Source,
    needs_weight: bool,
    scale: float,
    *,
    add_q: bool,
    add_k: bool,
) -> None:
    """Writes the gradients of q and k that are wanted, and what those of GAug's weights have of the same products.

    Args:
        grad_k: of the tokens' keys and those that predict.
        add_q, add_k: an earlier piece has written that gradient.
    """
    if grad_q is not None:
        write_product(grad_q, grad_logits.all_keys, parts.k, alpha=scale, add=add_q)
    if grad_k is not None:
        write_product(grad_k, grad_logits.all_keys.mT, parts.q, alpha=scale, add=add_k)
        of_further = grad_k[:, :, grad_k.shape[2] - source.num_keys :]
    elif needs_weight:
        of_further = product(grad_logits.of_further, parts.q, alpha=scale)
    if needs_weight:
        source.add_grad_weight(of_further)
