import pytest
import torch

from locatvit.ops import Gaussian
from locatvit.ops.attention.factors import make_factors


def _gaussian(grid_size, dtype, variance_shape=None, clamp=None):
    batch_shape = (2, 3, grid_size[0] * grid_size[1])
    variance = torch.rand(variance_shape or (*batch_shape, 2), dtype=dtype) * 5 + 0.1
    alpha = torch.randn(batch_shape, dtype=dtype)
    return Gaussian(variance.requires_grad_(), alpha.requires_grad_(), grid_size, clamp)


@pytest.mark.parametrize("grid_size", [(5, 7), (1, 3), (23, 2), (1, 1)])  # both layouts
@pytest.mark.parametrize("variance_shape", [None, (1, 1, 1, 2)])
@pytest.mark.parametrize("clamp", [None, 4.0])
def test_factors_and_their_gradients(grid_size, variance_shape, clamp):
    gaussian = _gaussian(grid_size, torch.float64, variance_shape, clamp)
    got, want = make_factors(gaussian), gaussian.factors()
    cotangents = [torch.randn_like(factor) for factor in want]
    numbers = gaussian.variance, gaussian.alpha
    gradients = [torch.autograd.grad(factors, numbers, cotangents) for factors in (got, want)]
    for one, other in zip((*got, *gradients[0]), (*want, *gradients[1]), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-13)
    assert [factor.stride() for factor in got] == [factor.stride() for factor in want]


def test_far_patches_in_float32():
    """exp(-15.5² / 0.2) and below leave float32: zeros, and gradients without what is not a number."""
    gaussian = _gaussian((32, 40), torch.float32)
    exact = Gaussian(gaussian.variance.double(), gaussian.alpha.double(), (32, 40))
    for factor, other in zip(make_factors(gaussian), exact.factors(), strict=True):
        torch.testing.assert_close(factor.double(), other, rtol=1e-5, atol=1e-30)
        assert (factor == 0).any()
    gradients = [
        torch.autograd.grad(sum(factor.sum() for factor in factors), (gaussian.variance, gaussian.alpha))
        for factors in (make_factors(gaussian), exact.factors())
    ]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_only_the_gradients_that_are_needed():
    gaussian = _gaussian((5, 7), torch.float64, (1, 1, 1, 2))
    fixed = Gaussian(gaussian.variance.detach(), gaussian.alpha, (5, 7))
    (got,) = torch.autograd.grad(make_factors(fixed)[0].sum(), (gaussian.alpha,))
    (want,) = torch.autograd.grad(fixed.factors()[0].sum(), (gaussian.alpha,))
    torch.testing.assert_close(got, want, rtol=1e-12, atol=0)
