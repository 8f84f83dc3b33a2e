"""Attention on a CPU cut into pieces of some queries and some keys, against the formulas in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from given_factors import expected_attention, make_inputs
from locatvit.ops import gaug_attention
from locatvit.ops.attention.pieces import plan, scratch

# more tokens than 4 * 13, so that weights are not kept for the backward pass
GRIDS = pytest.mark.parametrize(
    ("grid_size", "prefix"), [((7, 9), 0), ((9, 7), 1), ((5, 13), 5), ((1, 61), 1), ((67, 1), 1), ((3, 23), 16)]
)
HALF = torch.bfloat16


@pytest.fixture(params=["one head each", "cut"], autouse=True)
def _small(request, monkeypatch):
    """One head of one image a piece; and of it some queries, and some rows of keys, the last ones fewer."""
    monkeypatch.setattr(plan, "_SINGLE_BYTES", 1)
    if request.param == "cut":
        monkeypatch.setattr(plan, "_PIECE_BYTES", 10_000)
        monkeypatch.setattr(plan, "_QUERY_BLOCK", 8)


def compare(out: Tensor, truth: Tensor, inputs: list[Tensor]) -> None:
    torch.testing.assert_close(out, truth, rtol=1e-11, atol=1e-12)
    cotangent, wanted = torch.randn_like(out), [x for x in inputs if x.requires_grad]
    gradients = [torch.autograd.grad(x, wanted, cotangent) for x in (out, truth)]
    for got, want in zip(*gradients, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)


@GRIDS
@pytest.mark.parametrize("patches_innermost", [False, True])
def test_forward_and_gradients(grid_size, prefix, patches_innermost):
    inputs = make_inputs(grid_size, prefix, patches_innermost=patches_innermost)
    compare(gaug_attention(*inputs, num_prefix_tokens=prefix), expected_attention(*inputs, prefix), inputs)


@GRIDS
def test_gradients_without_batched_products(grid_size, prefix, monkeypatch):
    """Of torch without MKL, which makes a product of many small matrices one by one."""
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    inputs = make_inputs(grid_size, prefix)
    compare(gaug_attention(*inputs, num_prefix_tokens=prefix), expected_attention(*inputs, prefix), inputs)


def test_gradients_of_factors_with_gaps():
    """Factors that are parts of larger tensors, and columns that are the same for all heads and images."""
    q, k, v, row, column = make_inputs((7, 9), 1)
    wide = torch.randn(2, 3, 2 * 63, 9, dtype=torch.float64)
    wide[:, :, ::2, 1:8] = row.detach()
    for apart, same in ((wide[:, :, ::2, 1:8], column), (row, column[:1, :1].expand(2, 3, -1, -1))):
        inputs = [q, k, v, apart.detach().requires_grad_(), same.detach().requires_grad_()]
        compare(gaug_attention(*inputs, num_prefix_tokens=1), expected_attention(*inputs, 1), inputs)


@GRIDS
@pytest.mark.parametrize("shape", ["LL", "1L", "L1"])
def test_a_further_bias(grid_size, prefix, shape):
    inputs = make_inputs(grid_size, prefix)
    sides = [inputs[0].shape[2] if letter == "L" else 1 for letter in shape]
    attn_bias = torch.randn(2, 1, *sides, dtype=torch.float64, requires_grad=True)
    out = gaug_attention(*inputs, num_prefix_tokens=prefix, attn_bias=attn_bias)
    compare(out, expected_attention(*inputs, prefix, attn_bias), [*inputs, attn_bias])


def test_a_further_bias_of_every_second_image():
    inputs = make_inputs((7, 9), 1, batch=4)
    attn_bias = torch.randn(2, 3, 64, 64, dtype=torch.float64, requires_grad=True)
    out = gaug_attention(*inputs, num_prefix_tokens=1, attn_bias=attn_bias)
    compare(out, expected_attention(*inputs, 1, torch.cat([attn_bias] * 2)), [*inputs, attn_bias])


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (3,), (4,), (0, 2, 4)], ids=str)
def test_only_the_gradients_that_are_needed(wanted):
    inputs = [x.detach().requires_grad_(index in wanted) for index, x in enumerate(make_inputs((7, 9), 1))]
    compare(gaug_attention(*inputs, num_prefix_tokens=1), expected_attention(*inputs, 1), inputs)


@GRIDS
def test_logits_whose_powers_leave_float64(grid_size, prefix):
    """The maximum of all keys is taken away then; it lies among the last ones, which come last."""
    inputs = make_inputs(grid_size, prefix)
    with torch.no_grad():
        inputs[1][1, :, -3:] *= 1000
    truth = expected_attention(*inputs, prefix)
    assert truth.isfinite().all()
    compare(gaug_attention(*inputs, num_prefix_tokens=prefix), truth, inputs)


def test_keys_that_are_excluded_piece_by_piece():
    """Queries without a key among the first ones, and one without any, which gets zero."""
    inputs = make_inputs((7, 9), 1)
    allowed = torch.ones(64, 64, dtype=torch.bool).triu()
    mask = torch.zeros(64, 64, dtype=torch.float64).masked_fill(~allowed, float("-inf"))
    compare(gaug_attention(*inputs, num_prefix_tokens=1, attn_bias=mask), expected_attention(*inputs, 1, mask), inputs)
    free = gaug_attention(*inputs, num_prefix_tokens=1, attn_bias=mask).detach()
    mask[11] = float("-inf")
    out = gaug_attention(*inputs, num_prefix_tokens=1, attn_bias=mask)
    free[:, :, 11] = 0
    torch.testing.assert_close(out, free)
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(out.square().sum(), inputs))


@GRIDS
def test_half_precision(grid_size, prefix):
    """Computed in float32, gradients too: values that are alike leave little of a rounded output."""
    inputs = [x.detach() for x in make_inputs(grid_size, prefix, torch.float32)]
    inputs[2] = inputs[2] + 16 * torch.randn(13)
    half = [x.to(HALF).requires_grad_() for x in inputs[:3]] + [x.requires_grad_() for x in inputs[3:]]
    exact = [x.detach().double().requires_grad_() for x in half]
    out, truth = gaug_attention(*half, num_prefix_tokens=prefix), expected_attention(*exact, prefix)
    assert out.dtype == HALF
    assert (out - truth).abs().max() <= 2**-8 * truth.abs().max()  # one rounding
    cotangent = torch.randn(out.shape).to(HALF)
    grads = torch.autograd.grad(out, half, cotangent), torch.autograd.grad(truth, exact, cotangent.double())
    for got, want in zip(*grads, strict=True):
        bound = 2**-8 if got.dtype == HALF else 1e-3
        assert (got.double() - want).norm() <= bound * want.norm()


def test_gradients_of_factors_in_half_precision():
    """Those of the columns are sums over the pieces, rounded once."""
    exact = make_inputs((7, 9), 1)
    half = [x.detach().float() for x in exact[:3]] + [x.detach().to(HALF) for x in exact[3:]]
    half = [x.requires_grad_() for x in half]
    exact = [x.detach().double().requires_grad_() for x in half]
    cotangent = torch.randn_like(exact[0])
    got = torch.autograd.grad(gaug_attention(*half, num_prefix_tokens=1), half[3:], cotangent.float())
    want = torch.autograd.grad(expected_attention(*exact, 1), exact[3:], cotangent)
    for one, other in zip(got, want, strict=True):
        assert one.dtype == HALF
        assert ((one - other).abs() <= 2**-8 * other.abs() + 1e-5 * other.abs().max()).all()


@GRIDS
def test_memory_that_is_not_overwritten_would_show(grid_size, prefix):
    inputs = make_inputs(grid_size, prefix, torch.float32)

    def gradients() -> tuple[Tensor, ...]:
        return torch.autograd.grad(gaug_attention(*inputs, num_prefix_tokens=prefix).square().sum(), inputs)

    first = gradients()
    for room in scratch._scratch.rooms.values():
        room.fill_(float("nan"))
    for one, other in zip(first, gradients(), strict=True):
        assert one.equal(other)
