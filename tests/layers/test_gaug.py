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
    row, column = gaug(q, grid_size).factors()
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
    row, _ = gaug(torch.randn(1, 2, 35, 64), (5, 7)).factors()
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
        row, column = gaug(q, (5, 7)).factors()
    exact_row, exact_column = gaug(q.float(), (5, 7)).factors()
    assert row.dtype == torch.float32
    torch.testing.assert_close(row, exact_row)
    torch.testing.assert_close(column, exact_column)


def test_a_grid_of_one_patch():
    row, column = GAug(8, (1, 1), LocAtConfig())(torch.zeros(1, 1, 1, 8), (1, 1)).factors()
    assert row.shape == column.shape == (1, 1, 1, 1)
    assert row.isfinite().all()


@pytest.mark.parametrize(
    ("field", "value"), [("start", "papr"), ("variance_scaling", "square"), ("variance_floor", -1.0)]
)
def test_configuration_is_checked(field, value):
    with pytest.raises(LocAtError, match=f"{field} is .*must be"):
        LocAtConfig(**{field: value})


VARIANTS = {
    "isotropic": (LocAtConfig(variance="isotropic"), {"log_var": (1, 13), "log_alpha": (1, 13)}),
    "input": (LocAtConfig(variance="input"), {"log_var": (6, 39), "log_alpha": (1, 13)}),
    "fixed": (LocAtConfig(variance=4.0), {"log_alpha": (1, 13)}),
    "no scaling": (LocAtConfig(alpha="none"), {"log_var": (2, 13)}),
    "automatic scaling": (LocAtConfig(alpha="auto"), {"log_var": (2, 13)}),
    "fixed, no scaling": (LocAtConfig(variance=4.0, alpha="none"), {}),
    "laplace": (LocAtConfig(kernel="laplace"), {"log_var": (1, 13), "log_alpha": (1, 13)}),
    "inverse distance from input": (
        LocAtConfig(kernel="inverse_distance", variance="input"), {"log_var": (3, 39), "log_alpha": (1, 13)},
    ),
}  # fmt: skip


@pytest.mark.parametrize(("config", "shapes"), VARIANTS.values(), ids=VARIANTS)
def test_a_variant_has_the_weights_that_it_predicts_from(config, shapes):
    gaug = GAug(13, (5, 7), config, embed_dim=39, num_heads=3)
    found = {name.removesuffix(".weight"): tuple(value.shape) for name, value in gaug.named_parameters()}
    assert {name: shape for name, shape in found.items() if not name.endswith("bias")} == shapes


def test_a_fixed_width_is_that_width():
    """No floor on it; patch 0 is (0, 0), patch 9 of a 5 x 7 grid is (1, 2)."""
    gaug = GAug(13, (5, 7), LocAtConfig(variance=4.0, alpha="none"))
    row, column = gaug(torch.randn(2, 3, 35, 13), (5, 7)).factors()
    assert row.shape == (2, 3, 35, 5)
    assert column.shape == (2, 3, 35, 7)
    assert (row[1, 2, 0, 1] * column[1, 2, 0, 2]).item() == pytest.approx(math.exp(-5 / 8))


def test_automatic_alpha_by_hand():
    """|q| is 5, the keys are 1 and 3 long, K is 2."""
    gaug = GAug(2, (1, 2), LocAtConfig(alpha="auto"))
    q, k = torch.tensor([[[[3.0, 4.0], [0.0, 0.0]]]]), torch.tensor([[[[1.0, 0.0], [0.0, 3.0]]]])
    _, alpha = gaug.variance_and_alpha(q.requires_grad_(), (1, 2), k=k)
    assert alpha.tolist() == [[[pytest.approx(10 / math.sqrt(2)), 0.0]]]
    alpha.sum().backward()
    assert q.grad.isfinite().all()


def test_a_width_in_patches_follows_the_grid_in_proportion():
    for scaling in ("linear", "area"):
        gaug = GAug(13, (5, 7), LocAtConfig(kernel="laplace", variance_scaling=scaling))
        assert gaug.variance_scale((10, 12)) == 2.0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kernel": "gauss"}, "kernel is 'gauss'; it must be one of gaussian, laplace, inverse_distance"),
        ({"variance": "q"}, "variance is 'q'; it must be one of query, input, isotropic, a number"),
        ({"variance": 0.0}, "variance is 0.0; a fixed one must be a number > 0"),
        ({"variance": math.nan}, "variance is nan; a fixed one must be a number > 0"),
        ({"alpha": "fixed"}, "alpha is 'fixed'; it must be one of learned, none, auto"),
        ({"pooling": "max"}, "pooling is 'max'; it must be one of host, avg"),
        ({"layers": ()}, "layers is empty; .*set gaug to False"),
        ({"gaug": False, "kernel": "laplace"}, "kernel is 'laplace' but gaug is False.*set gaug to True"),
        ({"gaug": False, "alpha": "auto"}, "alpha is 'auto' but gaug is False"),
        ({"gaug": False, "variance": 3.0}, "variance is 3.0 but gaug is False"),
        ({"gaug": False, "layers": (1,)}, r"layers is \(1,\) but gaug is False"),
        (
            {"kernel": "laplace", "variance": "isotropic"},
            "variance is 'isotropic' but the laplace kernel has one width",
        ),
        ({"alpha": "none", "start": "identity"}, "start is 'identity' but alpha is 'none', which cannot begin at zero"),
        ({"pooling": "avg"}, "pooling is 'avg' and prr is True; .* set prr to False"),
    ],
)
def test_combinations_that_make_no_sense(fields, message):
    with pytest.raises(LocAtError, match=message):
        LocAtConfig(**fields)
