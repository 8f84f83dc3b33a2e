"""Attention alone: its inputs, its steps, and whether it is right."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.attention.cases import OpCase
from benchmarks.attention.checks import Results, check, errors
from benchmarks.attention.contenders import DENSE, PLAIN, dtype_of, kernels_of, taking_part
from benchmarks.attention.dense import dense_attention
from locatvit.analysis.timing import Step
from locatvit.ops import Gaussian, gaug_attention, gaussian_attention
from locatvit.ops.attention import Request
from locatvit.ops.attention.reference import repeated

FACTORS = "triton, factors"
"""The kernels by their other entry: the factors are made first, and read."""
_CHECKED_PAIRS = 4
_CHECKED_WHOLE = 1 << 24  # logits


class Inputs(NamedTuple):
    """Of one call.

    Attributes:
        q, k, v: [B, H, L, K], as a host's projection lays them out.
        variance, alpha: of the patches, [B, H, N, 2] and [B, H, N], in float32, as GAug lays them out.
        attn_bias: Swin's, [windows, H, L, L]; None for a ViT.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    variance: Tensor
    alpha: Tensor
    attn_bias: Tensor | None


def contenders(case: OpCase, device: torch.device) -> tuple[str, ...]:
    """See ``taking_part``; the fused kernels by both of their entries."""
    windows = (case.num_windows, case.num_heads, case.num_tokens, case.num_tokens) if case.num_windows else None
    request = Request(
        device.type, dtype_of(case), case.head_dim, case.num_tokens, case.num_prefix_tokens, case.grid_size,
        attn_bias_shape=windows, attn_bias_needs_grad=case.train and windows is not None, needs_grad=case.train,
    )  # fmt: skip
    names = taking_part(case, [request])
    if "triton" not in names:
        return names
    place = names.index("triton") + 1
    return (*names[:place], FACTORS, *names[place:])


def make_inputs(case: OpCase, device: torch.device) -> Inputs:
    """Noise, the same each time; all of it asks for gradients in training."""
    torch.manual_seed(0)
    batch, heads, patches = case.batch_size, case.num_heads, case.num_patches
    qkv = torch.randn(batch, case.num_tokens, 3, heads, case.head_dim, dtype=dtype_of(case), device=device)
    variance = 0.5 + 8 * torch.rand(batch, heads, 2, patches, device=device)
    alpha = 2 * torch.rand(batch, heads, patches, device=device)
    attn_bias = None
    if case.num_windows:
        attn_bias = torch.randn(case.num_windows, heads, case.num_tokens, case.num_tokens, device=device)
        attn_bias = attn_bias.to(qkv.dtype)
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    return _each(lambda x: x.detach().requires_grad_(case.train), Inputs(q, k, v, variance.mT, alpha, attn_bias))


def _each(change: Callable[[Tensor], Tensor], inputs: Inputs) -> Inputs:
    attn_bias = None if inputs.attn_bias is None else change(inputs.attn_bias)
    q, k, v, variance, alpha = map(change, inputs[:5])
    return Inputs(q, k, v, variance, alpha, attn_bias)


def attend(case: OpCase, contender: str, inputs: Inputs) -> Tensor:
    """The output of one call, [B, H, L, K]."""
    q, k, v, variance, alpha, attn_bias = inputs
    if contender == PLAIN:
        attn_mask = None if attn_bias is None else repeated(attn_bias, len(q))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask)
    prefix = case.num_prefix_tokens
    if contender == DENSE:
        return dense_attention(*inputs, grid_size=case.grid_size, num_prefix_tokens=prefix)
    gaussian = Gaussian(variance, alpha, case.grid_size)
    if contender == FACTORS:
        return gaug_attention(
            q, k, v, *gaussian.factors(), num_prefix_tokens=prefix, attn_bias=attn_bias, backend="triton"
        )
    return gaussian_attention(q, k, v, gaussian, num_prefix_tokens=prefix, attn_bias=attn_bias, backend=contender)


def make_step(case: OpCase, contender: str, device: torch.device) -> Step:
    """``case.calls`` calls; in training each with the gradients of all that goes in."""
    inputs = make_inputs(case, device)
    kernels = partial(kernels_of, contender, device, has_bias=inputs.attn_bias is not None)
    if not case.train:

        def forward() -> None:
            with torch.inference_mode(), kernels():
                for _ in range(case.calls):
                    attend(case, contender, inputs)

        return forward
    wanted, cotangent = _wanted(contender, inputs), torch.randn_like(inputs.q)

    def train() -> None:
        with kernels():
            for _ in range(case.calls):
                torch.autograd.grad(attend(case, contender, inputs), wanted, cotangent)

    return train


def verify(case: OpCase, contender: str, device: torch.device) -> None:
    """Compare output and gradients, at the full size, with the reference in float64 on some heads of some images.

    Raises:
        LocAtError: they are further off than the tests of the op allow.
    """
    inputs, pairs = make_inputs(case, device), _pairs(case, device)
    cotangent = torch.randn_like(inputs.q)
    got = _results(case, contender, inputs, cotangent)
    part, some = _each(lambda x: _some(x, pairs), inputs), _some(cotangent, pairs)
    exact = _each(lambda x: x.detach().double().requires_grad_(case.train), part)
    truth = _results(case, "reference", exact, some.double())
    plain = _results(case, PLAIN, part, some)
    plain_truth = _results(case, PLAIN, exact, some.double())
    got = Results({name: _some(x, pairs) for name, x in got.items()})
    # a bias that is made whole is rounded to half precision before the logits have it, as in the authors' code
    rounds_bias = contender == DENSE or (contender == "sdpa" and device.type != "cpu")
    check(case.name, contender, got, truth, errors(plain, plain_truth), times_plain=4 if rounds_bias else 2)


def _wanted(contender: str, inputs: Inputs) -> list[Tensor]:
    """What gradients are asked for."""
    q, k, v, variance, alpha, attn_bias = inputs
    tensors = [q, k, v] if contender == PLAIN else [q, k, v, variance, alpha]
    return tensors if attn_bias is None else [*tensors, attn_bias]


def _results(case: OpCase, contender: str, inputs: Inputs, cotangent: Tensor) -> Results:
    with torch.set_grad_enabled(case.train):
        output = attend(case, contender, inputs)
    results = Results({"output": output.detach()})
    if case.train:
        wanted = _wanted(contender, inputs)
        names = [name for name in Inputs._fields if any(getattr(inputs, name) is x for x in wanted)]
        results.update(
            (f"gradient of {name}", x)
            for name, x in zip(names, torch.autograd.grad(output, wanted, cotangent), strict=True)
        )
    return results


def _pairs(case: OpCase, device: torch.device) -> Tensor | None:
    """Which heads of which images are compared; None for all, where there is a bias or little to compute."""
    count = case.batch_size * case.num_heads
    if case.num_windows or count * case.num_tokens**2 <= _CHECKED_WHOLE:
        return None
    return torch.linspace(0, count - 1, min(count, _CHECKED_PAIRS), device=device).round().long()


def _some(tensor: Tensor, pairs: Tensor | None) -> Tensor:
    """The chosen heads as images of one head each."""
    if pairs is None:
        return tensor
    chosen = tensor.detach().flatten(0, 1)[pairs][:, None]
    return chosen.requires_grad_(tensor.requires_grad)
