"""Every backend against the formulas in float64, forward and all gradients."""

import pytest
import torch

import formulas
from given_factors import expected_attention, make_inputs
from locatvit.errors import LocAtError
from locatvit.ops import BACKENDS, Gaussian, gaug_attention, gaussian_attention
from locatvit.ops.attention import Request, choose_backend
from locatvit.ops.attention.pieces import plan, scratch

# a different prime for every axis: batch 2, heads 3, head dimension 13, grid 5 x 7 and others
_EXACT = Request("cpu", torch.float64, 13, 36, 1, (5, 7), needs_grad=True)
ON_CPU = [name for name, backend in BACKENDS.items() if backend.why_not(_EXACT) is None]
"""Backends with gradients in float64; test_triton.py and test_flex.py have the others."""
SHAPES = [
    ((5, 7), 0),
    ((5, 7), 1),
    ((7, 5), 5),
    ((1, 11), 1),
    ((13, 1), 0),
    ((17, 19), 1),  # several pieces
    ((1, 1), 1),
]


@pytest.fixture(params=["whole", "cut"])
def _budget(request, monkeypatch):
    """Once as it is, once with a budget so small that even small shapes are cut into pieces."""
    if request.param == "cut":
        monkeypatch.setattr(plan, "_PIECE_BYTES", 3000)
        monkeypatch.setattr(plan, "_QUERY_BLOCK", 8)


@pytest.mark.usefixtures("_budget")
@pytest.mark.parametrize("backend", ON_CPU)
@pytest.mark.parametrize("patches_innermost", [False, True])
@pytest.mark.parametrize(("grid_size", "prefix"), SHAPES)
@pytest.mark.parametrize("batch", [2, 4])  # pieces of some heads of one image, and of one head of some images
def test_forward_and_gradients_in_float64(backend, grid_size, prefix, patches_innermost, batch):
    inputs = make_inputs(grid_size, prefix, batch=batch, patches_innermost=patches_innermost)
    out = gaug_attention(*inputs, num_prefix_tokens=prefix, backend=backend)
    expected = expected_attention(*inputs, prefix)
    cotangent = torch.randn_like(out)
    torch.testing.assert_close(out, expected, rtol=1e-11, atol=1e-12)
    for got, want in zip(
        torch.autograd.grad(out, inputs, cotangent),
        torch.autograd.grad(expected, inputs, cotangent),
        strict=True,
    ):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("backend", ON_CPU)
def test_float32_is_as_good_as_plain_attention(backend):
    inputs = make_inputs((14, 13), 1)
    truth = expected_attention(*inputs, 1)
    cotangent = torch.randn_like(truth)
    single = [x.detach().float().requires_grad_() for x in inputs]
    out = gaug_attention(*single, num_prefix_tokens=1, backend=backend)
    plain = torch.nn.functional.scaled_dot_product_attention(*single[:3])
    plain_truth = torch.nn.functional.scaled_dot_product_attention(*inputs[:3])
    plain_error = (plain - plain_truth).abs().max() / plain_truth.abs().max()
    assert (out - truth).abs().max() / truth.abs().max() <= max(2 * plain_error, 1e-6)
    for got, want in zip(
        torch.autograd.grad(out, single, cotangent.float()),
        torch.autograd.grad(truth, inputs, cotangent),
        strict=True,
    ):
        assert (got - want).abs().max() <= 1e-5 * want.abs().max()


@pytest.mark.parametrize("backend", ON_CPU)
def test_bfloat16_is_within_twice_plain_attention(backend):
    inputs = [x.detach().float() for x in make_inputs((11, 13), 1)]
    low = [x.bfloat16() for x in inputs[:3]]
    factors = inputs[3:]
    rounded = [x.double() for x in low]
    truth = expected_attention(*rounded, *(x.double() for x in factors), 1)
    out = gaug_attention(*low, *factors, num_prefix_tokens=1, backend=backend)
    plain_truth = torch.nn.functional.scaled_dot_product_attention(*rounded)
    plain = torch.nn.functional.scaled_dot_product_attention(*low)
    plain_error = (plain - plain_truth).abs().max() / plain_truth.abs().max()
    assert out.dtype == torch.bfloat16
    assert (out - truth).abs().max() / truth.abs().max() <= 2 * plain_error


@pytest.mark.parametrize("backend", ON_CPU)
@pytest.mark.parametrize("pieces", ["whole", "small"])
@pytest.mark.parametrize(("batch", "windows"), [(6, 2), (6, 3), (15, 5)])
def test_a_bias_of_the_windows_of_one_image(backend, pieces, batch, windows, monkeypatch):
    """Swin's mask: [windows, H, L, L] for a batch of images in windows."""
    if pieces == "small":  # a piece then begins and ends anywhere in the period
        monkeypatch.setattr("locatvit.ops.attention.pieces.plan._PIECE_BYTES", 8 * 35 * 35 * 4)
    inputs = make_inputs((5, 7), 0, batch=batch)
    attn_bias = torch.randn(windows, 3, 35, 35, dtype=torch.float64, requires_grad=True)
    out = gaug_attention(*inputs, num_prefix_tokens=0, attn_bias=attn_bias, backend=backend)
    expected = expected_attention(*inputs, 0, torch.cat([attn_bias] * (batch // windows)))
    torch.testing.assert_close(out, expected, rtol=1e-11, atol=1e-12)
    cotangent, tensors = torch.randn_like(out), [*inputs, attn_bias]
    for got, want in zip(
        torch.autograd.grad(out, tensors, cotangent), torch.autograd.grad(expected, tensors, cotangent), strict=True
    ):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("shape", [(4, 3, 36, 36), (2, 2, 36, 36), (1, 1, 35, 36), (1, 1, 1, 1, 36)])
def test_a_bias_that_does_not_fit(shape):
    inputs = make_inputs((5, 7), 1)
    with pytest.raises(
        LocAtError, match=r"attn_bias has shape .*; it must broadcast to \[B, H, L, L\], which is \(2, 3"
    ):
        gaug_attention(*inputs, num_prefix_tokens=1, attn_bias=torch.zeros(shape))


@pytest.mark.parametrize("backend", ON_CPU)
@pytest.mark.parametrize("shape", [(1, 3, 36, 36), (2, 1, 1, 36), (2, 3, 36, 36), (1, 1, 36, 1)])
def test_a_further_bias_and_its_gradient(backend, shape):
    inputs = make_inputs((5, 7), 1)
    attn_bias = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    out = gaug_attention(*inputs, num_prefix_tokens=1, attn_bias=attn_bias, backend=backend)
    expected = expected_attention(*inputs, 1, attn_bias)
    torch.testing.assert_close(out, expected, rtol=1e-11, atol=1e-12)
    cotangent = torch.randn_like(out)
    tensors = [*inputs, attn_bias]
    for got, want in zip(
        torch.autograd.grad(out, tensors, cotangent),
        torch.autograd.grad(expected, tensors, cotangent),
        strict=True,
    ):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-11)


# weights that are kept for the backward pass, and weights that are made again
KEPT_OR_NOT = pytest.mark.parametrize("grid_size", [(5, 7), (7, 9)], ids=["kept", "made again"])


@KEPT_OR_NOT
@pytest.mark.parametrize("backend", ON_CPU)
def test_excluded_keys_have_no_influence(backend, grid_size):
    q, k, v, row, column = make_inputs(grid_size, 1)
    attn_bias = torch.zeros(1, 1, 1, q.shape[2], dtype=torch.float64)
    attn_bias[..., 20:] = float("-inf")
    out = gaug_attention(q, k, v, row, column, num_prefix_tokens=1, attn_bias=attn_bias, backend=backend)
    assert out.isfinite().all()
    (gradient,) = torch.autograd.grad(out.sum(), v)
    assert gradient[:, :, 20:].abs().max() == 0
    assert gradient[:, :, :20].abs().min() > 0


@KEPT_OR_NOT
@pytest.mark.parametrize("backend", ON_CPU)
def test_a_query_that_may_look_nowhere_gets_zeros(backend, grid_size):
    inputs = make_inputs(grid_size, 1)
    attn_bias = torch.zeros(2, 1, *[inputs[0].shape[2]] * 2, dtype=torch.float64)
    attn_bias[0, :, 9:12] = float("-inf")
    out = gaug_attention(*inputs, num_prefix_tokens=1, attn_bias=attn_bias, backend=backend)
    assert (out[0, :, 9:12] == 0).all()
    free = gaug_attention(*inputs, num_prefix_tokens=1, backend=backend)
    torch.testing.assert_close(out[1], free[1])
    torch.testing.assert_close(out[0, :, 12:], free[0, :, 12:])
    for gradient in torch.autograd.grad(out.square().sum(), inputs):
        assert gradient.isfinite().all()


@KEPT_OR_NOT
def test_the_output_is_the_same_where_no_gradient_is_wanted(grid_size):
    inputs = make_inputs(grid_size, 1, torch.float32)
    with torch.no_grad():
        out = gaug_attention(*inputs, num_prefix_tokens=1)
    assert out.equal(gaug_attention(*inputs, num_prefix_tokens=1))


def poison_rooms(*names):
    """The rooms exist, and what is read there before it is written is no number."""
    for name in names:
        scratch.room(name, 0, torch.float32)
        room = scratch._scratch.rooms[name, torch.float32]
        assert room.numel() > 0
        room.fill_(float("nan"))


@KEPT_OR_NOT
def test_memory_that_is_not_overwritten_would_show(grid_size):
    """The pieces' room is reused; filled with NaN beforehand it must leave no trace."""
    inputs = make_inputs(grid_size, 5, torch.float32)
    gaug_attention(*inputs, num_prefix_tokens=5).sum().backward()
    poison_rooms("weights", "grad_logits", "product")
    out = gaug_attention(*inputs, num_prefix_tokens=5)
    assert out.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(out.sum(), inputs))


def test_scratch_made_in_inference_mode_serves_training(monkeypatch):
    monkeypatch.setattr(scratch, "_scratch", scratch._Scratch())
    inputs = make_inputs((5, 7), 1, torch.float32)
    with torch.inference_mode():
        gaug_attention(*(x.detach() for x in inputs), num_prefix_tokens=1)
    gaug_attention(*inputs, num_prefix_tokens=1).sum().backward()
    assert inputs[0].grad is not None


@pytest.mark.parametrize(("grid_size", "kept"), [((5, 7), True), ((7, 9), False)])
def test_weights_are_kept_while_they_are_small(grid_size, kept):
    """No more memory than q, k, v and the output: L <= 4 K = 52 in one precision."""
    inputs = make_inputs(grid_size, 1)
    out = gaug_attention(*inputs, num_prefix_tokens=1)
    sizes = [tensor.numel() for tensor in out.grad_fn.saved_tensors if tensor is not None]
    tokens = grid_size[0] * grid_size[1] + 1
    assert (2 * 3 * tokens**2 + 2 in sizes) == kept  # and how the call was cut
    first = torch.autograd.grad(out.sum(), inputs, retain_graph=True)
    for again, once in zip(torch.autograd.grad(out.sum(), inputs), first, strict=True):
        assert torch.equal(again, once)


def test_zero_factors_are_plain_attention():
    q, k, v, row, column = make_inputs((5, 7), 1)
    out = gaug_attention(q, k, v, row * 0, column, num_prefix_tokens=1)
    torch.testing.assert_close(out, torch.nn.functional.scaled_dot_product_attention(q, k, v))


@pytest.mark.parametrize("backend", ON_CPU)
@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 3, 4), (3, 4)], ids=str)
def test_a_part_of_the_gradients_is_the_same_as_in_all(backend, wanted):
    inputs = make_inputs((5, 7), 1)
    full = torch.autograd.grad(gaug_attention(*inputs, num_prefix_tokens=1, backend=backend).sum(), inputs)
    inputs = [x.detach().requires_grad_(i in wanted) for i, x in enumerate(inputs)]
    gaug_attention(*inputs, num_prefix_tokens=1, backend=backend).sum().backward()
    for i, tensor in enumerate(inputs):
        if i in wanted:
            torch.testing.assert_close(tensor.grad, full[i], rtol=1e-12, atol=1e-13)
        else:
            assert tensor.grad is None


@pytest.mark.parametrize("backend", ON_CPU)
def test_only_what_needs_a_gradient_gets_one(backend):
    q, k, v, row, column = make_inputs((5, 7), 1)
    out = gaug_attention(q.detach(), k.detach(), v.detach(), row, column, num_prefix_tokens=1, backend=backend)
    out.sum().backward()
    assert row.grad.abs().max() > 0
    assert column.grad.abs().max() > 0
    assert q.grad is None


def test_dropout_keeps_the_mean():
    inputs = [x.detach() for x in make_inputs((5, 7), 1, torch.float32)]
    inputs[2] = torch.ones_like(inputs[2])
    out = torch.stack([gaug_attention(*inputs, num_prefix_tokens=1, dropout_p=0.5) for _ in range(50)])
    assert out.std() > 0.01
    assert abs(out.mean().item() - 1) < 0.05


def test_compiles_to_one_graph():
    inputs = [x.detach().float().requires_grad_() for x in make_inputs((5, 7), 1)]
    compiled = torch.compile(gaug_attention, fullgraph=True, backend="aot_eager")
    out = compiled(*inputs, num_prefix_tokens=1)
    torch.testing.assert_close(out, gaug_attention(*inputs, num_prefix_tokens=1))
    compiled_grads = torch.autograd.grad(out.sum(), inputs)
    eager_grads = torch.autograd.grad(gaug_attention(*inputs, num_prefix_tokens=1).sum(), inputs)
    for got, want in zip(compiled_grads, eager_grads, strict=True):
        torch.testing.assert_close(got, want)


def test_messages():
    q, k, v, row, column = make_inputs((5, 7), 1)
    with pytest.raises(LocAtError, match=r"q, k and v have the shapes .*; they must be one and the same \[B,"):
        gaug_attention(q, k[:, :, 1:], v, row, column, num_prefix_tokens=1)
    with pytest.raises(LocAtError, match=r"dropout_p is 2; it must be a probability in \[0, 1\)"):
        gaug_attention(q, k, v, row, column, num_prefix_tokens=1, dropout_p=2)
    with pytest.raises(LocAtError, match="attn_bias is torch.bool; it is added, so it must be of floats: 0 where"):
        gaug_attention(q, k, v, row, column, num_prefix_tokens=1, attn_bias=torch.ones(1, 1, 36, 36, dtype=torch.bool))
    with pytest.raises(LocAtError, match="row_factor has shape .* one axis of the grid"):
        gaug_attention(q, k, v, row[:, :, 1:], column, num_prefix_tokens=1)
    with pytest.raises(LocAtError, match=r"grid_size \(4, 7\) has 28 patches but 35 remain after 1 prefix token;"):
        gaug_attention(q, k, v, row[..., 1:], column, num_prefix_tokens=1)
    with pytest.raises(LocAtError, match="backend 'spda' is unknown; did you mean sdpa"):
        gaug_attention(q, k, v, row, column, num_prefix_tokens=1, backend="spda")


def test_a_backend_that_cannot_run_says_why(monkeypatch):
    from locatvit.ops.attention import Backend

    never = Backend("never", lambda request: f"it is made for no {request.device_type}", lambda *_: None)
    monkeypatch.setitem(BACKENDS, "never", never)
    request = Request("cpu", torch.float32, 13, 36, 1, (5, 7))
    with pytest.raises(LocAtError, match="backend 'never' cannot run here: it is made for no cpu"):
        choose_backend(request, "never")
    assert choose_backend(request).name == "sdpa"


def _gaussian_inputs(grid_size, prefix, batch=2):
    """q, k, v, variance and alpha, of which some is negative, as with the identity start."""
    patches = grid_size[0] * grid_size[1]
    qkv = torch.randn(3, batch, 3, patches + prefix, 13, dtype=torch.float64)
    variance = torch.rand(batch, 3, patches, 2, dtype=torch.float64) * 5 + 0.3
    alpha = torch.randn(batch, 3, patches, dtype=torch.float64)
    return [x.detach().requires_grad_() for x in (*qkv.unbind(0), variance, alpha)]


@pytest.mark.parametrize("backend", ON_CPU)
@pytest.mark.parametrize("clamp", [None, 6.0])
@pytest.mark.parametrize(("grid_size", "prefix"), SHAPES)
def test_a_gaussian_in_place_of_factors(backend, clamp, grid_size, prefix):
    inputs = q, k, v, variance, alpha = _gaussian_inputs(grid_size, prefix)
    gaussian = Gaussian(variance, alpha, grid_size, clamp)
    out = gaussian_attention(q, k, v, gaussian, num_prefix_tokens=prefix, backend=backend)
    cap = float("inf") if clamp is None else clamp
    expected = formulas.attention(q, k, v, formulas.supplement(variance, alpha, *grid_size, prefix, cap))
    torch.testing.assert_close(out, expected, rtol=1e-11, atol=1e-12)
    cotangent = torch.randn_like(out)
    grads, wanted = (torch.autograd.grad(x, inputs, cotangent) for x in (out, expected))
    for got, want in zip(grads, wanted, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("backend", ON_CPU)
def test_one_variance_for_all_patches(backend):
    q, k, v, _, alpha = _gaussian_inputs((5, 7), 1)
    variance = torch.tensor([2.0, 3.0], dtype=torch.float64)[None, None, None].requires_grad_()
    out = gaussian_attention(q, k, v, Gaussian(variance, alpha, (5, 7)), num_prefix_tokens=1, backend=backend)
    whole = variance.expand(2, 3, 35, 2)
    expected = formulas.attention(q, k, v, formulas.supplement(whole, alpha, 5, 7, 1))
    torch.testing.assert_close(out, expected, rtol=1e-11, atol=1e-12)
    (got,), (want,) = (torch.autograd.grad(x.square().sum(), (variance,)) for x in (out, expected))
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)


def test_a_gaussian_that_does_not_fit_is_refused():
    q, k, v, variance, alpha = _gaussian_inputs((5, 7), 1)
    for wrong, message in (
        (Gaussian(variance[..., :1], alpha, (5, 7)), "variance has shape .* that of rows and that of columns"),
        (Gaussian(variance[:, :, 1:], alpha, (5, 7)), "variance has shape .* must broadcast to"),
        (Gaussian(variance, alpha[:, :, 1:], (5, 7)), "alpha has shape .* must be .* one number a patch"),
        (Gaussian(variance, alpha, (5, 8)), "grid"),
    ):
        with pytest.raises(LocAtError, match=message):
            gaussian_attention(q, k, v, wrong, num_prefix_tokens=1)


def test_the_gradient_of_a_shared_bias_is_rounded_once(monkeypatch):
    """A sum over the pieces of sixty images: in half precision what is added later would be lost."""
    monkeypatch.setattr(plan, "_PIECE_BYTES", 3000)
    q, k, v, row, column = (x.detach().bfloat16() for x in make_inputs((3, 5), 1, torch.float32, batch=60))
    attn_bias = torch.randn(1, 3, 16, 16).bfloat16().requires_grad_()
    cotangent = torch.randn(60, 3, 16, 13).bfloat16()
    grads = []
    for backend, dtype in (("sdpa", torch.bfloat16), ("reference", torch.float64)):
        bias = attn_bias.to(dtype)
        tensors = [x.to(dtype) for x in (q, k, v, row, column)]
        out = gaug_attention(*tensors, num_prefix_tokens=1, attn_bias=bias, backend=backend)
        grads.append(torch.autograd.grad(out, attn_bias if dtype == torch.bfloat16 else bias, cotangent.to(dtype))[0])
    error = (grads[0].double() - grads[1]).abs().max() / grads[1].abs().max()
    assert error <= 2**-8  # one rounding to bfloat16
