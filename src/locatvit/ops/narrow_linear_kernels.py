"""The kernels of a linear layer with few outputs: each token is read once, and never copied to float32.

Abbreviations of strides: of x over b(atch), h(eads), l (tokens).
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def forward(
    x, weight, bias, out, xb, xh, xl, num_heads, num_tokens, num_tiles,
    WIDTH: tl.constexpr, DEPTH: tl.constexpr, OUTPUTS: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    """Outputs [B, H, OUTPUTS, L] of a tile of tokens."""
    pair = (tl.program_id(0) // num_tiles).to(tl.int64)
    tokens = (tl.program_id(0) % num_tiles) * TOKENS + tl.arange(0, TOKENS)
    depth = tl.arange(0, DEPTH)
    inside = (tokens < num_tokens)[:, None] & (depth < WIDTH)[None, :]
    x += (pair // num_heads) * xb + (pair % num_heads) * xh
    tile = tl.load(x + tokens[:, None] * xl + depth[None, :], mask=inside, other=0.0).to(tl.float32)
    for output in tl.static_range(OUTPUTS):
        row = tl.load(weight + output * WIDTH + depth, mask=depth < WIDTH, other=0.0)
        place = out + (pair * OUTPUTS + output) * num_tokens + tokens
        tl.store(place, tl.sum(tile * row[None, :], 1) + tl.load(bias + output), mask=tokens < num_tokens)


@triton.jit
def backward(
    grad_out, x, weight, grad_x, parts, xb, xh, xl, num_heads, num_tokens, num_tiles, num_all, num_programs,
    WIDTH: tl.constexpr, DEPTH: tl.constexpr, OUTPUTS: tl.constexpr, TOKENS: tl.constexpr,
    NEEDS_X: tl.constexpr, NEEDS_WEIGHT: tl.constexpr,
):  # fmt: skip
    """Gradients of some tiles of tokens, and these tiles' share of those of weight and bias.

    The shares are [programs, OUTPUTS, DEPTH + 1], the bias last; summed in a fixed order later, so two runs are equal.
    """
    depth, lines = tl.arange(0, DEPTH), tl.arange(0, 4)
    of_weight = tl.zeros([4, DEPTH], tl.float32)
    of_bias = tl.zeros([4], tl.float32)
    for index in range(tl.program_id(0), num_all, num_programs):
        pair = (index // num_tiles).to(tl.int64)
        tokens = (index % num_tiles) * TOKENS + tl.arange(0, TOKENS)
        is_token = tokens < num_tokens
        inside = is_token[:, None] & (depth < WIDTH)[None, :]
        start = x + (pair // num_heads) * xb + (pair % num_heads) * xh
        tile = tl.load(start + tokens[:, None] * xl + depth[None, :], mask=inside & NEEDS_WEIGHT, other=0.0)
        tile = tile.to(tl.float32)
        grad_tile = tl.zeros([TOKENS, DEPTH], tl.float32)
        for output in tl.static_range(OUTPUTS):
            row = tl.load(weight + output * WIDTH + depth, mask=depth < WIDTH, other=0.0)
            place = grad_out + (pair * OUTPUTS + output) * num_tokens + tokens
            grad = tl.load(place, mask=is_token, other=0.0)
            grad_tile += grad[:, None] * row[None, :]
            is_line = lines == output
            of_weight += tl.where(is_line[:, None], tl.sum(grad[:, None] * tile, 0)[None, :], 0.0)
            of_bias += tl.where(is_line, tl.sum(grad, 0), 0.0)
        if NEEDS_X:
            # [B, H, L, K] that is [B, L, H, K] in memory, as the host's projection wants its gradient
            row_of = ((pair // num_heads) * num_tokens + tokens) * num_heads + pair % num_heads
            value = grad_tile.to(grad_x.dtype.element_ty)
            tl.store(grad_x + row_of[:, None] * WIDTH + depth[None, :], value, mask=inside)
    if NEEDS_WEIGHT:
        own = parts + (tl.program_id(0) * OUTPUTS + lines) * (WIDTH + 1)
        is_line = lines < OUTPUTS
        tl.store(own[:, None] + depth[None, :], of_weight, mask=is_line[:, None] & (depth < WIDTH)[None, :])
        tl.store(own + WIDTH, of_bias, mask=is_line)
