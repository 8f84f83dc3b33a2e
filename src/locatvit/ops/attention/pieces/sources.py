"""Where the pieces have the two factors of the bias from: given, or predicted on the way."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from locatvit.grid import GridSize
from locatvit.ops.attention.pieces.plan import Form, Logits, Plan
from locatvit.ops.attention.pieces.scratch import room, views
from locatvit.ops.distance import axis_squared_distances, is_narrow
from locatvit.ops.prediction import Prediction

LOG2_E = math.log2(math.e)


class GivenFactors:
    """Two factors that the caller has made.

    Args:
        row, column: [B, H, N, h] and [B, H, N, w].
        grads: room for their gradients, empty where none are wanted.
    """

    num_keys = 0
    further_keys = further_values = None

    def __init__(self, plan: Plan, row: Tensor, column: Tensor, grads: Sequence[Tensor] = ()) -> None:
        # ``gaussian_factors`` lays narrow grids out with patches as neighbours, and so must what is made of them
        by_query = row.stride(-1) > row.stride(-2)
        self.forms = plan.forms(self.num_keys, by_query, (row.shape[-1], column.shape[-1]))
        self._factors = list(zip(plan.of_factor(row[..., :, None]), plan.of_factor(column[..., None, :]), strict=True))
        self._grads = list(zip(*map(plan.of_factor, grads), strict=True)) if grads and grads[0].numel() else []

    def of_piece(self, index: int, logits: Logits) -> tuple[Tensor, Tensor]:
        """[m, n, patches, h, 1] and [m, n, patches, 1, w]."""
        return self._factors[index]

    def gradients(self, index: int) -> tuple[Tensor, Tensor]:
        """Room for the gradients of both, [m, n, patches, h] and [m, n, patches, w]."""
        return self._grads[index]

    def backward(self, logits: Logits, grad_logits: Logits) -> None:
        """The gradients are where they belong."""

    def add_grad_weight(self, of_keys: Tensor) -> None:
        """There is no weight."""


class PredictedFactors:
    """Factors that are predicted from the queries: GAug's three outputs are the products with three more keys.

    The attention's own product of queries and keys computes them nearly for nothing, and so do its backward products
    with the gradients of the queries and of GAug's weights. A layer of three outputs by itself reads all queries
    once more, at a small part of the speed of a product.

    ``of_further`` of the logits is x of ``Prediction``, shifted; that of their gradient is d x / scale, for its
    products are multiplied by the scale.

    Args:
        weight, bias: of the three outputs, [3, K] and [3].
        scale: of the attention; its products of queries and keys are multiplied by scale log2 e.
        grads: room for the gradients of weight and bias, empty where none are wanted.
    """

    num_keys = 3

    def __init__(
        self,
        plan: Plan,
        weight: Tensor,
        bias: Tensor,
        grid_size: GridSize,
        prediction: Prediction,
        distance_clamp: float,
        scale: float,
        grads: Sequence[Tensor] = (),
    ) -> None:
        self.forms = plan.forms(self.num_keys, is_narrow(grid_size), grid_size)
        self.further_keys = weight
        self._prediction, self._clamp, self._scale = prediction, distance_clamp, scale
        shift, self._floor = _constants(prediction, weight.dtype)
        self._bias = (bias - shift)[:, None]
        self._grads = [grad.zero_() for grad in grads if grad.numel()]

    @functools.cached_property
    def further_values(self) -> Tensor:
        """For products with values that have as many lines as the keys."""
        return torch.zeros_like(self.further_keys)

    def finish(self, logits: Logits) -> None:
        """From the products of the queries with ``further_keys`` to x, shifted."""
        products = logits.of_further_patches
        torch.add(self._bias, products, alpha=1 / (self._scale * LOG2_E), out=products)

    def of_piece(self, index: int, logits: Logits) -> tuple[Tensor, Tensor]:
        """[m, n, patches, h, 1] and [m, n, patches, 1, w], of logits with ``of_further``."""
        lines, x = self._lines(logits), logits.of_further_patches
        precision, alpha = self._precision(x[:, :, :2].sigmoid()), self._prediction.alpha(x[:, :, 2])
        torch.mul(lines.exponents, precision.unsqueeze(lines.dim), out=lines.both).exp2_()
        torch.mul(lines.row, alpha.unsqueeze(lines.dim - 1), out=lines.scaled)
        return lines.factors

    def gradients(self, index: int) -> tuple[Tensor, Tensor]:
        """Room for the gradients of both, [m, n, patches, h] and [m, n, patches, w]."""
        return _lines(self.forms[index], self._clamp).grads

    def backward(self, logits: Logits, grad_logits: Logits) -> None:
        """Write ``of_further`` of the logits' gradient from the factors' gradients; add to that of ``bias``."""
        lines, x = self._lines(logits), logits.of_further_patches
        bounded, alpha = x[:, :, :2].sigmoid(), self._prediction.alpha(x[:, :, 2])
        precision = self._precision(bounded)
        grad_alpha = lines.grad_row.mul_(lines.row).sum(lines.dim - 1)
        moments = torch.empty_like(bounded)
        torch.sum(lines.grad_row.mul_(lines.row_exponents), lines.dim - 1, out=moments[:, :, 0])
        lines.grad_column.mul_(lines.column).mul_(lines.column_exponents)
        torch.sum(lines.grad_column, lines.dim - 1, out=moments[:, :, 1])
        moments[:, :, 0].mul_(alpha)
        # d 2 ** (e / variance) = -ln 2 e / variance² of it
        slope = bounded.mul_(1 - bounded).mul_(precision.square_())
        grad_logits.of_further[..., : grad_logits.form.num_prefix_queries] = 0
        further = grad_logits.of_further_patches
        factor = -math.log(2) * self._prediction.variance_max / self._scale
        torch.mul(moments.mul_(factor), slope, out=further[:, :, :2])
        torch.mul(grad_alpha.mul_(1 / self._scale), x[:, :, 2].sigmoid(), out=further[:, :, 2])
        if self._grads:
            self._grads[1].add_(further.sum((0, 1, 3)), alpha=self._scale)

    def add_grad_weight(self, of_keys: Tensor) -> None:
        """Of ``further_keys``, [m, n, 3, K], as the product of the logits' gradient with the queries gives it."""
        self._grads[0].add_(of_keys.sum((0, 1)))

    def _lines(self, logits: Logits) -> _Lines:
        return _lines(logits.form, self._clamp)

    def _precision(self, bounded: Tensor) -> Tensor:
        """1 / variance, of the sigmoid."""
        return torch.add(self._floor, bounded, alpha=self._prediction.variance_max).reciprocal_()


class _Lines:
    """Room for what has a number for each patch and line of the grid, rows and columns in one memory.

    The shorter side is padded to the longer one. Of narrow grids, patches are neighbours in memory:
    [m, n, 2, side, patches], else [m, n, 2, patches, side].
    """

    def __init__(self, form: Form, distance_clamp: float) -> None:
        self._form, (first, last) = form, form.patches
        exponents = _exponents(form.grid_size, distance_clamp, form.dtype)
        self.exponents = exponents[..., first:last] if form.by_query else exponents[:, first:last]
        """What 1 / variance is multiplied by, in the exponent of 2."""
        of_rows, of_columns = self.exponents
        height, width = form.grid_size
        lines_dim = 0 if form.by_query else 1
        self.row_exponents = of_rows.narrow(lines_dim, 0, height)
        self.column_exponents = of_columns.narrow(lines_dim, 0, width)
        self.dim = 3 if form.by_query else 4
        """That of the lines."""
        self.both = self._room("lines")
        self.row, self.column = self._axes(self.both)
        self.grad_row, self.grad_column = self._axes(self._room("grad_lines"))
        self.scaled = self._axes(self._room("scaled_lines"))[0]
        """Rows, times alpha."""
        row, column = self._by_patch(self.scaled), self._by_patch(self.column)
        self.factors = row[..., :, None], column[..., None, :]
        self.grads = self._by_patch(self.grad_row), self._by_patch(self.grad_column)

    def _room(self, name: str) -> Tensor:
        (first, last), side = self._form.patches, max(self._form.grid_size)
        shape = (*self._form.shape[:2], 2, *((side, last - first) if self._form.by_query else (last - first, side)))
        return room(name, math.prod(shape), self._form.dtype).view(shape)

    def _axes(self, both: Tensor) -> tuple[Tensor, Tensor]:
        height, width = self._form.grid_size
        return both[:, :, 0].narrow(self.dim - 1, 0, height), both[:, :, 1].narrow(self.dim - 1, 0, width)

    def _by_patch(self, lines: Tensor) -> Tensor:
        return lines.mT if self._form.by_query else lines


def _lines(form: Form, distance_clamp: float) -> _Lines:
    # all but the precision of further dimensions is in the form
    return views(("lines", form, distance_clamp), lambda: _Lines(form, distance_clamp))


@functools.lru_cache(maxsize=16)
def _exponents(grid_size: GridSize, distance_clamp: float, dtype: torch.dtype) -> Tensor:
    """What 1 / variance is multiplied by in the exponent of 2, for rows and for columns; see ``_Lines``.

    [2, side, N] of narrow grids, else [2, N, side]; zero where the grid has no line.
    """
    like, clamp = torch.empty((), dtype=dtype), None if math.isinf(distance_clamp) else distance_clamp
    exponents = torch.zeros(2, grid_size[0] * grid_size[1], max(grid_size), dtype=dtype)
    for own, table in zip(exponents, axis_squared_distances(like, grid_size, clamp), strict=True):
        own[:, : table.shape[1]] = table * (-0.5 * LOG2_E)
    return exponents.mT.contiguous() if is_narrow(grid_size) else exponents


@functools.lru_cache(maxsize=16)
def _constants(prediction: Prediction, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The shifts of the three outputs, and the floor."""
    with torch.inference_mode(False):  # what is made in inference mode cannot serve training later
        shifts = torch.tensor((prediction.shift, prediction.shift, 0.0), dtype=dtype)
        return shifts, torch.tensor(prediction.floor, dtype=dtype)


Source = GivenFactors | PredictedFactors


def source_of(
    plan: Plan,
    first: Tensor,
    second: Tensor,
    grid_size: Sequence[int],
    prediction: Sequence[float],
    scale: float,
    grads: Sequence[Tensor] = (),
) -> Source:
    """Of a call with these arguments; see the package."""
    if not prediction:
        return GivenFactors(plan, first, second, grads)
    *numbers, clamp = prediction
    height, width = grid_size
    return PredictedFactors(plan, first, second, (height, width), Prediction.of(numbers), clamp, scale, grads)
