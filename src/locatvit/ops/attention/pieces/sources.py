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
        by_query: whether the logits are to have queries as neighbours in memory.
        grads: room for their gradients, empty where none are wanted.
    """

    num_keys = 0
    further_keys = further_values = None

    def __init__(self, plan: Plan, row: Tensor, column: Tensor, by_query: bool, grads: Sequence[Tensor] = ()) -> None:
        self.forms = plan.forms(self.num_keys, by_query)
        self._factors = _of_pieces(plan, row[..., :, None], column[..., None, :])
        self._grads = _of_pieces(plan, *grads) if grads and grads[0].numel() else []

    def of_piece(self, index: int, logits: Logits) -> tuple[Tensor, Tensor]:
        """[m, n, patches, h, 1] and [m, n, patches, 1, w]."""
        return self._factors[index]

    def gradients(self, index: int) -> tuple[Tensor, Tensor]:
        """Room for the gradients of both, [m, n, patches, h] and [m, n, patches, w]."""
        return self._grads[index]

    def backward(self, index: int, logits: Logits, grad_logits: Logits) -> None:
        """The gradients are where they belong."""

    def add_grad_weight(self, of_keys: Tensor) -> None:
        """There is no weight."""


def _of_pieces(plan: Plan, row: Tensor, column: Tensor) -> list[tuple[Tensor, Tensor]]:
    return list(zip(plan.of_row_factor(row), plan.of_column_factor(column), strict=True))


class PredictedFactors:
    """Factors that are predicted from the queries: GAug's three outputs are the products with three more keys.

    The attention's own product of queries and keys computes them nearly for nothing, and so do its backward products
    with the gradients of the queries and of GAug's weights. A layer of three outputs by itself reads all queries
    once more, at a small part of the speed of a product.

    ``of_further`` of the logits is x of ``Prediction``, shifted; that of their gradient is d x / scale, for its
    products are multiplied by the scale.

    Args:
        weight, bias: of the three outputs, [3, K] and [3].
        plan: one that cuts no head.
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
        assert plan.pieces_of_one == 1
        self.forms = plan.forms(self.num_keys, is_narrow(grid_size))
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
        lines, x = self._lines(index), logits.of_further_patches
        precision, alpha = self._precision(x[:, :, :2].sigmoid()), self._prediction.alpha(x[:, :, 2])
        torch.mul(lines.row_exponents, precision[:, :, 0].unsqueeze(lines.dim), out=lines.row)
        torch.mul(lines.column_exponents, precision[:, :, 1].unsqueeze(lines.dim), out=lines.column)
        lines.both.exp2_()
        torch.mul(lines.row, alpha.unsqueeze(lines.dim), out=lines.scaled_row)
        return lines.factors

    def gradients(self, index: int) -> tuple[Tensor, Tensor]:
        """Room for the gradients of both, [m, n, patches, h] and [m, n, patches, w]."""
        return self._lines(index).grads

    def backward(self, index: int, logits: Logits, grad_logits: Logits) -> None:
        """Write ``of_further`` of the logits' gradient from the factors' gradients; add to that of ``bias``."""
        lines, x = self._lines(index), logits.of_further_patches
        bounded, alpha = x[:, :, :2].sigmoid(), self._prediction.alpha(x[:, :, 2])
        precision = self._precision(bounded)
        grad_alpha = lines.grad_row.mul_(lines.row).sum(lines.dim)
        moments = torch.empty_like(bounded)
        torch.sum(lines.grad_row.mul_(lines.row_exponents), lines.dim, out=moments[:, :, 0])
        lines.grad_column.mul_(lines.column).mul_(lines.column_exponents)
        torch.sum(lines.grad_column, lines.dim, out=moments[:, :, 1])
        moments[:, :, 0].mul_(alpha)
        # d 2 ** (e / variance) = -ln 2 e / variance² of it. 1 / variance² alone would leave float32 where the variance
        # is tiny; the sigmoid over the variance does not
        slope = (bounded * precision).mul_((1 - bounded).mul_(precision))
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

    def _lines(self, index: int) -> _Lines:
        form, clamp = self.forms[index], self._clamp
        return views(("lines", form, clamp), lambda: _Lines(form, clamp))

    def _precision(self, bounded: Tensor) -> Tensor:
        """1 / variance, of the sigmoid."""
        return torch.add(self._floor, bounded, alpha=self._prediction.variance_max).reciprocal_()


class _Lines:
    """Room for what has a number for each patch and line of the grid, those of rows and of columns in one memory.

    Of narrow grids, patches are neighbours in memory: [m, n, h + w, patches], else [m, n, patches, h + w].
    """

    def __init__(self, form: Form, distance_clamp: float) -> None:
        self._form = form
        self.dim = 2 if form.by_query else 3
        """That of the lines."""
        self.row_exponents, self.column_exponents = _exponents(form.grid_size, distance_clamp, form.dtype)
        """What 1 / variance is multiplied by, in the exponent of 2."""
        height, width = form.grid_size
        self.both = self._room("lines", height + width)
        self.row, self.column = self.both.split((height, width), self.dim)
        self.scaled_row = self._room("scaled_row", height)
        """Times alpha."""
        self.grad_row, self.grad_column = self._room("grad_row", height), self._room("grad_column", width)
        self.factors = self._by_patch(self.scaled_row)[..., :, None], self._by_patch(self.column)[..., None, :]
        self.grads = self._by_patch(self.grad_row), self._by_patch(self.grad_column)

    def _room(self, name: str, lines: int) -> Tensor:
        num_patches = math.prod(self._form.grid_size)
        last = (lines, num_patches) if self._form.by_query else (num_patches, lines)
        shape = (*self._form.shape[:2], *last)
        return room(name, math.prod(shape), self._form.dtype).view(shape)

    def _by_patch(self, lines: Tensor) -> Tensor:
        return lines.mT if self._form.by_query else lines


@functools.lru_cache(maxsize=16)
def _exponents(grid_size: GridSize, distance_clamp: float, dtype: torch.dtype) -> list[Tensor]:
    """What 1 / variance is multiplied by in the exponent of 2, for rows and for columns.

    [h, N] and [w, N] of narrow grids, else [N, h] and [N, w].
    """
    like, clamp = torch.empty((), dtype=dtype), None if math.isinf(distance_clamp) else distance_clamp
    with torch.inference_mode(False):  # what is made in inference mode cannot serve training later
        tables = [table * (-0.5 * LOG2_E) for table in axis_squared_distances(like, grid_size, clamp)]
        return [table.mT.contiguous() for table in tables] if is_narrow(grid_size) else tables


@functools.lru_cache(maxsize=16)
def _constants(prediction: Prediction, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The shifts of the three outputs, and the floor."""
    with torch.inference_mode(False):  # what is made in inference mode cannot serve training later
        shifts = torch.tensor((prediction.shift, prediction.shift, 0.0), dtype=dtype)
        return shifts, torch.tensor(prediction.floor, dtype=dtype)


Source = GivenFactors | PredictedFactors


def num_further_keys(prediction: Sequence[float]) -> int:
    """Keys beside those of the tokens, in a call with this ``prediction``."""
    return PredictedFactors.num_keys if prediction else 0


def source_of(
    plan: Plan,
    first: Tensor,
    second: Tensor,
    grid_size: Sequence[int],
    prediction: Sequence[float],
    scale: float,
    by_query: bool,
    grads: Sequence[Tensor] = (),
) -> Source:
    """Of a call with these arguments; see the package."""
    if not prediction:
        return GivenFactors(plan, first, second, by_query, grads)
    *numbers, clamp = prediction
    height, width = grid_size
    return PredictedFactors(plan, first, second, (height, width), Prediction.of(numbers), clamp, scale, grads)
