import math

import pytest
import torch

import formulas
from locatvit.config import LocAtConfig
from locatvit.errors import LocAtError
from locatvit.layers import GAug
from locatvit.layers.gaug import default_distance_clamp, default_variance_floor

PAPER = LocAtConfig(variance_floor=0, distance_clamp=False, variance_scaling="none")


def _gaug(grid_size=(5, 7), config=PAPER, head_dim=13):
    gaug = GAug(head_dim, grid_size, config).double()
    torch.nn.init.normal_(gaug.log_var.weight, std=0.5)
    torch.nn.init.normal_(gaug.log_alpha.weight, std=0.5)
    torch.nn.init.normal_(gaug.log_var.bias)
    torch.nn.init.normal_(gaug.log_alpha.bias)
    return gaug


def _bias(gaug, q, grid_size):
    row, column = gaug(q, grid_size)
    return (row[..., :, None] * column[..., None, :]).flatten(-2)


def _logits(gaug, q):
    return (
        q @ gaug.log_var.weight.T + gaug.log_var.bias,
        torch.log(1 + torch.exp(q @ gaug.log_alpha.weight.T + gaug.log_alpha.bias))[..., 0],
    )


def test_the_paper_settings_are_the_papers_formulas_with_gradients():
    gaug, q = _gaug(), torch.randn(2, 3, 35, 13, dtype=torch.float64, requires_grad=True)
    variance_logits, alpha = _logits(gaug, q)
    expected = formulas.supplement(formulas.variance(variance_logits, 49), alpha, 5, 7, 0)
    bias = _bias(gaug, q, (5, 7))
    torch.testing.assert_close(bias, expected, rtol=1e-12, atol=1e-14)
    cotangent, tensors = torch.randn_like(bias), [q, *gaug.parameters()]
    for got, want in zip(
        torch.autograd.grad(bias, tensors, cotangent),
        torch.autograd.grad(expected, tensors, cotangent),
        strict=True,
    ):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)


def test_floor_clamp_and_scaling_of_another_grid():
    gaug = _gaug((5, 7), LocAtConfig())
    q = torch.randn(2, 3, 11 * 13, 13, dtype=torch.float64)
    variance_logits, alpha = _logits(gaug, q)
    variance = formulas.variance(variance_logits, 49) * (11 / 5) + 0.1
    expected = formulas.supplement(variance, alpha, 11, 13, 0, cap=36)
    torch.testing.assert_close(_bias(gaug, q, (11, 13)), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("scaling", "factor"), [("linear", 2.0), ("area", 4.0), ("none", 1.0)])
def test_variance_scaling(scaling, factor):
    gaug = _gaug((5, 7), LocAtConfig(variance_scaling=scaling))
    assert gaug.variance_scale((10, 12)) == factor
    assert gaug.variance_scale((5, 7)) == 1.0


def test_start_values():
    gaug = GAug(64, (14, 14), LocAtConfig())
    variance, alpha = gaug.variance_and_alpha(torch.zeros(1, 1, 196, 64), (14, 14))
    torch.testing.assert_close(variance, torch.ones_like(variance))
    torch.testing.assert_close(alpha, torch.full_like(alpha, math.log(2)))
    assert sum(p.numel() for p in gaug.parameters()) == 195


def test_identity_start_has_no_bias_and_a_gradient():
    gaug = GAug(64, (5, 7), LocAtConfig(start="identity"))
    row, _ = gaug(torch.randn(1, 2, 35, 64), (5, 7))
    assert (row == 0).all()
    row.sum().backward()
    assert gaug.log_alpha.weight.grad.abs().max() > 0


@pytest.mark.parametrize(
    ("side", "floor"), [(1, 0.1), (14, 0.1), (26, 0.1), (27, 0.2), (51, 0.2), (52, 0.4), (102, 0.4)]
)
def test_variance_floor_by_side(side, floor):
    """The sides are those of the details of the authors' code, section 1."""
    assert default_variance_floor((side, 3)) == pytest.approx(floor)


def test_distance_clamp_by_side():
    assert default_distance_clamp((14, 20)) == 361
    assert default_distance_clamp((200, 10)) == 13_100


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_queries_are_computed_in_float32(dtype):
    gaug = GAug(64, (5, 7), LocAtConfig())
    q = torch.randn(1, 2, 35, 64).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        row, column = gaug(q, (5, 7))
    exact_row, exact_column = gaug(q.float(), (5, 7))
    assert row.dtype == torch.float32
    torch.testing.assert_close(row, exact_row)
    torch.testing.assert_close(column, exact_column)


def test_a_grid_of_one_patch():
    row, column = GAug(8, (1, 1), LocAtConfig())(torch.zeros(1, 1, 1, 8), (1, 1))
    assert row.shape == column.shape == (1, 1, 1, 1)
    assert row.isfinite().all()


@pytest.mark.parametrize(
    ("field", "value"), [("start", "papr"), ("variance_scaling", "square"), ("variance_floor", -1.0)]
)
def test_configuration_is_checked(field, value):
    with pytest.raises(LocAtError, match=f"{field} is .*must be"):
        LocAtConfig(**{field: value})
