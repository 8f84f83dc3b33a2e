"""The kernels of the fused attention: forward; backward by queries, by keys, of the bias.

A tile of keys is a block of the grid, ``ROWS`` x ``COLUMNS`` patches: one row factor belongs to each of its rows, and
the column factors of a tile of queries stay in registers while the rows of the grid pass. That is one multiply-add a
logit. Prefix keys are a tile of their own; prefix queries need nothing, their factors are zero. Every gradient is
written once, by one program: no atomics.

Units: forward, logits are in those of 1 / scale, as q k is, and one multiply-add brings them to exp2; backward, bias
and softmax's sum are in those of log 2, and meet q k in the exponent.

With ``GAUSSIAN`` the factors are made here, of three numbers a query: ``row`` is then the variance [B, H, N, 2] and
``column`` alpha [B, H, N], strides and gradients alike, and ``clamp`` the largest squared distance.

Abbreviations of strides: of q, k, v, row, column, bias, and the output's gradient g, over b(atch), h(eads), l (tokens)
or n (patches), i (rows), j (columns), m (queries).
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import math

import triton
import triton.language as tl
from triton.runtime import driver

_LOG2_E = tl.constexpr(math.log2(math.e))


def shared_bytes(device_index: int) -> int:
    """Shared memory that a program may have on a CUDA device."""
    return int(driver.active.utils.get_device_properties(device_index)["max_shared_mem"])


@triton.jit
def _tokens(pointer, tokens, stride, valid, HEAD_DIM: tl.constexpr, DEPTH: tl.constexpr, ALL: tl.constexpr = False):
    """[tokens, DEPTH] of q, k, v, the output or its gradient; zero where there is none, unless ``ALL`` are there."""
    depth = tl.arange(0, DEPTH)
    place = pointer + tokens[:, None] * stride + depth[None, :]
    if ALL and HEAD_DIM == DEPTH:
        values = tl.load(place)
    else:
        values = tl.load(place, mask=valid[:, None] & (depth < HEAD_DIM)[None, :], other=0.0)
    return values


@triton.jit
def _store_tokens(pointer, tokens, stride, valid, values, HEAD_DIM: tl.constexpr, DEPTH: tl.constexpr):
    depth = tl.arange(0, DEPTH)
    inside = valid[:, None] & (depth < HEAD_DIM)[None, :]
    tl.store(pointer + tokens[:, None] * stride + depth[None, :], values.to(pointer.dtype.element_ty), mask=inside)


@triton.jit
def _below(index, limit):
    """Of two numbers, as a tensor: in the interpreter it would else be a bool of Python."""
    return tl.full([1], index, tl.int32) < limit


@triton.jit
def _row_factors(
    pointer, patches, is_patch, stride_n, stride_i, first, height, row_in_tile, ROWS: tl.constexpr, EVEN: tl.constexpr
):
    """[queries, keys]: of each query, the factor of each key's row; a load for each row, then selections."""
    place = pointer + patches * stride_n
    factor = tl.zeros([1, 1], tl.float32)
    for i in tl.static_range(ROWS):
        inside = is_patch if EVEN else is_patch & _below(first + i, height)
        this = tl.load(place + (first + i) * stride_i, mask=inside, other=0.0)
        factor = tl.where(row_in_tile[None, :] >= i, this[:, None], factor)
    return factor


@triton.jit
def _gaussian(variance, alpha, patches, is_patch, width, vn, va, an):
    """Of each query: its row and column; what its squared distances to rows and to columns are multiplied by, for exp2;
    alpha, which is 0 for a prefix token."""
    place = variance + patches * vn
    to_rows = (-0.5 * _LOG2_E) / tl.load(place, mask=is_patch, other=1.0)
    to_columns = (-0.5 * _LOG2_E) / tl.load(place + va, mask=is_patch, other=1.0)
    alphas = tl.load(alpha + patches * an, mask=is_patch, other=0.0)
    own_row, own_column = _place(patches, width)
    return own_row, own_column, to_rows, to_columns, alphas


@triton.jit
def _place(patches, width):
    """Row and column in the grid: an integer division costs more. Exact for grids of up to a thousand lines."""
    row = tl.floor((patches.to(tl.float32) + 0.5) * (1 / width))
    return row, patches - row * width


@triton.jit
def _squared(distance, clamp):
    return tl.minimum(distance * distance, clamp)


@triton.jit
def _gaussian_rows(own_row, to_rows, clamp, first, row_in_tile, ROWS: tl.constexpr):
    """[queries, keys]: of each query, the factor of each key's row, and that times the squared distance."""
    factor, moment = tl.zeros([1, 1], tl.float32), tl.zeros([1, 1], tl.float32)
    for i in tl.static_range(ROWS):
        squared = _squared(own_row - (first + i), clamp)
        this = tl.exp2(to_rows * squared)
        is_below = row_in_tile[None, :] >= i
        factor = tl.where(is_below, this[:, None], factor)
        moment = tl.where(is_below, (this * squared)[:, None], moment)
    return factor, moment


@triton.jit
def _added(pointer, queries, keys, stride_m, stride_n, inside):
    """attn_bias of a tile."""
    place = pointer + queries[:, None] * stride_m + keys[None, :] * stride_n
    return tl.load(place, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _accumulate(logits, to_log2, v, peak, total, out, PRECISION: tl.constexpr):
    """One tile of keys more in a softmax that is not finished."""
    new_peak = tl.maximum(peak, tl.max(logits, 1))
    shown = tl.where(new_peak == float("-inf"), 0.0, new_peak)  # all keys excluded so far
    weights = tl.exp2(logits * to_log2 - (shown * to_log2)[:, None])
    shrink = tl.exp2((peak - shown) * to_log2)
    total = total * shrink + tl.sum(weights, 1)
    out = out * shrink[:, None] + tl.dot(weights.to(v.dtype), v, input_precision=PRECISION)
    return new_peak, total, out


@triton.jit
def forward(
    q, k, v, row, column, bias, out, log_sum, scale, clamp,
    qb, qh, ql, kb, kh, kl, vb, vh, vl, rb, rh, rn, ri, cb, ch, cn, cj, bb, bh, bm, bn,
    num_heads, num_tokens, num_prefix, height, width, period, num_tiles,
    HEAD_DIM: tl.constexpr, DEPTH: tl.constexpr, QUERIES: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    EVEN: tl.constexpr, PREFIX: tl.constexpr, HAS_BIAS: tl.constexpr, GAUSSIAN: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Output and log2 of the softmax's sum, of one tile of queries."""
    pair = (tl.program_id(0) // num_tiles).to(tl.int64)
    image, head = pair // num_heads, pair % num_heads
    queries = (tl.program_id(0) % num_tiles) * QUERIES + tl.arange(0, QUERIES)
    is_query, patches = queries < num_tokens, queries - num_prefix
    is_patch = is_query & (patches >= 0)
    k += image * kb + head * kh
    v += image * vb + head * vh
    row += image * rb + head * rh
    column += image * cb + head * ch
    if HAS_BIAS:
        bias += (image % period) * bb + head * bh
    q_tile = _tokens(q + image * qb + head * qh, queries, ql, is_query, HEAD_DIM, DEPTH)
    peak = tl.full([QUERIES], float("-inf"), tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    out_tile = tl.zeros([QUERIES, DEPTH], tl.float32)
    to_log2, from_natural = scale * _LOG2_E, 1 / scale
    if PREFIX > 0:
        prefix = tl.arange(0, PREFIX)
        is_prefix = prefix < num_prefix
        k_prefix = _tokens(k, prefix, kl, is_prefix, HEAD_DIM, DEPTH)
        v_prefix = _tokens(v, prefix, vl, is_prefix, HEAD_DIM, DEPTH)
        to_prefix = tl.dot(q_tile, tl.trans(k_prefix), input_precision=PRECISION)
        if HAS_BIAS:
            to_prefix += from_natural * _added(bias, queries, prefix, bm, bn, is_query[:, None] & is_prefix[None, :])
        to_prefix = tl.where(is_prefix[None, :], to_prefix, float("-inf"))
        peak, total, out_tile = _accumulate(to_prefix, to_log2, v_prefix, peak, total, out_tile, PRECISION)
    in_tile = tl.arange(0, ROWS * COLUMNS)
    row_in_tile, column_in_tile = in_tile // COLUMNS, in_tile % COLUMNS
    if GAUSSIAN:
        own_row, own_column, to_rows, to_columns, alphas = _gaussian(row, column, patches, is_patch, width, rn, ri, cn)
    for first_column in range(0, width, COLUMNS):
        columns = first_column + column_in_tile
        if GAUSSIAN:
            squared = _squared(own_column[:, None] - columns[None, :], clamp)
            column_factor = tl.exp2(to_columns[:, None] * squared) * (alphas * from_natural)[:, None]
        else:
            inside = is_patch[:, None] & (columns < width)[None, :]
            column_factor = tl.load(column + patches[:, None] * cn + columns[None, :] * cj, mask=inside, other=0.0)
            column_factor = column_factor * from_natural
        for first_row in range(0, height, ROWS):
            rows = first_row + row_in_tile
            valid = (rows < height) & (columns < width)
            keys = num_prefix + rows * width + columns
            k_tile = _tokens(k, keys, kl, valid, HEAD_DIM, DEPTH, EVEN)
            logits = tl.dot(q_tile, tl.trans(k_tile), input_precision=PRECISION)
            if GAUSSIAN:
                row_factor, _ = _gaussian_rows(own_row, to_rows, clamp, first_row, row_in_tile, ROWS)
            else:
                row_factor = _row_factors(row, patches, is_patch, rn, ri, first_row, height, row_in_tile, ROWS, EVEN)
            logits += row_factor * column_factor
            if HAS_BIAS:
                logits += from_natural * _added(bias, queries, keys, bm, bn, is_query[:, None] & valid[None, :])
            if not EVEN:
                logits = tl.where(valid[None, :], logits, float("-inf"))
            v_tile = _tokens(v, keys, vl, valid, HEAD_DIM, DEPTH, EVEN)
            peak, total, out_tile = _accumulate(logits, to_log2, v_tile, peak, total, out_tile, PRECISION)
    # every key excluded: zeros, as torch's attention gives
    total = tl.where(total == 0.0, 1.0, total)
    peak = tl.where(peak == float("-inf"), 0.0, peak)
    out_tile = out_tile / total[:, None]
    out += (image * num_tokens * num_heads + head) * HEAD_DIM
    _store_tokens(out, queries, num_heads * HEAD_DIM, is_query, out_tile, HEAD_DIM, DEPTH)
    tl.store(log_sum + pair * num_tokens + queries, peak * to_log2 + tl.log2(total), mask=is_query)


@triton.jit
def _grad_logits(
    products, to_log2, locality, log_sum, grad_out, v, delta, valid, ALL: tl.constexpr, PRECISION: tl.constexpr
):
    """d logits of a tile [queries, keys], from the weights made again; ``locality`` is all bias, in units of log 2."""
    weights = tl.exp2(products * to_log2 + (locality - log_sum[:, None]))
    if not ALL:
        weights = tl.where(valid, weights, 0.0)
    grad_weights = tl.dot(grad_out, tl.trans(v), input_precision=PRECISION)
    return weights * (grad_weights - delta[:, None])


@triton.jit
def _add_lines(pointer, at, is_patch, first, length, values, has_earlier, LINES: tl.constexpr):
    """Write [queries, LINES] of a factor's gradient, or add it to what this program has written there before."""
    lines = first + tl.arange(0, LINES)
    place = pointer + at[:, None] * length + lines[None, :]
    inside = is_patch[:, None] & (lines < length)[None, :]
    tl.store(place, values + tl.load(place, mask=inside & has_earlier, other=0.0), mask=inside)


@triton.jit
def backward_queries(
    q, k, v, row, column, bias, out, grad_out, log_sum, delta, numbers, grad_q, grad_row, grad_column, scale, clamp,
    qb, qh, ql, kb, kh, kl, vb, vh, vl, rb, rh, rn, ri, cb, ch, cn, cj, bb, bh, bm, bn, gb, gh, gl,
    num_heads, num_tokens, num_prefix, height, width, period, num_tiles,
    HEAD_DIM: tl.constexpr, DEPTH: tl.constexpr, QUERIES: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    EVEN: tl.constexpr, PREFIX: tl.constexpr, HAS_BIAS: tl.constexpr, GAUSSIAN: tl.constexpr,
    PRECISION: tl.constexpr, NEEDS_Q: tl.constexpr, NEEDS_FACTORS: tl.constexpr,
):  # fmt: skip
    """Gradients of a tile of queries and of its factors, and what the keys need: delta = sum(out * grad_out), and of a
    Gaussian its three ``numbers`` a query.

    A row factor's gradient is a sum over a row of the grid, a column factor's grows in registers; each is written once.
    Those of variance and alpha are sums over all keys of d logits * G, times the squared distances or not.
    """
    pair = (tl.program_id(0) // num_tiles).to(tl.int64)
    image, head = pair // num_heads, pair % num_heads
    queries = (tl.program_id(0) % num_tiles) * QUERIES + tl.arange(0, QUERIES)
    is_query, patches = queries < num_tokens, queries - num_prefix
    is_patch = is_query & (patches >= 0)
    at = pair * (num_tokens - num_prefix) + patches  # of a gradient of what belongs to patches
    k += image * kb + head * kh
    v += image * vb + head * vh
    row += image * rb + head * rh
    column += image * cb + head * ch
    if HAS_BIAS:
        bias += (image % period) * bb + head * bh
    grad_tile = _tokens(grad_out + image * gb + head * gh, queries, gl, is_query, HEAD_DIM, DEPTH)
    out += (image * num_tokens * num_heads + head) * HEAD_DIM
    out_tile = _tokens(out, queries, num_heads * HEAD_DIM, is_query, HEAD_DIM, DEPTH)
    delta_tile = tl.sum(out_tile.to(tl.float32) * grad_tile.to(tl.float32), 1)
    tl.store(delta + pair * num_tokens + queries, delta_tile, mask=is_query)
    if GAUSSIAN:
        own_row, own_column, to_rows, to_columns, alphas = _gaussian(row, column, patches, is_patch, width, rn, ri, cn)
        place = numbers + 3 * pair * num_tokens + queries
        tl.store(place, to_rows, mask=is_query)
        tl.store(place + num_tokens, to_columns, mask=is_query)
        tl.store(place + 2 * num_tokens, alphas * _LOG2_E, mask=is_query)
    if NEEDS_Q or NEEDS_FACTORS:
        q_tile = _tokens(q + image * qb + head * qh, queries, ql, is_query, HEAD_DIM, DEPTH)
        sum_tile = tl.load(log_sum + pair * num_tokens + queries, mask=is_query, other=0.0)
        grad_q_tile = tl.zeros([QUERIES, DEPTH], tl.float32)
        to_log2 = scale * _LOG2_E
        if PREFIX > 0 and NEEDS_Q:
            prefix = tl.arange(0, PREFIX)
            with_prefix = is_query[:, None] & (prefix < num_prefix)[None, :]
            k_prefix = _tokens(k, prefix, kl, prefix < num_prefix, HEAD_DIM, DEPTH)
            v_prefix = _tokens(v, prefix, vl, prefix < num_prefix, HEAD_DIM, DEPTH)
            to_prefix = tl.dot(q_tile, tl.trans(k_prefix), input_precision=PRECISION)
            further = tl.zeros([1, 1], tl.float32)
            if HAS_BIAS:
                further = _added(bias, queries, prefix, bm, bn, with_prefix) * _LOG2_E
            grad_prefix = _grad_logits(
                to_prefix, to_log2, further, sum_tile, grad_tile, v_prefix, delta_tile, with_prefix, False, PRECISION
            )
            grad_q_tile += tl.dot(grad_prefix.to(k_prefix.dtype), k_prefix, input_precision=PRECISION)
        in_tile = tl.arange(0, ROWS * COLUMNS)
        row_in_tile, column_in_tile = in_tile // COLUMNS, in_tile % COLUMNS
        if GAUSSIAN:
            by_alpha = tl.zeros([QUERIES], tl.float32)
            by_rows = tl.zeros([QUERIES], tl.float32)
            by_columns = tl.zeros([QUERIES], tl.float32)
        for first_column in range(0, width, COLUMNS):
            columns = first_column + column_in_tile
            if GAUSSIAN:
                squared = _squared(own_column[:, None] - columns[None, :], clamp)
                column_factor = tl.exp2(to_columns[:, None] * squared)
                grad_moment_tile = tl.zeros([QUERIES, ROWS * COLUMNS], tl.float32)
            else:
                inside = is_patch[:, None] & (columns < width)[None, :]
                column_factor = tl.load(column + patches[:, None] * cn + columns[None, :] * cj, mask=inside, other=0.0)
            in_log2 = column_factor * (alphas * _LOG2_E)[:, None] if GAUSSIAN else column_factor * _LOG2_E
            grad_column_tile = tl.zeros([QUERIES, ROWS * COLUMNS], tl.float32)
            for first_row in range(0, height, ROWS):
                rows = first_row + row_in_tile
                is_key = (rows < height) & (columns < width)
                valid = is_query[:, None] & is_key[None, :]
                keys = num_prefix + rows * width + columns
                k_tile = _tokens(k, keys, kl, is_key, HEAD_DIM, DEPTH, EVEN)
                v_tile = _tokens(v, keys, vl, is_key, HEAD_DIM, DEPTH, EVEN)
                products = tl.dot(q_tile, tl.trans(k_tile), input_precision=PRECISION)
                if GAUSSIAN:
                    row_factor, row_moment = _gaussian_rows(own_row, to_rows, clamp, first_row, row_in_tile, ROWS)
                else:
                    row_factor = _row_factors(
                        row, patches, is_patch, rn, ri, first_row, height, row_in_tile, ROWS, EVEN
                    )
                locality = row_factor * in_log2
                if HAS_BIAS:
                    locality += _added(bias, queries, keys, bm, bn, valid) * _LOG2_E
                # of a query that does not exist all is zero: its weights are harmless
                grad = _grad_logits(
                    products, to_log2, locality, sum_tile, grad_tile, v_tile, delta_tile, valid, EVEN, PRECISION
                )
                if NEEDS_Q:
                    grad_q_tile += tl.dot(grad.to(k_tile.dtype), k_tile, input_precision=PRECISION)
                if NEEDS_FACTORS:
                    grad_column_tile += grad * row_factor
                if NEEDS_FACTORS and GAUSSIAN:
                    grad_moment_tile += grad * row_moment
                elif NEEDS_FACTORS:
                    by_row = tl.sum(tl.reshape(grad * column_factor, (QUERIES, ROWS, COLUMNS)), 2)
                    # to what this program has written for an earlier block of columns
                    _add_lines(grad_row, at, is_patch, first_row, height, by_row, _below(0, first_column), ROWS)
            if NEEDS_FACTORS and GAUSSIAN:
                grad_column_tile *= column_factor
                by_alpha += tl.sum(grad_column_tile, 1)
                by_columns += tl.sum(grad_column_tile * squared, 1)
                by_rows += tl.sum(grad_moment_tile * column_factor, 1)
            elif NEEDS_FACTORS:
                tl.debug_barrier()  # one block's sums are there before the next reads them
                by_column = tl.sum(tl.reshape(grad_column_tile, (QUERIES, ROWS, COLUMNS)), 1)
                _add_lines(grad_column, at, is_patch, first_column, width, by_column, False, COLUMNS)
        if NEEDS_FACTORS and GAUSSIAN:
            # d G / d variance = G D / (2 variance²), and 1 / variance is in to_rows and to_columns
            to_rows, to_columns = to_rows / _LOG2_E, to_columns / _LOG2_E
            tl.store(grad_row + 2 * at, 2 * alphas * to_rows * to_rows * by_rows, mask=is_patch)
            tl.store(grad_row + 2 * at + 1, 2 * alphas * to_columns * to_columns * by_columns, mask=is_patch)
            tl.store(grad_column + at, by_alpha, mask=is_patch)
        if NEEDS_Q:
            grad_q += (image * num_tokens * num_heads + head) * HEAD_DIM
            _store_tokens(grad_q, queries, num_heads * HEAD_DIM, is_query, grad_q_tile * scale, HEAD_DIM, DEPTH)


@triton.jit
def backward_keys(
    q, k, v, row, column, bias, grad_out, log_sum, delta, numbers, grad_k, grad_v, scale, clamp,
    qb, qh, ql, kb, kh, kl, vb, vh, vl, rb, rh, rn, ri, cb, ch, cn, cj, bb, bh, bm, bn, gb, gh, gl,
    num_heads, num_tokens, num_prefix, height, width, period, num_tiles,
    HEAD_DIM: tl.constexpr, DEPTH: tl.constexpr, QUERIES: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    HAS_PREFIX: tl.constexpr, HAS_BIAS: tl.constexpr, GAUSSIAN: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of a tile of keys and its values; the first tile is that of the prefix, if there is any.

    For the prefix, rows and columns lie outside the grid, and its factors are zero. In place of a query that does not
    exist the last one is read, with weights of zero. What is computed of a key that does not exist is never written.
    """
    pair = (tl.program_id(0) // num_tiles).to(tl.int64)
    image, head = pair // num_heads, pair % num_heads
    tile = tl.program_id(0) % num_tiles
    in_tile = tl.arange(0, ROWS * COLUMNS)
    row_in_tile = in_tile // COLUMNS
    blocks_of_rows = tl.cdiv(height, ROWS)
    block = tile - 1 if HAS_PREFIX else tile
    first_row = (block % blocks_of_rows) * ROWS
    if HAS_PREFIX:
        first_row = tl.where(tile == 0, height, first_row)
    rows, columns = first_row + row_in_tile, (block // blocks_of_rows) * COLUMNS + in_tile % COLUMNS
    has_factors = (rows < height) & (columns < width)
    is_key, keys = has_factors, num_prefix + rows * width + columns
    if HAS_PREFIX:
        is_key = tl.where(tile == 0, in_tile < num_prefix, is_key)
        keys = tl.where(tile == 0, in_tile, keys)
    q += image * qb + head * qh
    grad_out += image * gb + head * gh
    row += image * rb + head * rh
    column += image * cb + head * ch
    if HAS_BIAS:
        bias += (image % period) * bb + head * bh
    k_tile = _tokens(k + image * kb + head * kh, keys, kl, is_key, HEAD_DIM, DEPTH)
    v_tile = _tokens(v + image * vb + head * vh, keys, vl, is_key, HEAD_DIM, DEPTH)
    grad_k_tile = tl.zeros([ROWS * COLUMNS, DEPTH], tl.float32)
    grad_v_tile = tl.zeros([ROWS * COLUMNS, DEPTH], tl.float32)
    to_log2 = scale * _LOG2_E
    for first in range(0, num_tokens, QUERIES):
        is_query = first + tl.arange(0, QUERIES) < num_tokens
        queries = tl.minimum(first + tl.arange(0, QUERIES), num_tokens - 1)
        patches = queries - num_prefix
        q_tile = _tokens(q, queries, ql, is_query, HEAD_DIM, DEPTH, True)
        grad_tile = _tokens(grad_out, queries, gl, is_query, HEAD_DIM, DEPTH, True)
        sum_tile = tl.where(is_query, tl.load(log_sum + pair * num_tokens + queries), float("inf"))
        delta_tile = tl.load(delta + pair * num_tokens + queries)
        products = tl.dot(q_tile, tl.trans(k_tile), input_precision=PRECISION)
        if GAUSSIAN:
            place = numbers + 3 * pair * num_tokens + queries
            to_rows, to_columns, strength = tl.load(place), tl.load(place + num_tokens), tl.load(place + 2 * num_tokens)
            if HAS_PREFIX:
                strength = tl.where(tile == 0, 0.0, strength)
            own_row, own_column = _place(patches, width)
            row_factor, _ = _gaussian_rows(own_row, to_rows, clamp, first_row, row_in_tile, ROWS)
            squared = _squared(own_column[:, None] - columns[None, :], clamp)
            locality = row_factor * strength[:, None] * tl.exp2(to_columns[:, None] * squared)
        else:
            is_patch = patches >= 0
            row_factor = _row_factors(row, patches, is_patch, rn, ri, first_row, height, row_in_tile, ROWS, False)
            place = column + patches[:, None] * cn + columns[None, :] * cj
            column_factor = tl.load(place, mask=is_patch[:, None] & has_factors[None, :], other=0.0)
            locality = row_factor * _LOG2_E * column_factor
        if HAS_BIAS:
            locality += _added(bias, queries, keys, bm, bn, is_query[:, None] & is_key[None, :]) * _LOG2_E
        weights = tl.exp2(products * to_log2 + (locality - sum_tile[:, None]))
        grad_v_tile += tl.dot(tl.trans(weights.to(grad_tile.dtype)), grad_tile, input_precision=PRECISION)
        grad_weights = tl.dot(grad_tile, tl.trans(v_tile), input_precision=PRECISION)
        grad = weights * (grad_weights - delta_tile[:, None])
        grad_k_tile += tl.dot(tl.trans(grad.to(q_tile.dtype)), q_tile, input_precision=PRECISION)
    base = (image * num_tokens * num_heads + head) * HEAD_DIM
    _store_tokens(grad_k + base, keys, num_heads * HEAD_DIM, is_key, grad_k_tile * scale, HEAD_DIM, DEPTH)
    _store_tokens(grad_v + base, keys, num_heads * HEAD_DIM, is_key, grad_v_tile, HEAD_DIM, DEPTH)


@triton.jit
def backward_bias(
    q, k, v, row, column, bias, grad_out, log_sum, delta, grad_bias, scale, clamp,
    qb, qh, ql, kb, kh, kl, vb, vh, vl, rb, rh, rn, ri, cb, ch, cn, cj, bb, bh, bm, bn, gb, gh, gl,
    num_images, num_heads, num_tokens, num_prefix, width, period, bias_heads, num_tiles, num_parts,
    HEAD_DIM: tl.constexpr, DEPTH: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, GAUSSIAN: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradient of a tile of attn_bias: a sum over the images and heads that share it, the images in some parts.

    It writes [parts, period, bias_heads, L, L].
    """
    place_of_group, tile = tl.program_id(0) // (num_tiles * num_tiles), tl.program_id(0) % (num_tiles * num_tiles)
    group, part = place_of_group // num_parts, place_of_group % num_parts
    queries = (tile // num_tiles) * QUERIES + tl.arange(0, QUERIES)
    keys = (tile % num_tiles) * KEYS + tl.arange(0, KEYS)
    is_query, is_key = queries < num_tokens, keys < num_tokens
    valid = is_query[:, None] & is_key[None, :]
    patches, key_patches = queries - num_prefix, keys - num_prefix
    with_bias = valid & (patches >= 0)[:, None] & (key_patches >= 0)[None, :]
    rows, columns = key_patches // width, key_patches % width
    first_image, first_head = (group // bias_heads).to(tl.int64), group % bias_heads
    bias += first_image * bb + first_head * bh
    added = _added(bias, queries, keys, bm, bn, valid)
    grad_tile = tl.zeros([QUERIES, KEYS], tl.float32)
    to_log2 = scale * _LOG2_E
    for image in range(first_image + part * period, num_images, num_parts * period):
        for head in range(first_head, num_heads, bias_heads):
            at = (image * num_heads + head) * num_tokens + queries
            q_tile = _tokens(q + image * qb + head * qh, queries, ql, is_query, HEAD_DIM, DEPTH)
            k_tile = _tokens(k + image * kb + head * kh, keys, kl, is_key, HEAD_DIM, DEPTH)
            v_tile = _tokens(v + image * vb + head * vh, keys, vl, is_key, HEAD_DIM, DEPTH)
            out_tile = _tokens(grad_out + image * gb + head * gh, queries, gl, is_query, HEAD_DIM, DEPTH)
            sum_tile = tl.load(log_sum + at, mask=is_query, other=0.0)
            delta_tile = tl.load(delta + at, mask=is_query, other=0.0)
            own, strength = row + image * rb + head * rh, column + image * cb + head * ch
            if GAUSSIAN:
                own_row, own_column, to_rows, to_columns, alphas = _gaussian(
                    own, strength, patches, is_query & (patches >= 0), width, rn, ri, cn
                )
                exponent = to_rows[:, None] * _squared(own_row[:, None] - rows[None, :], clamp)
                exponent += to_columns[:, None] * _squared(own_column[:, None] - columns[None, :], clamp)
                locality = tl.where(with_bias, tl.exp2(exponent) * alphas[:, None], 0.0)
            else:
                row_factor = tl.load(own + patches[:, None] * rn + rows[None, :] * ri, mask=with_bias, other=0.0)
                place = strength + patches[:, None] * cn + columns[None, :] * cj
                locality = row_factor * tl.load(place, mask=with_bias, other=0.0)
            products = tl.dot(q_tile, tl.trans(k_tile), input_precision=PRECISION)
            grad_tile += _grad_logits(
                products, to_log2, (locality + added) * _LOG2_E, sum_tile, out_tile, v_tile, delta_tile, valid, False,
                PRECISION,
            )  # fmt: skip
    plane = part.to(tl.int64) * period * bias_heads + group
    place = grad_bias + (plane * num_tokens + queries[:, None]) * num_tokens + keys[None, :]
    tl.store(place, grad_tile, mask=valid)
