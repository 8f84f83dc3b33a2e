"""The linear layer with few outputs: torch's form, and its kernels in Triton's interpreter or on a GPU."""

import importlib.util

import pytest
import torch

from locatvit.ops import narrow_linear as narrow

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HAS_TRITON = importlib.util.find_spec("triton") is not None
needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="needs triton, which torch brings on Linux")
# batch, heads, tokens, width, outputs
SHAPES = [(2, 3, 37, 32, 3), (1, 2, 131, 64, 1), (2, 1, 5, 13, 2), (1, 5, 67, 80, 3), (3, 2, 1, 8, 4)]


def _inputs(shape, dtype=torch.float32):
    """x as a view of a host's projection, weight and bias in float32."""
    batch, heads, tokens, width, outputs = shape
    x = torch.randn(batch, tokens, 3, heads, width, device=DEVICE).to(dtype)[:, :, 1].transpose(1, 2)
    tensors = (x, torch.randn(outputs, width, device=DEVICE), torch.randn(outputs, device=DEVICE))
    return [tensor.detach().requires_grad_() for tensor in tensors]


def _truth(x, weight, bias):
    """[B, H, O, L] in float64, and what it depends on."""
    exact = [tensor.detach().double().requires_grad_() for tensor in (x, weight, bias)]
    return torch.einsum("bhlk,ok->bhol", exact[0], exact[1]) + exact[2][:, None], exact


def _close(got, want, bound):
    assert got.shape == want.shape
    assert (got.double() - want).abs().max() <= bound * want.abs().max()


@needs_triton
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("programs", [1024, 2])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_kernels_are_exact_with_gradients(shape, programs, monkeypatch):
    monkeypatch.setattr(narrow, "_PROGRAMS", programs)
    inputs = _inputs(shape)
    out, (truth, exact) = narrow.NarrowLinear.apply(*inputs), _truth(*inputs)
    _close(out, truth, 1e-6)
    cotangent = torch.randn_like(out)
    wanted = torch.autograd.grad(truth, exact, cotangent.double())
    for got, want in zip(torch.autograd.grad(out, inputs, cotangent), wanted, strict=True):
        _close(got, want, 2e-6)


@needs_triton
def test_half_precision_is_read_as_it_is_and_rounded_once():
    inputs = _inputs((2, 3, 37, 64, 3), torch.float16)
    out, (truth, exact) = narrow.NarrowLinear.apply(*inputs), _truth(*inputs)
    assert out.dtype == torch.float32
    _close(out, truth, 1e-6)
    cotangent = torch.randn_like(out)
    grads = torch.autograd.grad(out, inputs, cotangent)
    wanted = torch.autograd.grad(truth, exact, cotangent.double())
    assert [grad.dtype for grad in grads] == [torch.float16, torch.float32, torch.float32]
    _close(grads[0], wanted[0], 1e-3)
    for got, want in zip(grads[1:], wanted[1:], strict=True):
        _close(got, want, 2e-6)


@needs_triton
@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 2)])
def test_only_what_needs_a_gradient_gets_one(wanted):
    inputs = _inputs((2, 3, 37, 32, 3))
    full = torch.autograd.grad(narrow.NarrowLinear.apply(*inputs).square().sum(), inputs)
    inputs = [x.detach().requires_grad_(place in wanted) for place, x in enumerate(inputs)]
    narrow.NarrowLinear.apply(*inputs).square().sum().backward()
    for place, tensor in enumerate(inputs):
        assert torch.equal(tensor.grad, full[place]) if place in wanted else tensor.grad is None


@needs_triton
def test_the_registered_ops_keep_their_promises():
    x, weight, bias = (tensor.detach() for tensor in _inputs((2, 3, 5, 8, 3)))
    utilities = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.locatvit.narrow_linear_forward.default, (x, weight, bias), test_utils=utilities)
    grad = torch.randn(2, 3, 3, 5, device=DEVICE)
    for needs in ([True, True, True], [True, False, False], [False, True, False]):
        arguments = (grad, x, weight, needs)
        torch.library.opcheck(torch.ops.locatvit.narrow_linear_backward.default, arguments, test_utils=utilities)


@needs_triton
def test_it_compiles_to_one_graph():
    inputs = _inputs((2, 3, 5, 8, 3))
    compiled = torch.compile(lambda *x: narrow.NarrowLinear.apply(*x) * 2, fullgraph=True, backend="aot_eager")
    eager, out = narrow.NarrowLinear.apply(*inputs) * 2, compiled(*inputs)
    torch.testing.assert_close(out, eager)
    wanted = torch.autograd.grad(eager.sum(), inputs)
    for got, want in zip(torch.autograd.grad(out.sum(), inputs), wanted, strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_every_device_and_precision(dtype):
    """Through the door that all take, in whatever form it chooses."""
    inputs = _inputs((2, 3, 37, 32, 3), dtype)
    weights = [x.detach().to(torch.promote_types(dtype, torch.float32)) for x in inputs[1:]]
    out, (truth, _) = narrow.narrow_linear(inputs[0], *weights), _truth(*inputs)
    assert out.dtype == torch.promote_types(dtype, torch.float32)
    _close(out.mT, truth, 1e-6)
