"""A Gaussian that the attention predicts from its own queries, against the formulas in float64."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

import formulas
from locatvit.errors import LocAtError
from locatvit.ops import BACKENDS, PredictedGaussian, gaug_attention, gaussian_attention
from locatvit.ops.attention import Request
from locatvit.ops.attention.pieces import plan, scratch
from locatvit.ops.prediction import Prediction

_EXACT = Request("cpu", torch.float64, 13, 36, 1, (5, 7), needs_grad=True)
ON_CPU = [name for name, backend in BACKENDS.items() if backend.why_not(_EXACT) is None]
# variance up to 49, some floor
PAPER = Prediction(49.0, math.log(48), 0.1, starts_at_zero=False)
IDENTITY = Prediction(49.0, math.log(48), 0.0, starts_at_zero=True)
SHAPES = [
    ((5, 7), 0),
    ((7, 5), 1),
    ((5, 7), 5),
    ((1, 11), 1),
    ((13, 1), 0),
    ((17, 19), 1),  # several pieces
    ((3, 23), 1),  # lines as neighbours in memory
    ((1, 1), 1),
]


KEPT_OR_NOT = pytest.mark.parametrize("grid_size", [(5, 7), (7, 9)], ids=["kept", "made again"])
"""Weights that are kept for the backward pass, and weights that are made again."""


def make_inputs(grid_size, prefix, dtype=torch.float64, batch=2, spread=1.0) -> list[Tensor]:
    """q, k, v, weight and bias of the three outputs; 3 heads of 13."""
    tokens = grid_size[0] * grid_size[1] + prefix
    qkv = spread * torch.randn(batch, tokens, 3, 3, 13, dtype=dtype).permute(2, 0, 3, 1, 4)
    weight, bias = 0.5 * torch.randn(3, 13, dtype=dtype), torch.randn(3, dtype=dtype)
    return [x.detach().requires_grad_() for x in (*qkv.unbind(0), weight, bias)]


def attend(inputs, grid_size, prefix, prediction=PAPER, clamp=None, queries=None, **options) -> Tensor:
    q, k, v, weight, bias = inputs
    queries = q if queries is None else queries
    gaussian = PredictedGaussian(queries, weight, bias, prediction, prefix, grid_size, clamp)
    return gaussian_attention(q, k, v, gaussian, num_prefix_tokens=prefix, **options)


def expected(inputs, grid_size, prefix, prediction=PAPER, clamp=None, queries=None, attn_bias=0.0) -> Tensor:
    q, k, v, weight, bias = inputs
    logits = (q if queries is None else queries)[:, :, prefix:] @ weight.T + bias
    variance = prediction.variance_max / (1 + torch.exp(prediction.shift - logits[..., :2])) + prediction.floor
    alpha = torch.log(1 + torch.exp(logits[..., 2])) - (math.log(2) if prediction.starts_at_zero else 0)
    cap = math.inf if clamp is None else clamp
    return formulas.attention(q, k, v, formulas.supplement(variance, alpha, *grid_size, prefix, cap) + attn_bias)


def compare(out: Tensor, truth: Tensor, inputs: list[Tensor]) -> None:
    torch.testing.assert_close(out, truth, rtol=1e-11, atol=1e-12)
    cotangent, wanted = torch.randn_like(out), [x for x in inputs if x.requires_grad]
    gradients = [torch.autograd.grad(x, wanted, cotangent, retain_graph=True) for x in (out, truth)]
    for got, want in zip(*gradients, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)


@pytest.fixture(params=["whole", "cut", "cut into queries"])
def _budget(request, monkeypatch):
    """Pieces of several heads, of one, and of some queries of one."""
    if request.param != "whole":
        monkeypatch.setattr(plan, "_PIECE_BYTES", {"cut": 30_000, "cut into queries": 3000}[request.param])
        monkeypatch.setattr(plan, "_QUERY_BLOCK", 8)


@pytest.mark.usefixtures("_budget")
@pytest.mark.parametrize("backend", ON_CPU)
@pytest.mark.parametrize(("prediction", "clamp"), [(PAPER, 6.0), (IDENTITY, None)])
@pytest.mark.parametrize(("grid_size", "prefix"), SHAPES)
@pytest.mark.parametrize("batch", [2, 5])
def test_forward_and_gradients_in_float64(backend, prediction, clamp, grid_size, prefix, batch):
    inputs = make_inputs(grid_size, prefix, batch=batch)
    out = attend(inputs, grid_size, prefix, prediction, clamp, backend=backend)
    compare(out, expected(inputs, grid_size, prefix, prediction, clamp), inputs)


@pytest.mark.usefixtures("_budget")
@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (3,), (4,), (3, 4), (0, 2, 4)], ids=str)
def test_only_the_gradients_that_are_needed(wanted):
    """Those of a frozen backbone are of the weights alone."""
    inputs = [x.detach().requires_grad_(i in wanted) for i, x in enumerate(make_inputs((5, 7), 1, batch=5))]
    compare(attend(inputs, (5, 7), 1), expected(inputs, (5, 7), 1), inputs)


@pytest.mark.parametrize("backend", ON_CPU)
@pytest.mark.parametrize("grid_size", [(5, 7), (7, 9)], ids=["kept", "made again"])
def test_a_further_bias_and_its_gradient(backend, grid_size):
    inputs = make_inputs(grid_size, 1, batch=6)
    tokens = inputs[0].shape[2]
    attn_bias = torch.randn(2, 3, tokens, tokens, dtype=torch.float64, requires_grad=True)
    out = attend(inputs, grid_size, 1, attn_bias=attn_bias, backend=backend)
    compare(out, expected(inputs, grid_size, 1, attn_bias=torch.cat([attn_bias] * 3)), [*inputs, attn_bias])


@pytest.mark.parametrize("grid_size", [(5, 7), (7, 9)], ids=["kept", "made again"])
def test_logits_that_need_the_maximum_taken_away(grid_size, monkeypatch):
    """Powers of them leave float64; in some of the pieces, and in all that come after."""
    monkeypatch.setattr(plan, "_PIECE_BYTES", 40_000)
    inputs = make_inputs(grid_size, 1)
    with torch.no_grad():
        inputs[1][1:] *= 400
    truth = expected(inputs, grid_size, 1)
    assert truth.isfinite().all()
    compare(attend(inputs, grid_size, 1), truth, inputs)


@pytest.mark.parametrize("backend", ON_CPU)
def test_queries_that_are_rotated_after_the_prediction(backend):
    inputs = make_inputs((5, 7), 1)
    before = torch.randn_like(inputs[0]).requires_grad_()
    out = attend(inputs, (5, 7), 1, queries=before, backend=backend)
    compare(out, expected(inputs, (5, 7), 1, queries=before), [*inputs, before])


@pytest.mark.parametrize("backend", ON_CPU)
def test_float32_is_as_good_as_plain_attention(backend):
    inputs = make_inputs((14, 13), 1)
    truth, cotangent = expected(inputs, (14, 13), 1), torch.randn(2, 3, 183, 13, dtype=torch.float64)
    single = [x.detach().float().requires_grad_() for x in inputs]
    out = attend(single, (14, 13), 1, backend=backend)
    plain, plain_truth = (torch.nn.functional.scaled_dot_product_attention(*x[:3]) for x in (single, inputs))
    plain_error = (plain - plain_truth).abs().max() / plain_truth.abs().max()
    assert (out - truth).abs().max() / truth.abs().max() <= max(2 * plain_error, 1e-6)
    gradients = torch.autograd.grad(out, single, cotangent.float()), torch.autograd.grad(truth, inputs, cotangent)
    for got, want in zip(*gradients, strict=True):
        assert (got - want).abs().max() <= 1e-5 * want.abs().max()


@pytest.mark.parametrize("backend", ON_CPU)
def test_half_precision_is_computed_in_float32(backend):
    inputs = make_inputs((5, 7), 1, torch.float32)
    half = [x.detach().bfloat16() for x in inputs[:3]] + inputs[3:]
    out = attend(half, (5, 7), 1, backend=backend)
    truth = expected([x.double() for x in half], (5, 7), 1)
    assert out.dtype == torch.bfloat16
    assert (out - truth).abs().max() <= 2**-8 * truth.abs().max()  # one rounding to bfloat16
    (got,) = torch.autograd.grad(out.float().square().sum(), (inputs[3],))
    (want,) = torch.autograd.grad(truth.square().sum(), (inputs[3],))
    assert (got - want).abs().max() <= 2**-6 * want.abs().max()


@pytest.mark.parametrize("grid_size", [(5, 7), (7, 9), (3, 23)], ids=["kept", "made again", "wide"])
def test_memory_that_is_not_overwritten_would_show(grid_size):
    inputs = make_inputs(grid_size, 5, torch.float32)
    first = torch.autograd.grad(attend(inputs, grid_size, 5).square().sum(), inputs)
    for room in scratch._scratch.rooms.values():
        room.fill_(float("nan"))
    scratch._scratch.views.clear()
    again = torch.autograd.grad(attend(inputs, grid_size, 5).square().sum(), inputs)
    for one, other in zip(first, again, strict=True):
        assert one.equal(other)


def test_two_sizes_by_turns_in_inference_and_in_training(monkeypatch):
    """The rooms' views are kept by form; those of a smaller room must not outlive it."""
    monkeypatch.setattr(scratch, "_scratch", scratch._Scratch())
    small, large = make_inputs((3, 5), 1), make_inputs((5, 7), 1)
    with torch.inference_mode():
        before = attend(small, (3, 5), 1).clone()
    for _ in range(2):
        compare(attend(large, (5, 7), 1), expected(large, (5, 7), 1), large)
        compare(attend(small, (3, 5), 1), expected(small, (3, 5), 1), small)
    torch.testing.assert_close(before, expected(small, (3, 5), 1).detach(), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("grid_size", [(5, 7), (18, 21)], ids=["kept", "made again"])
def test_gradients_in_half_precision_where_values_are_alike(grid_size):
    """The gradient of a weight is then a small difference, of which a rounded output would leave little."""
    inputs = [x.detach() for x in make_inputs(grid_size, 1, torch.float32)]
    inputs[2] = inputs[2] + 16 * torch.randn(13)
    half = [x.bfloat16().requires_grad_() for x in inputs[:3]] + [x.requires_grad_() for x in inputs[3:]]
    exact = [x.detach().double().requires_grad_() for x in half]
    cotangent = torch.randn(2, 3, half[0].shape[2], 13).bfloat16()
    grads = torch.autograd.grad(attend(half, grid_size, 1), half, cotangent)
    wanted = torch.autograd.grad(expected(exact, grid_size, 1), exact, cotangent.double())
    for got, want in zip(grads, wanted, strict=True):
        bound = 2**-8 if got.dtype == torch.bfloat16 else 1e-3
        assert (got.double() - want).norm() <= bound * want.norm()


@KEPT_OR_NOT
def test_a_backward_pass_cuts_as_the_forward_pass_did(grid_size):
    """Also with other threads, and where what was saved has another layout since."""
    inputs = make_inputs(grid_size, 1)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        out = attend(inputs, grid_size, 1)
        torch.set_num_threads(1)
        compare(out, expected(inputs, grid_size, 1), inputs)
    finally:
        torch.set_num_threads(threads)
    q, k, v, _, _ = inputs
    factors = [torch.rand(2, 3, side, q.shape[2] - 1, dtype=q.dtype).mT.requires_grad_() for side in grid_size]
    with torch.autograd.graph.saved_tensors_hooks(lambda x: x.clone().contiguous(), lambda x: x):
        out = gaug_attention(q, k, v, *factors, num_prefix_tokens=1)
    dense = formulas.padded((factors[0][..., :, None] * factors[1][..., None, :]).flatten(-2), 1)
    compare(out, formulas.attention(q, k, v, dense), [q, k, v, *factors])


@KEPT_OR_NOT
def test_two_backward_passes_of_one_graph(grid_size):
    inputs = make_inputs(grid_size, 1)
    out = attend(inputs, grid_size, 1)
    first = torch.autograd.grad(out.sum(), inputs, retain_graph=True)
    for again, once in zip(torch.autograd.grad(out.sum(), inputs), first, strict=True):
        assert again.equal(once)


def test_a_tiny_variance_has_finite_gradients():
    """Without a floor 1 / variance² leaves float32 long before the Gaussian does."""
    inputs = [x.detach() for x in make_inputs((3, 4), 1, torch.float32)]
    inputs[3] *= 0
    inputs[4] = torch.tensor([-46.0, -50.0, 0.3])
    inputs = [x.requires_grad_() for x in inputs]
    out = attend(inputs, (3, 4), 1, Prediction(49.0, math.log(48), 0.0, starts_at_zero=False))
    for gradient in torch.autograd.grad(out.square().sum(), inputs):
        assert gradient.isfinite().all()


@pytest.mark.parametrize("scale", [0.3, -0.3, 1e-6])
def test_a_scale_of_ones_own(scale):
    inputs = make_inputs((5, 7), 1)
    scaled = [inputs[0] * (scale * math.sqrt(13)), *inputs[1:]]
    compare(attend(inputs, (5, 7), 1, scale=scale), expected(scaled, (5, 7), 1, queries=inputs[0]), inputs)


def test_calls_from_two_threads_do_not_meet():
    cases = [make_inputs((5, 7), 1), make_inputs((7, 9), 5)]
    grids = [((5, 7), 1), ((7, 9), 5)]

    def gradients(index: int) -> list[tuple[Tensor, ...]]:
        def once() -> tuple[Tensor, ...]:
            return torch.autograd.grad(attend(cases[index], *grids[index]).square().sum(), cases[index])

        return [once() for _ in range(20)]

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(gradients, (0, 1)))
    for index, each in enumerate(found):
        want = gradients(index)[0]
        assert all(x.equal(y) for got in each for x, y in zip(got, want, strict=True))


def test_other_grids_need_no_new_graph():
    graphs: list[object] = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    def both(q, k, v, row, column):
        return gaug_attention(q, k, v, row, column, num_prefix_tokens=1)

    torch._dynamo.reset()
    compiled = torch.compile(both, fullgraph=True, backend=backend, dynamic=True)
    with torch.no_grad():
        for grid_size in ((5, 7), (4, 9), (6, 11), (7, 12), (8, 9)):  # none has a side that something else has
            tokens = grid_size[0] * grid_size[1] + 1
            qkv = [torch.randn(2, 3, tokens, 13) for _ in range(3)]
            factors = [torch.rand(2, 3, tokens - 1, side) for side in grid_size]
            torch.testing.assert_close(compiled(*qkv, *factors), both(*qkv, *factors))
    assert len(graphs) == 1


@pytest.mark.parametrize("backend", ON_CPU)
def test_no_images_give_no_output(backend):
    inputs = make_inputs((5, 7), 1, batch=0)
    out = attend(inputs, (5, 7), 1, backend=backend)
    assert out.shape == (0, 3, 36, 13)
    for gradient, tensor in zip(torch.autograd.grad(out.sum(), inputs), inputs, strict=True):
        assert gradient.equal(torch.zeros_like(tensor))


@pytest.mark.parametrize("backend", ON_CPU)
def test_a_scale_of_zero_leaves_the_bias_alone(backend):
    inputs = make_inputs((5, 7), 1)
    zero = [torch.zeros_like(inputs[0]), *inputs[1:]]
    out = attend(inputs, (5, 7), 1, scale=0.0, backend=backend)
    compare(out, expected(zero, (5, 7), 1, queries=inputs[0]), inputs[:1] + inputs[2:])


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_compiles_to_one_graph(backend):
    inputs = make_inputs((5, 7), 1, torch.float32)

    def both(*tensors):
        return attend(tensors, (5, 7), 1, backend=backend)

    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")
    out, eager = compiled(*inputs), both(*inputs)
    torch.testing.assert_close(out, eager)
    gradients = [torch.autograd.grad(x.sum(), inputs) for x in (out, eager)]
    for got, want in zip(*gradients, strict=True):
        torch.testing.assert_close(got, want)


def test_what_does_not_fit_is_refused():
    inputs = make_inputs((5, 7), 1)
    with pytest.raises(LocAtError, match=r"predicted from \(2, 3, 35, 13\) queries with 1 prefix tokens but q has"):
        attend(inputs, (5, 7), 1, queries=inputs[0][:, :, 1:])
    q, k, v, weight, bias = inputs
    with pytest.raises(LocAtError, match=r"shapes \(2, 13\) and \(3,\); they must be \(3, 13\) and \(3,\): variance"):
        attend([q, k, v, weight[1:], bias], (5, 7), 1)
    with pytest.raises(LocAtError, match=r"grid_size \(4, 7\) has 28 patches but 35 remain"):
        attend(inputs, (4, 7), 1)
