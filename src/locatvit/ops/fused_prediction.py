"""Variance and alpha from queries on a GPU, by one kernel forward and one backward.

torch's own linear layer would first copy the queries to float32, and keep the copy for the backward pass; what follows
it is some twenty small kernels more. The kernels are in ``prediction_kernels.py``, what they compute in ``Prediction``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from locatvit.ops.launches import DTYPES, IS_INSTALLED, ceil_div, launch_options, on_its_device, power_of_two
from locatvit.ops.layout import empty_like_tokens

_MAX_OUTPUTS = 4
_MAX_WIDTH = 256
_TOKENS = 64  # of a tile
_PROGRAMS = 1024  # of the backward pass, each with its share of the weights' gradient


def can_run(x: Tensor, weight: Tensor) -> bool:
    """Whether the kernels can serve these queries."""
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


def forward(
    x: Tensor, weight: Tensor, bias: Tensor, num_widths: int, num_prefix_tokens: int, prediction: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """Variances [B, H, num_widths, N] and alpha [B, H, N or 0] in float32."""
    from locatvit.ops import prediction_kernels  # here: triton takes a third of a second to import

    batch, num_heads, num_tokens, _ = x.shape
    widths, alpha = _empty_outputs(x, weight, num_widths, num_prefix_tokens)
    variance_max, shift, floor, starts_at_zero = prediction
    num_tiles = ceil_div(num_tokens - num_prefix_tokens, _TOKENS)
    prediction_kernels.forward[(batch * num_heads * num_tiles,)](
        x, weight.contiguous(), bias.contiguous(), widths, alpha, variance_max, shift, floor,
        *x.stride()[:3], num_heads, num_tokens, num_prefix_tokens, num_tiles,
        **_constants(weight, num_widths), STARTS_AT_ZERO=bool(starts_at_zero),
    )  # fmt: skip
    return widths, alpha


def backward(
    grad_widths: Tensor,
    grad_alpha: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    num_widths: int,
    num_prefix_tokens: int,
    prediction: Sequence[float],
    needs: list[bool],
) -> list[Tensor]:
    """Gradients of x, weight and bias; empty where nobody ``needs`` one. No atomics: two runs are equal."""
    from locatvit.ops import prediction_kernels

    batch, num_heads, num_tokens, width = x.shape
    grad_x = empty_like_tokens(x) if needs[0] else x.new_empty(0)
    num_tiles = ceil_div(num_tokens, _TOKENS)
    num_all = batch * num_heads * num_tiles
    programs, needs_weight = min(num_all, _PROGRAMS), needs[1] or needs[2]
    parts = weight.new_empty((programs, len(weight), width + 1) if needs_weight else 0)
    variance_max, shift, _, _ = prediction
    prediction_kernels.backward[(programs,)](
        grad_widths, grad_alpha, x, weight.contiguous(), bias.contiguous(), grad_x, parts, variance_max, shift,
        *grad_widths.stride(), *grad_alpha.stride(), *x.stride()[:3],
        num_heads, num_tokens, num_prefix_tokens, num_tiles, num_all, programs,
        **_constants(weight, num_widths), NEEDS_X=needs[0], NEEDS_WEIGHT=needs_weight,
    )  # fmt: skip
    if not needs_weight:
        return [grad_x, weight.new_empty(0), weight.new_empty(0)]
    whole = parts.sum(0)
    return [grad_x, whole[:, :-1].clone(), whole[:, -1].clone()]


def _constants(weight: Tensor, num_widths: int) -> dict[str, Any]:
    outputs, width = weight.shape
    return {
        "WIDTH": width, "DEPTH": power_of_two(width), "NUM_WIDTHS": num_widths, "HAS_ALPHA": outputs > num_widths,
        "TOKENS": _TOKENS, **launch_options(),
    }  # fmt: skip


def _empty_outputs(x: Tensor, weight: Tensor, num_widths: int, num_prefix_tokens: int) -> tuple[Tensor, Tensor]:
    batch, num_heads, num_tokens, _ = x.shape
    num_patches = num_tokens - num_prefix_tokens
    has_alpha = len(weight) > num_widths
    widths = x.new_empty((batch, num_heads, num_widths, num_patches), dtype=torch.float32)
    return widths, x.new_empty((batch, num_heads, num_patches if has_alpha else 0), dtype=torch.float32)


_SETTINGS = "int num_widths, int num_prefix_tokens, float[] prediction"
_library = torch.library.Library("locatvit", "FRAGMENT")
_library.define(f"predict_forward(Tensor x, Tensor weight, Tensor bias, {_SETTINGS}) -> (Tensor, Tensor)")
_library.define(
    "predict_backward(Tensor grad_widths, Tensor grad_alpha, Tensor x, Tensor weight, Tensor bias, "
    f"{_SETTINGS}, bool[] needs) -> Tensor[]"
)
for _device in ("CUDA", "CPU"):  # on a CPU it runs in Triton's interpreter alone
    _library.impl("predict_forward", on_its_device(forward), _device)
    _library.impl("predict_backward", on_its_device(backward), _device)


@torch.library.register_fake("locatvit::predict_forward", lib=_library)
def _(x: Tensor, weight: Tensor, bias: Tensor, num_widths: int, num_prefix: int, _: Any) -> tuple[Tensor, Tensor]:
    return _empty_outputs(x, weight, num_widths, num_prefix)


@torch.library.register_fake("locatvit::predict_backward", lib=_library)
def _(grad_widths: Tensor, grad_alpha: Tensor, x: Tensor, weight: Tensor, bias: Tensor, *rest: Any) -> list[Tensor]:
    needs = rest[-1]
    grad_x = empty_like_tokens(x) if needs[0] else x.new_empty(0)
    if not (needs[1] or needs[2]):
        return [grad_x, weight.new_empty(0), weight.new_empty(0)]
    return [grad_x, weight.new_empty(weight.shape), weight.new_empty(len(weight))]


class FusedPrediction(torch.autograd.Function):
    """See ``forward``; what is kept for the backward pass is x itself, in its own precision."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, *settings: Any) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x, weight, bias)
        ctx.settings = settings
        outputs: tuple[Tensor, Tensor] = torch.ops.locatvit.predict_forward(x, weight, bias, *settings)
        return outputs

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_widths: Tensor, grad_alpha: Tensor) -> tuple[Tensor | None, ...]:
        needs = list(ctx.needs_input_grad[:3])
        grads = torch.ops.locatvit.predict_backward(grad_widths, grad_alpha, *ctx.saved_tensors, *ctx.settings, needs)
        return (*(grad if need else None for grad, need in zip(grads, needs, strict=True)), None, None, None)
