from typing import get_args

import pytest
import torch

import formulas
from locatvit.config import Kernel
from locatvit.grid import axis_squared_distance, coordinates, squared_distance
from locatvit.ops import gaussian_factors
from locatvit.ops.distance import KERNELS, inverse_distance, laplace


def test_coordinates_are_row_major():
    assert coordinates((2, 3)).tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]


def test_squared_distance_by_hand():
    # patch 1 is (0, 1), patch 5 is (1, 2)
    assert squared_distance((2, 3))[1, 5].tolist() == [1, 1]
    assert squared_distance((2, 3))[0, 2].tolist() == [0, 4]


def test_axis_distance_is_capped():
    assert axis_squared_distance(torch.tensor([0.0]), 5, 4.0).tolist() == [[0, 1, 4, 4, 4]]


@pytest.mark.parametrize("grid_size", [(5, 7), (1, 3), (11, 2), (1, 1)])
@pytest.mark.parametrize("cap", [None, 4.0])
def test_factors_multiply_to_the_gaussian(grid_size, cap):
    height, width = grid_size
    variance = torch.rand(2, 3, height * width, 2, dtype=torch.float64) * 5 + 0.1
    row, column = gaussian_factors(variance, grid_size, distance_clamp=cap)
    product = (row[..., :, None] * column[..., None, :]).flatten(-2)
    expected = formulas.gaussian(variance, height, width, float("inf") if cap is None else cap)
    torch.testing.assert_close(product, expected, rtol=1e-13, atol=0)


def test_the_bias_peaks_at_the_query_itself():
    row, column = gaussian_factors(torch.rand(35, 2) + 0.5, (5, 7))
    product = (row[..., :, None] * column[..., None, :]).flatten(-2)
    assert product.argmax(-1).tolist() == list(range(35))
    torch.testing.assert_close(product.diagonal(), torch.ones(35))


@pytest.mark.parametrize("kernel", ["laplace", "inverse_distance"])
@pytest.mark.parametrize("grid_size", [(5, 7), (1, 3), (1, 1)])
@pytest.mark.parametrize("cap", [None, 4.0])
def test_kernels_of_the_euclidean_distance(kernel, grid_size, cap):
    width = torch.rand(2, 3, grid_size[0] * grid_size[1], 1, dtype=torch.float64) * 5 + 0.1
    values = KERNELS[kernel].values(width, grid_size, distance_clamp=cap)
    expected = getattr(formulas, kernel)(width[..., 0], *grid_size, float("inf") if cap is None else cap)
    torch.testing.assert_close(values, expected, rtol=1e-13, atol=0)


def test_kernels_by_hand():
    # patch 0 is (0, 0) and patch 11 of a 4 x 5 grid is (2, 1): their distance is the root of 5
    width = torch.full((20, 1), 2.0, dtype=torch.float64)
    assert laplace(width, (4, 5))[0, 11].item() == pytest.approx(0.32692188)
    assert inverse_distance(width, (4, 5))[0, 11].item() == pytest.approx(0.47213595)
    row, column = gaussian_factors(width.expand(20, 2), (4, 5))
    assert (row[0, 2] * column[0, 1]).item() == pytest.approx(0.28650480)


def test_every_kernel_is_one_at_the_query_itself_and_says_what_it_takes():
    for kernel in KERNELS.values():
        width = torch.rand(35, kernel.num_widths) + 0.5
        if kernel.values is not None:
            diagonal = kernel.values(width, (5, 7)).diagonal()
        else:
            row, column = gaussian_factors(width, (5, 7))
            diagonal = (row[..., :, None] * column[..., None, :]).flatten(-2).diagonal()
        torch.testing.assert_close(diagonal, torch.ones(35))


def test_the_configuration_names_every_kernel():
    assert set(get_args(Kernel)) == set(KERNELS)
