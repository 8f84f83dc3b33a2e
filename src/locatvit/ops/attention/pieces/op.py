"""The pieces as an operation of torch: registration and autograd."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from locatvit.ops.attention.pieces.backward import backward, empty_gradients, rounded
from locatvit.ops.attention.pieces.forward import empty_kept, forward
from locatvit.ops.attention.pieces.plan import compute_dtype
from locatvit.ops.layout import empty_like_tokens
from locatvit.ops.prediction import PredictedGaussian

# Registered so that torch.compile sees one node, with shapes but no values. The kernels are called through the
# dispatcher alone: torch.library.custom_op costs 0.1 ms a call, 1 % of a small ViT.
_TENSORS = "Tensor q, Tensor k, Tensor v, Tensor first, Tensor second, Tensor? attn_bias"
_SETTINGS = "SymInt[] grid_size, float[] prediction, int num_prefix_tokens, float scale"
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
    return empty_like_tokens(q), empty_kept(q, prediction, is_training)


@torch.library.register_fake("locatvit::pieces_backward", lib=_library)
def _(grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, first: Tensor, second: Tensor, *rest: Any) -> list[Tensor]:
    attn_bias, prediction, needs = rest[0], rest[4], rest[-1]
    return rounded(empty_gradients(q, first, second, attn_bias, prediction, needs), q, first, second, attn_bias)


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
