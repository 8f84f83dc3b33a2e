"""The kernels that predict variance and alpha: each query is read once, and never copied to float32.

Outputs are counted through: first ``NUM_WIDTHS`` variances, then alpha where ``HAS_ALPHA``. Patches are the tokens from
``num_prefix`` on.

Abbreviations of strides: of x over b(atch), h(eads), l (tokens); of the gradients w(idths) and a(lpha) over b, h,
o(utputs), n (patches).
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _softplus(value):
    """ln(1 + exp(value)), exact also where the exponential is small beside 1."""
    small = tl.exp(-tl.abs(value))
    rounded = 1.0 + small  # its logarithm times what rounding did to it
    is_lost = rounded == 1.0
    return tl.maximum(value, 0.0) + tl.where(
        is_lost, small, tl.log(rounded) * (small / tl.where(is_lost, 1.0, rounded - 1.0))
    )


@triton.jit
def _output(tile, weight, bias, output, depth, WIDTH: tl.constexpr):
    """One output of a tile of tokens, and its line of the weight."""
    line = tl.load(weight + output * WIDTH + depth, mask=depth < WIDTH, other=0.0)
    return tl.sum(tile * line[None, :], 1) + tl.load(bias + output), line


@triton.jit
def _tile(x, pair, tokens, is_token, depth, xb, xh, xl, num_heads, WIDTH: tl.constexpr):
    """[tokens, DEPTH] of a head of an image, in float32."""
    start = x + (pair // num_heads) * xb + (pair % num_heads) * xh
    inside = is_token[:, None] & (depth < WIDTH)[None, :]
    return tl.load(start + tokens[:, None] * xl + depth[None, :], mask=inside, other=0.0).to(tl.float32)


@triton.jit
def forward(
    x, weight, bias, widths, alpha, variance_max, shift, floor,
    xb, xh, xl, num_heads, num_tokens, num_prefix, num_tiles,
    WIDTH: tl.constexpr, DEPTH: tl.constexpr, NUM_WIDTHS: tl.constexpr, HAS_ALPHA: tl.constexpr,
    STARTS_AT_ZERO: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    """Variances [B, H, NUM_WIDTHS, N] and alpha [B, H, N] of a tile of patches."""
    pair = (tl.program_id(0) // num_tiles).to(tl.int64)
    patches = (tl.program_id(0) % num_tiles) * TOKENS + tl.arange(0, TOKENS)
    depth = tl.arange(0, DEPTH)
    num_patches = num_tokens - num_prefix
    is_patch = patches < num_patches
    tile = _tile(x, pair, num_prefix + patches, is_patch, depth, xb, xh, xl, num_heads, WIDTH)
    for output in tl.static_range(NUM_WIDTHS):
        value, _ = _output(tile, weight, bias, output, depth, WIDTH)
        variance = variance_max * tl.sigmoid(value - shift) + floor
        tl.store(widths + (pair * NUM_WIDTHS + output) * num_patches + patches, variance, mask=is_patch)
    if HAS_ALPHA:
        value, _ = _output(tile, weight, bias, NUM_WIDTHS, depth, WIDTH)
        strength = _softplus(value)
        if STARTS_AT_ZERO:
            strength -= _softplus(value * 0.0)  # by the same steps, so that the difference is 0 to the last bit
        tl.store(alpha + pair * num_patches + patches, strength, mask=is_patch)


@triton.jit
def backward(
    grad_widths, grad_alpha, x, weight, bias, grad_x, parts, variance_max, shift,
    wb, wh, wo, wn, ab, ah, an, xb, xh, xl, num_heads, num_tokens, num_prefix, num_tiles, num_all, num_programs,
    WIDTH: tl.constexpr, DEPTH: tl.constexpr, NUM_WIDTHS: tl.constexpr, HAS_ALPHA: tl.constexpr, TOKENS: tl.constexpr,
    NEEDS_X: tl.constexpr, NEEDS_WEIGHT: tl.constexpr,
):  # fmt: skip
    """Gradients of some tiles of tokens, and these tiles' share of those of weight and bias; outputs are made again.

    The shares are [programs, outputs, WIDTH + 1], the bias last; summed in a fixed order later, so two runs are equal.
    """
    depth, lines = tl.arange(0, DEPTH), tl.arange(0, 4)
    of_weight = tl.zeros([4, DEPTH], tl.float32)
    of_bias = tl.zeros([4], tl.float32)
    for index in range(tl.program_id(0), num_all, num_programs):
        pair = (index // num_tiles).to(tl.int64)
        image, head = pair // num_heads, pair % num_heads
        tokens = (index % num_tiles) * TOKENS + tl.arange(0, TOKENS)
        is_token, patches = tokens < num_tokens, tokens - num_prefix
        is_patch = is_token & (patches >= 0)
        tile = _tile(x, pair, tokens, is_token, depth, xb, xh, xl, num_heads, WIDTH)
        grad_tile = tl.zeros([TOKENS, DEPTH], tl.float32)
        for output in tl.static_range(NUM_WIDTHS + HAS_ALPHA):
            value, line = _output(tile, weight, bias, output, depth, WIDTH)
            if output < NUM_WIDTHS:
                place = grad_widths + image * wb + head * wh + output * wo + patches * wn
                bounded = tl.sigmoid(value - shift)
                slope = variance_max * bounded * (1.0 - bounded)
            else:
                place = grad_alpha + image * ab + head * ah + patches * an
                slope = tl.sigmoid(value)
            grad = tl.load(place, mask=is_patch, other=0.0) * slope
            grad_tile += grad[:, None] * line[None, :]
            is_line = lines == output
            of_weight += tl.where(is_line[:, None], tl.sum(grad[:, None] * tile, 0)[None, :], 0.0)
            of_bias += tl.where(is_line, tl.sum(grad, 0), 0.0)
        if NEEDS_X:
            # [B, H, L, K] that is [B, L, H, K] in memory, as the host's projection wants its gradient
            row_of = (image * num_tokens + tokens) * num_heads + head
            inside = is_token[:, None] & (depth < WIDTH)[None, :]
            value = grad_tile.to(grad_x.dtype.element_ty)
            tl.store(grad_x + row_of[:, None] * WIDTH + depth[None, :], value, mask=inside)
    if NEEDS_WEIGHT:
        own = parts + (tl.program_id(0) * (NUM_WIDTHS + HAS_ALPHA) + lines) * (WIDTH + 1)
        is_line = lines < NUM_WIDTHS + HAS_ALPHA
        tl.store(own[:, None] + depth[None, :], of_weight, mask=is_line[:, None] & (depth < WIDTH)[None, :])
        tl.store(own + WIDTH, of_bias, mask=is_line)
