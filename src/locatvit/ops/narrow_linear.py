"""A linear layer with a few outputs, in at least float32 whatever the precision of what goes in.

On a GPU by kernels of its own: torch's would first copy the tokens to float32, and keep the copy for the backward pass.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from locatvit.ops.attention.request import empty_like_tokens
from locatvit.ops.launches import DTYPES, IS_INSTALLED, ceil_div, launch_options, on_its_device, power_of_two

_MAX_OUTPUTS = 4
_MAX_WIDTH = 256
_TOKENS = 64  # of a tile
_PROGRAMS = 1024  # of the backward pass, each with its share of the weights' gradient


def narrow_linear(
    x: Float[Tensor, "B H L K"], weight: Float[Tensor, "O K"], bias: Float[Tensor, " O"]
) -> Float[Tensor, "B H L O"]:
    """x weightᵀ + bias in at least float32; each output is a plane of tokens in memory.

    Args:
        x: in any precision and layout.
        weight, bias: at least float32.
    """
    if _fits(x, weight):
        out: Tensor = NarrowLinear.apply(x, weight.float(), bias.float())
        return out.mT
    dtype = torch.promote_types(x.dtype, torch.float32)
    # one copy here is cheaper than strided reading in what follows
    return F.linear(x.to(dtype), weight.to(dtype), bias.to(dtype)).mT.contiguous().mT


def _fits(x: Tensor, weight: Tensor) -> bool:
    """Whether the kernels can serve it."""
    return (
        x.device.type == "cuda"
        and IS_INSTALLED
        and x.ndim == 4
        and x.dtype in DTYPES
        and x.stride(-1) == 1
        and x.shape[-1] <= _MAX_WIDTH
        and len(weight) <= _MAX_OUTPUTS
        and weight.dtype != torch.float64
        and not torch.compiler.is_exporting()
    )


def forward(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """[B, H, O, L] in float32."""
    from locatvit.ops import narrow_linear_kernels  # here: triton takes a third of a second to import

    batch, num_heads, num_tokens, width = x.shape
    out = x.new_empty((batch, num_heads, len(weight), num_tokens), dtype=torch.float32)
    num_tiles = ceil_div(num_tokens, _TOKENS)
    narrow_linear_kernels.forward[(batch * num_heads * num_tiles,)](
        x, weight.contiguous(), bias.contiguous(), out, *x.stride()[:3], num_heads, num_tokens, num_tiles,
        WIDTH=width, DEPTH=power_of_two(width), OUTPUTS=len(weight), TOKENS=_TOKENS, **launch_options(),
    )  # fmt: skip
    return out


def backward(grad_out: Tensor, x: Tensor, weight: Tensor, needs: list[bool]) -> list[Tensor]:
    """Gradients of x, weight and bias; empty where nobody ``needs`` one. No atomics: two runs are equal."""
    from locatvit.ops import narrow_linear_kernels

    batch, num_heads, num_tokens, width = x.shape
    grad_x = empty_like_tokens(x) if needs[0] else x.new_empty(0)
    num_tiles = ceil_div(num_tokens, _TOKENS)
    num_all = batch * num_heads * num_tiles
    programs, needs_weight = min(num_all, _PROGRAMS), needs[1] or needs[2]
    parts = weight.new_empty((programs, len(weight), width + 1) if needs_weight else 0)
    narrow_linear_kernels.backward[(programs,)](
        grad_out.contiguous(), x, weight.contiguous(), grad_x, parts,
        *x.stride()[:3], num_heads, num_tokens, num_tiles, num_all, programs,
        WIDTH=width, DEPTH=power_of_two(width), OUTPUTS=len(weight), TOKENS=_TOKENS,
        NEEDS_X=needs[0], NEEDS_WEIGHT=needs_weight, **launch_options(),
    )  # fmt: skip
    if not needs_weight:
        return [grad_x, weight.new_empty(0), weight.new_empty(0)]
    whole = parts.sum(0)
    return [grad_x, whole[:, :-1].clone(), whole[:, -1].clone()]


_library = torch.library.Library("locatvit", "FRAGMENT")
_library.define("narrow_linear_forward(Tensor x, Tensor weight, Tensor bias) -> Tensor")
_library.define("narrow_linear_backward(Tensor grad_out, Tensor x, Tensor weight, bool[] needs) -> Tensor[]")
for _device in ("CUDA", "CPU"):  # on a CPU it runs in Triton's interpreter alone
    _library.impl("narrow_linear_forward", on_its_device(forward), _device)
    _library.impl("narrow_linear_backward", on_its_device(backward), _device)


@torch.library.register_fake("locatvit::narrow_linear_forward", lib=_library)
def _(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return x.new_empty((*x.shape[:2], len(weight), x.shape[2]), dtype=torch.float32)


@torch.library.register_fake("locatvit::narrow_linear_backward", lib=_library)
def _(grad_out: Tensor, x: Tensor, weight: Tensor, needs: list[bool]) -> list[Tensor]:
    grad_x = empty_like_tokens(x) if needs[0] else x.new_empty(0)
    if not (needs[1] or needs[2]):
        return [grad_x, weight.new_empty(0), weight.new_empty(0)]
    return [grad_x, weight.new_empty(weight.shape), weight.new_empty(len(weight))]


class NarrowLinear(torch.autograd.Function):
    """[B, H, O, L]; what is kept for the backward pass is x itself, in its own precision."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        out: Tensor = torch.ops.locatvit.narrow_linear_forward(x, weight, bias)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        needs = list(ctx.needs_input_grad)
        grads = torch.ops.locatvit.narrow_linear_backward(grad_out, *ctx.saved_tensors, needs)
        return tuple(grad if need else None for grad, need in zip(grads, needs, strict=True))
