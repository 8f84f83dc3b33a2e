"""The bias in a fused attention kernel on a GPU: nothing of size L x L is ever in memory.

Order of this file: when it can run, host forward, host backward, registration, autograd, the backend. The kernels are
in ``triton_kernels.py``, the sizes of their launches in ``triton_tiles.py``, the mathematics in README.md.

Of both forms of the bias: ``row`` and ``column`` are its two factors; or, where there is a ``clamp``, the variance
[B, H, N, 2] and alpha [B, H, N] of a Gaussian, whose exponentials the kernels evaluate. The clamp is the largest
squared distance, infinite where there is none.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor

from locatvit.ops.attention.request import Request
from locatvit.ops.attention.triton_tiles import SMALL_SHARED_BYTES, Tiles, choose_tiles
from locatvit.ops.distance import Gaussian
from locatvit.ops.launches import DTYPES, IS_INSTALLED, ceil_div, launch_options, on_its_device, power_of_two
from locatvit.ops.layout import empty_like_tokens

MAX_HEAD_DIM = 128
MAX_PREFIX_TOKENS = 16
"""The narrowest tile that a matrix product takes: prefix keys are one tile."""
_BUSY = 512  # programs that keep a large GPU busy


def why_not(request: Request) -> str | None:
    """The reason for which the kernels cannot serve a request, or None."""
    if request.device_type != "cuda":  # at once: this is asked at every call
        return f"it runs on CUDA devices, and this is {request.device_type}"
    shape, tokens = request.attn_bias_shape, request.num_tokens
    reasons = {
        "triton is not installed": not IS_INSTALLED,
        f"it has no {request.dtype}": request.dtype not in DTYPES,
        f"heads of {request.head_dim} are wider than {MAX_HEAD_DIM}": request.head_dim > MAX_HEAD_DIM,
        f"{request.num_prefix_tokens} prefix tokens are more than {MAX_PREFIX_TOKENS}": (
            request.num_prefix_tokens > MAX_PREFIX_TOKENS
        ),
        "it has no dropout": request.dropout_p > 0,
        "it has no gradient of an attn_bias that is broadcast over tokens": (
            request.attn_bias_needs_grad and shape is not None and tuple(shape[-2:]) != (tokens, tokens)
        ),
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    row: Tensor,
    column: Tensor,
    attn_bias: Tensor | None,
    grid_size: list[int],
    num_prefix_tokens: int,
    scale: float,
    clamp: float | None,
) -> tuple[Tensor, Tensor]:
    """Output [B, H, L, K] and log2 of the softmax's sum [B, H, L]."""
    from locatvit.ops.attention import triton_kernels  # here: triton takes a third of a second to import

    q, k, v = (_unit_stride(tensor) for tensor in (q, k, v))
    batch, num_heads, num_tokens, _ = q.shape
    out, log_sum = empty_like_tokens(q), q.new_empty(q.shape[:3], dtype=torch.float32)
    tiles = _tiles("forward", q, grid_size, attn_bias)
    num_tiles = ceil_div(num_tokens, tiles.queries)
    triton_kernels.forward[(batch * num_heads * num_tiles,)](
        q, k, v, row, column, attn_bias, out, log_sum, scale, _limit(clamp),
        *_strides(q, k, v), *_four_strides(row), *_four_strides(column), *_bias_strides(attn_bias),
        *_sizes(q, grid_size, num_prefix_tokens, attn_bias), num_tiles,
        **_constants(q, tiles, attn_bias, clamp), EVEN=tiles.fit(grid_size),
        PREFIX=MAX_PREFIX_TOKENS if num_prefix_tokens else 0,
    )  # fmt: skip
    return out, log_sum


def backward(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    row: Tensor,
    column: Tensor,
    attn_bias: Tensor | None,
    out: Tensor,
    log_sum: Tensor,
    grid_size: list[int],
    num_prefix_tokens: int,
    scale: float,
    clamp: float | None,
    needs: list[bool],
) -> list[Tensor]:
    """Gradients of q, k, v, row, column and attn_bias; those that nobody ``needs`` are empty and cost nothing."""
    from locatvit.ops.attention import triton_kernels

    q, k, v, grad_out = (_unit_stride(tensor) for tensor in (q, k, v, grad_out))
    needs_q, needs_keys, needs_factors, needs_bias = needs[0], needs[1] or needs[2], needs[3] or needs[4], needs[5]
    batch, num_heads, num_tokens, _ = q.shape
    pairs, limit = batch * num_heads, _limit(clamp)
    tiles = _tiles("backward_queries", q, grid_size, attn_bias)
    of_bias = (*_four_strides(row), *_four_strides(column), *_bias_strides(attn_bias))
    strides = (*_strides(q, k, v), *of_bias, *_strides(grad_out))
    sizes = _sizes(q, grid_size, num_prefix_tokens, attn_bias)
    grad_q, grad_k, grad_v, grad_row, grad_column = _empty_gradients(q, row, column, needs)
    delta = torch.empty_like(log_sum)
    numbers = row.new_empty(0 if clamp is None else 3 * log_sum.numel())
    num_tiles = ceil_div(num_tokens, tiles.queries)
    triton_kernels.backward_queries[(pairs * num_tiles,)](
        q, k, v, row, column, attn_bias, out, grad_out, log_sum, delta, numbers,
        grad_q, grad_row, grad_column, scale, limit,
        *strides, *sizes, num_tiles,
        **_constants(q, tiles, attn_bias, clamp), EVEN=tiles.fit(grid_size),
        PREFIX=MAX_PREFIX_TOKENS if num_prefix_tokens else 0, NEEDS_Q=needs_q, NEEDS_FACTORS=needs_factors,
    )  # fmt: skip
    if needs_keys:
        tiles = _tiles("backward_keys", q, grid_size, attn_bias)
        blocks = ceil_div(grid_size[0], tiles.rows) * ceil_div(grid_size[1], tiles.columns)
        num_tiles = blocks + (num_prefix_tokens > 0)
        triton_kernels.backward_keys[(pairs * num_tiles,)](
            q, k, v, row, column, attn_bias, grad_out, log_sum, delta, numbers, grad_k, grad_v, scale, limit,
            *strides, *sizes, num_tiles, **_constants(q, tiles, attn_bias, clamp), HAS_PREFIX=num_prefix_tokens > 0,
        )  # fmt: skip
    grad_bias = row.new_empty(0)
    if needs_bias:
        assert attn_bias is not None
        grad_bias = _grad_of_bias(
            q,
            k,
            v,
            row,
            column,
            attn_bias,
            grad_out,
            log_sum,
            delta,
            grid_size,
            num_prefix_tokens,
            scale,
            clamp,
            strides,
        )
    return [grad_q, grad_k, grad_v, grad_row, grad_column, grad_bias]


def _grad_of_bias(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    row: Tensor,
    column: Tensor,
    attn_bias: Tensor,
    grad_out: Tensor,
    log_sum: Tensor,
    delta: Tensor,
    grid_size: list[int],
    num_prefix_tokens: int,
    scale: float,
    clamp: float | None,
    strides: tuple[int, ...],
) -> Tensor:
    from locatvit.ops.attention import triton_kernels

    batch, num_heads, num_tokens, head_dim = q.shape
    side = 32
    num_tiles = ceil_div(num_tokens, side)
    period, bias_heads = attn_bias.shape[:2]
    programs = period * bias_heads * num_tiles**2
    # where few programs would sum over many images, each takes a part of them
    parts = min(ceil_div(_BUSY, programs), batch // period)
    grad = attn_bias.new_empty((parts, *attn_bias.shape), dtype=torch.float32)
    triton_kernels.backward_bias[(programs * parts,)](
        q, k, v, row, column, attn_bias, grad_out, log_sum, delta, grad, scale, _limit(clamp), *strides,
        batch, num_heads, num_tokens, num_prefix_tokens, grid_size[1], period, bias_heads, num_tiles, parts,
        HEAD_DIM=head_dim, DEPTH=_depth(head_dim), QUERIES=side, KEYS=side, GAUSSIAN=clamp is not None,
        PRECISION=_precision(q), **launch_options(),
    )  # fmt: skip
    return grad.sum(0).to(attn_bias.dtype)


def _tiles(kernel: str, q: Tensor, grid_size: list[int], attn_bias: Tensor | None) -> Tiles:
    shared = _shared_bytes(q.device)
    return choose_tiles(kernel, grid_size, q.shape[-1], q.dtype, shared, has_bias=attn_bias is not None)


@functools.cache
def _shared_bytes(device: torch.device) -> int:
    if device.type != "cuda":  # the interpreter
        return SMALL_SHARED_BYTES
    from locatvit.ops.attention import triton_kernels

    return triton_kernels.shared_bytes(device.index)


def _depth(head_dim: int) -> int:
    """A power of two that a matrix product takes."""
    return max(16, power_of_two(head_dim))


def _unit_stride(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _empty_gradients(q: Tensor, row: Tensor, column: Tensor, needs: list[bool]) -> list[Tensor]:
    """Of q, k, v and the two factors; k and v come together, as the factors do."""
    keys, factors = needs[1] or needs[2], needs[3] or needs[4]
    tokens = [empty_like_tokens(q) if need else row.new_empty(0) for need in (needs[0], keys, keys)]
    return [*tokens, *(x.new_empty(x.shape) if factors else row.new_empty(0) for x in (row, column))]


def _strides(*tensors: Tensor) -> tuple[int, ...]:
    return tuple(stride for tensor in tensors for stride in tensor.stride()[:3])


def _four_strides(tensor: Tensor) -> tuple[int, ...]:
    """Of a factor, of a variance, or of alpha, which has no last axis."""
    return tensor.stride() if tensor.ndim == 4 else (*tensor.stride(), 0)


def _bias_strides(attn_bias: Tensor | None) -> tuple[int, ...]:
    """With 0 for what is broadcast; the first one counts images within its period."""
    if attn_bias is None:
        return 0, 0, 0, 0
    return tuple(0 if size == 1 else stride for size, stride in zip(attn_bias.shape, attn_bias.stride(), strict=True))


def _sizes(q: Tensor, grid_size: list[int], num_prefix_tokens: int, attn_bias: Tensor | None) -> tuple[int, ...]:
    period = 1 if attn_bias is None else attn_bias.shape[0]
    return q.shape[1], q.shape[2], num_prefix_tokens, *grid_size, period


def _limit(clamp: float | None) -> float:
    """As a number that the kernels get in any case."""
    return 0.0 if clamp is None else clamp


def _constants(q: Tensor, tiles: Tiles, attn_bias: Tensor | None, clamp: float | None) -> dict[str, Any]:
    return {
        "HEAD_DIM": q.shape[-1], "DEPTH": _depth(q.shape[-1]),
        "QUERIES": tiles.queries, "ROWS": tiles.rows, "COLUMNS": tiles.columns,
        "HAS_BIAS": attn_bias is not None, "GAUSSIAN": clamp is not None, "PRECISION": _precision(q),
        **launch_options(tiles.num_warps, tiles.num_stages),
    }  # fmt: skip


def _precision(q: Tensor) -> str:
    """float32 is computed as such, not with the ten bits of TF32."""
    return "ieee" if q.dtype == torch.float32 else "tf32"


_TENSORS = "Tensor q, Tensor k, Tensor v, Tensor row, Tensor column, Tensor? attn_bias"
_SETTINGS = "SymInt[] grid_size, int num_prefix_tokens, float scale, float? clamp"
_library = torch.library.Library("locatvit", "FRAGMENT")
_library.define(f"fused_forward({_TENSORS}, {_SETTINGS}) -> (Tensor, Tensor)")
_library.define(
    f"fused_backward(Tensor grad_out, {_TENSORS}, Tensor out, Tensor log_sum, {_SETTINGS}, bool[] needs) -> Tensor[]"
)
for _device in ("CUDA", "CPU"):  # on a CPU it runs in Triton's interpreter alone
    _library.impl("fused_forward", on_its_device(forward), _device)
    _library.impl("fused_backward", on_its_device(backward), _device)


@torch.library.register_fake("locatvit::fused_forward", lib=_library)
def _(q: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return empty_like_tokens(q), q.new_empty(q.shape[:3], dtype=torch.float32)


@torch.library.register_fake("locatvit::fused_backward", lib=_library)
def _(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, row: Tensor, column: Tensor, attn_bias: Any, *rest: Any
) -> Any:
    needs = rest[-1]
    of_bias = attn_bias.new_empty(attn_bias.shape) if needs[5] else row.new_empty(0)
    return [*_empty_gradients(q, row, column, needs), of_bias]


class FusedAttention(torch.autograd.Function):
    """softmax(q kᵀ · scale + S + attn_bias) v with gradients, in memory linear in the number of tokens."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        *tensors, grid_size, num_prefix_tokens, scale, clamp = arguments
        out, log_sum = torch.ops.locatvit.fused_forward(*arguments)
        ctx.save_for_backward(*tensors, out, log_sum)
        ctx.settings = grid_size, num_prefix_tokens, scale, clamp
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        needs = list(ctx.needs_input_grad[:6])
        grads = torch.ops.locatvit.fused_backward(grad_out, *ctx.saved_tensors, *ctx.settings, needs)
        return (*(grad if need else None for grad, need in zip(grads, needs, strict=True)), *(None,) * 4)


def run(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    row_factor: Tensor,
    column_factor: Tensor,
    num_prefix_tokens: int,
    attn_bias: Tensor | None,
    scale: float,
    dropout_p: float,
) -> Tensor:
    """Z = softmax(q kᵀ · scale + S + attn_bias) v (Eq. 4)."""
    grid_size = (row_factor.shape[-1], column_factor.shape[-1])
    return _attend(q, k, v, row_factor, column_factor, attn_bias, grid_size, num_prefix_tokens, scale, None)


def run_gaussian(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gaussian: Gaussian,
    num_prefix_tokens: int,
    attn_bias: Tensor | None,
    scale: float,
    dropout_p: float,
) -> Tensor:
    """The same with S from its variance and alpha: the exponentials are evaluated in the kernels."""
    patches = (*q.shape[:2], q.shape[2] - num_prefix_tokens)
    clamp = math.inf if gaussian.distance_clamp is None else gaussian.distance_clamp
    return _attend(
        q, k, v, gaussian.variance.expand(*patches, 2), gaussian.alpha.expand(patches), attn_bias,
        gaussian.grid_size, num_prefix_tokens, scale, clamp,
    )  # fmt: skip


def _attend(q: Tensor, k: Tensor, v: Tensor, row: Tensor, column: Tensor, *rest: Any) -> Tensor:
    # under autocast a norm of q and k leaves them in float32
    q = q.to(v.dtype)
    *settings, scale, clamp = rest
    if scale <= 0:  # the kernels' units are those of 1 / scale
        q, scale = q * scale, 1.0
    return FusedAttention.apply(q, k.to(v.dtype), v, row.float(), column.float(), *settings, scale, clamp)
