"""Variance and alpha from queries: torch's form, and its kernels in Triton's interpreter or on a GPU."""

import importlib.util
import math

import pytest
import torch

from locatvit.ops import fused_prediction as fused
from locatvit.ops.prediction import Prediction, predict

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HAS_TRITON = importlib.util.find_spec("triton") is not None
needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="needs triton, which torch brings on Linux")
PAPER = Prediction(196.0, math.log(195), 0.1, starts_at_zero=False)
IDENTITY = Prediction(49.0, math.log(48), 0.0, starts_at_zero=True)
# batch, heads, tokens, width, variances, alphas, prefix
CASES = [
    ((2, 3, 37, 32, 2, 1), 1), ((1, 2, 131, 64, 1, 0), 0), ((2, 1, 7, 13, 1, 1), 5), ((1, 5, 67, 80, 2, 1), 3),
    ((3, 2, 2, 8, 0, 1), 1), ((2, 2, 70, 16, 2, 0), 5),
]  # fmt: skip


def _inputs(shape, dtype=torch.float32):
    """x as a view of a host's projection, weight and bias in float32."""
    batch, heads, tokens, width, *outputs = shape
    x = torch.randn(batch, tokens, 3, heads, width, device=DEVICE).to(dtype)[:, :, 1].transpose(1, 2)
    tensors = (x, torch.randn(sum(outputs), width, device=DEVICE), torch.randn(sum(outputs), device=DEVICE))
    return [tensor.detach().requires_grad_() for tensor in tensors]


def _truth(inputs, prediction, num_widths, prefix):
    """Variances [B, H, W, N] and alpha [B, H, N or 0] in float64, and what they depend on."""
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    logits = torch.einsum("bhlk,ok->bhol", exact[0], exact[1])[..., prefix:] + exact[2][:, None]
    top, shift, floor, starts_at_zero = prediction
    variance = top / (1 + torch.exp(shift - logits[:, :, :num_widths])) + floor
    alpha = torch.log(1 + torch.exp(logits[:, :, num_widths:])) - (math.log(2) if starts_at_zero else 0)
    return (variance, alpha.flatten(2)), exact


def _close(got, want, bound):
    assert got.shape == want.shape
    assert ((got.double() - want).abs() <= bound * (want.abs().max() if want.numel() else 0)).all()


@needs_triton
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("programs", [1024, 2])
@pytest.mark.parametrize("prediction", [PAPER, IDENTITY])
@pytest.mark.parametrize(("shape", "prefix"), CASES, ids=str)
def test_kernels_are_exact_with_gradients(shape, prefix, prediction, programs, monkeypatch):
    monkeypatch.setattr(fused, "_PROGRAMS", programs)
    inputs, num_widths = _inputs(shape), shape[4]
    outputs = fused.FusedPrediction.apply(*inputs, num_widths, prefix, prediction.numbers())
    truth, exact = _truth(inputs, prediction, num_widths, prefix)
    for got, want in zip(outputs, truth, strict=True):
        _close(got, want, 2e-6)
    cotangents = [torch.randn_like(output.mT).mT for output in outputs]  # as the attention gives them, in any layout
    grads = torch.autograd.grad(outputs, inputs, cotangents)
    wanted = torch.autograd.grad(truth, exact, [x.double() for x in cotangents])
    _close(grads[0], wanted[0], 5e-6)
    # the bias is one column more of the weight: a sum that cancels by itself is not judged by what is left of it
    _close(*(torch.cat((weight, bias[:, None]), 1) for _, weight, bias in (grads, wanted)), 5e-6)


@needs_triton
def test_small_and_large_alpha_are_exact():
    """ln(1 + exp(x)) is exp(x) far below zero, and x far above."""
    logits = torch.tensor([-60.0, -20.0, -16.0, -9.0, -3.0, 0.0, 3.0, 20.0, 90.0], device=DEVICE)
    x = logits[None, None, :, None] * torch.ones(8, device=DEVICE) / 8
    weight, bias = torch.ones(1, 8, device=DEVICE), torch.zeros(1, device=DEVICE)
    alpha = fused.forward(x, weight, bias, 0, 0, PAPER.numbers())[1][0, 0].double()
    want = torch.log1p(torch.exp(logits.double()))
    assert ((alpha - want).abs() <= 3e-6 * want).all()
    at_zero = fused.forward(torch.zeros_like(x), weight, bias, 0, 0, IDENTITY.numbers())[1]
    assert (at_zero == 0).all()


@needs_triton
def test_half_precision_is_read_as_it_is_and_rounded_once():
    inputs = _inputs((2, 3, 37, 64, 2, 1), torch.float16)
    outputs = fused.FusedPrediction.apply(*inputs, 2, 1, PAPER.numbers())
    truth, exact = _truth(inputs, PAPER, 2, 1)
    for got, want in zip(outputs, truth, strict=True):
        assert got.dtype == torch.float32
        _close(got, want, 5e-6)
    cotangents = [torch.randn_like(output) for output in outputs]
    grads = torch.autograd.grad(outputs, inputs, cotangents)
    wanted = torch.autograd.grad(truth, exact, [x.double() for x in cotangents])
    assert [grad.dtype for grad in grads] == [torch.float16, torch.float32, torch.float32]
    _close(grads[0], wanted[0], 1e-3)
    for got, want in zip(grads[1:], wanted[1:], strict=True):
        _close(got, want, 1e-5)


@needs_triton
@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 2)])
def test_only_what_needs_a_gradient_gets_one(wanted):
    def loss(tensors):
        return sum(x.square().sum() for x in fused.FusedPrediction.apply(*tensors, 2, 1, PAPER.numbers()))

    inputs = _inputs((2, 3, 37, 32, 2, 1))
    full = torch.autograd.grad(loss(inputs), inputs)
    inputs = [x.detach().requires_grad_(place in wanted) for place, x in enumerate(inputs)]
    loss(inputs).backward()
    for place, tensor in enumerate(inputs):
        assert torch.equal(tensor.grad, full[place]) if place in wanted else tensor.grad is None


@needs_triton
def test_the_registered_ops_keep_their_promises():
    tensors = [tensor.detach() for tensor in _inputs((2, 3, 5, 8, 2, 1))]
    settings = 2, 1, list(PAPER.numbers())
    utilities = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.locatvit.predict_forward.default, (*tensors, *settings), test_utils=utilities)
    grads = torch.randn(2, 3, 2, 4, device=DEVICE), torch.randn(2, 3, 4, device=DEVICE)
    for needs in ([True, True, True], [True, False, False], [False, True, False]):
        arguments = (*grads, *tensors, *settings, needs)
        torch.library.opcheck(torch.ops.locatvit.predict_backward.default, arguments, test_utils=utilities)


@needs_triton
def test_it_compiles_to_one_graph():
    def total(*tensors):
        variance, alpha = fused.FusedPrediction.apply(*tensors, 2, 1, PAPER.numbers())
        return variance.sum(2) * alpha

    inputs = _inputs((2, 3, 5, 8, 2, 1))
    compiled = torch.compile(total, fullgraph=True, backend="aot_eager")
    eager, out = total(*inputs), compiled(*inputs)
    torch.testing.assert_close(out, eager)
    wanted = torch.autograd.grad(eager.sum(), inputs)
    for got, want in zip(torch.autograd.grad(out.sum(), inputs), wanted, strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("shape", "prefix"), CASES, ids=str)
def test_every_device_and_precision(dtype, shape, prefix):
    """Through the door that all take, in whatever form it chooses."""
    inputs, num_widths = _inputs(shape, dtype), shape[4]
    weights = [x.detach().to(torch.promote_types(dtype, torch.float32)) for x in inputs[1:]]
    variance, alpha = predict(inputs[0], *weights, PAPER, num_widths, prefix)
    truth, _ = _truth(inputs, PAPER, num_widths, prefix)
    assert variance.dtype == torch.promote_types(dtype, torch.float32)
    _close(variance.mT, truth[0], 5e-6)
    assert (alpha is None) == (shape[5] == 0)
    if alpha is not None:
        _close(alpha, truth[1], 5e-6)
