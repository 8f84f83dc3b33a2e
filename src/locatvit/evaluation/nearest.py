"""Exact nearest neighbours by inner product, in blocks: the whole matrix of scores never exists.

A block of scores is one product that stays in the cache. Once each query has k candidates, the worst of them is a
bound: the block's columns are compared with it group by group, by the largest of each group, so that all but a few
scores are read once and dropped.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from locatvit.errors import LocAtError

# rows and columns of a block of scores: on a CPU a few MiB, on a GPU what fills it
_BLOCK = {"cpu": (2048, 1024)}
_GPU_BLOCK = (8192, 32768)
_GROUP = 64
# times the neighbours: so many candidates of one query are sorted, whatever the others have
_MOST = 8


class Neighbours(NamedTuple):
    """The nearest of each query: best first; of equal scores the one that comes first in the memory.

    Attributes:
        scores: inner products.
        indices: rows of the memory.
    """

    scores: Float[Tensor, "Q k"]
    indices: Int64[Tensor, "Q k"]


def nearest(
    queries: Float[Tensor, "Q D"],
    memory: Float[Tensor, "M D"],
    neighbours: int,
    *,
    block: tuple[int, int] | None = None,
) -> Neighbours:
    """The ``neighbours`` rows of ``memory`` with the largest inner product with each query. Exact.

    Args:
        queries: float32, on the device that computes.
        memory: float32, on the same device, or on the CPU: it is then copied block by block.
        neighbours: k.
        block: queries and rows of the memory at a time; what is held besides is that many scores, and some
            candidates. None for what suits the device.

    Raises:
        LocAtError: sizes that do not go together, or values that are not finite.
    """
    check_request(queries, memory, neighbours)
    rows, columns = block or _BLOCK.get(queries.device.type, _GPU_BLOCK)
    columns = _GROUP * -(-max(columns, neighbours) // _GROUP)
    with torch.no_grad(), _full_precision(queries.device):
        parts = [_nearest(part, memory, neighbours, columns) for part in queries.float().split(rows)]
    return Neighbours(*map(torch.cat, zip(*parts, strict=True)))


def _nearest(queries: Tensor, memory: Tensor, neighbours: int, columns: int) -> Neighbours:
    best = _Best(len(queries), neighbours, queries.device)
    bound = None
    for start, scores in _blocks(queries, memory, columns):
        # later rows that equal the bound lose to those that stand there: hence "greater", but in the first block
        least = scores.topk(neighbours, dim=1).values[:, -1] if bound is None else bound
        row, column, score = _passing(scores, least, or_equal=bound is None)
        best.add(row, column + start, score)
        if bound is None or best.is_full:
            bound = best.settle()
    best.settle()
    return best.found()


class _Best:
    """The best of each query so far, and after them what may be better, in the order of the memory."""

    def __init__(self, num_queries: int, neighbours: int, device: torch.device) -> None:
        self._neighbours, self._rows = neighbours, num_queries
        self._scores = torch.full((num_queries, _MOST // 2 * neighbours), -torch.inf, device=device)
        self._indices = torch.zeros_like(self._scores, dtype=torch.long)
        self._counts = torch.zeros(num_queries, dtype=torch.long, device=device)

    @property
    def is_full(self) -> bool:
        """Whether there are as many candidates as neighbours, or far more for one query."""
        most, all_together = int(self._counts.max()), int(self._counts.sum())
        return all_together >= 2 * self._neighbours * self._rows or most >= _MOST * self._neighbours

    def add(self, row: Int64[Tensor, " n"], index: Int64[Tensor, " n"], score: Float[Tensor, " n"]) -> None:
        """Add candidates: later in the memory than all before, in the order of rows, then of the memory."""
        added = row.bincount(minlength=self._rows)
        first = self._counts + added - added.cumsum(0)
        self._counts += added
        missing = int(self._counts.max()) - self._scores.shape[1]
        if missing > 0:
            self._scores = F.pad(self._scores, (0, missing), value=-torch.inf)
            self._indices = F.pad(self._indices, (0, missing))
        place = row * self._scores.shape[1] + first[row] + torch.arange(len(row), device=row.device)
        self._scores.view(-1)[place], self._indices.view(-1)[place] = score, index

    def settle(self) -> Float[Tensor, " Q"]:
        """Keep the best alone; the worst score of each query's."""
        # stable, so that of equal scores the earlier row of the memory stays before the later
        scores, order = self._scores.sort(dim=1, descending=True, stable=True)
        kept = self._neighbours
        self._indices[:, :kept] = self._indices.gather(1, order[:, :kept])
        scores[:, kept:] = -torch.inf
        self._scores = scores
        self._counts.fill_(kept)
        return scores[:, kept - 1].clone()

    def found(self) -> Neighbours:
        """The best, when they are settled."""
        return Neighbours(*(each[:, : self._neighbours].clone() for each in (self._scores, self._indices)))


def _blocks(queries: Tensor, memory: Tensor, columns: int) -> Iterator[tuple[int, Tensor]]:
    """Scores ``[Q, columns]`` and their first row in the memory; -inf behind the memory's end."""
    for start in range(0, len(memory), columns):
        keys = memory[start : start + columns].to(queries.device, torch.float32)
        scores = _products(queries, keys)
        yield start, F.pad(scores, (0, columns - len(keys)), value=-torch.inf) if len(keys) < columns else scores


def _products(queries: Float[Tensor, "Q D"], keys: Float[Tensor, "M D"]) -> Float[Tensor, "Q M"]:
    """All inner products.

    On a CPU as a 1x1 convolution, for which torch takes oneDNN: its kernels are written for the processor that is
    there, where MKL's matrix product has only some makers' in mind (twice as fast on an AMD EPYC of 2024).
    """
    if queries.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return queries @ keys.T
    # channels last: [1, D, Q, 1] and [M, D, 1, 1] as the rows lie
    image, filters = (rows.contiguous()[:, None, None].permute(1, 3, 0, 2) for rows in (queries, keys))
    return F.conv2d(image, filters.permute(2, 1, 0, 3)).permute(0, 2, 3, 1).reshape(len(queries), len(keys))


def _passing(
    scores: Float[Tensor, "Q columns"], bound: Float[Tensor, " Q"], or_equal: bool
) -> tuple[Int64[Tensor, " n"], Int64[Tensor, " n"], Float[Tensor, " n"]]:
    """Row, column and value of the scores above their row's bound, in the order of rows and columns."""

    def passes(values: Tensor, bound: Tensor) -> Tensor:
        return values >= bound if or_equal else values > bound

    groups = scores.unflatten(1, (-1, _GROUP))
    row, group = passes(groups.amax(dim=2), bound[:, None]).nonzero(as_tuple=True)
    taken = groups[row, group]
    which, column = passes(taken, bound[row, None]).nonzero(as_tuple=True)
    return row[which], group[which] * _GROUP + column, taken[which, column]


@contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
    """Neither autocast nor TF32 or bfloat16 inside products: all would swap neighbours."""
    backends: Any = torch.backends
    on_cpu = device.type == "cpu"
    holder = backends.mkldnn.conv if on_cpu else backends.cuda.matmul
    name, value = ("fp32_precision", "ieee") if on_cpu else ("allow_tf32", False)
    before = getattr(holder, name)
    setattr(holder, name, value)
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        setattr(holder, name, before)


def check_request(queries: Tensor, memory: Tensor, neighbours: int) -> None:
    """Raise ``LocAtError`` for queries, a memory and a number of neighbours that do not go together."""
    check_vectors("queries", queries)
    if queries.shape[1] != memory.shape[1]:
        raise LocAtError(
            f"queries are {queries.shape[1]} wide and the memory {memory.shape[1]}; both must be features of one layer "
            "of one model"
        )
    if not 1 <= neighbours <= len(memory):
        raise LocAtError(
            f"neighbours is {neighbours} and the memory has {len(memory)} rows; it must be from 1 to that number"
        )


def check_vectors(name: str, vectors: Tensor) -> None:
    """Raise ``LocAtError`` for what is no finite ``[rows, D]``; ``name`` is what the message calls it."""
    if vectors.ndim != 2 or not len(vectors) or not vectors.is_floating_point():
        raise LocAtError(
            f"{name} are {vectors.dtype} of shape {tuple(vectors.shape)}; they must be floating point [rows, D], one "
            "row at least"
        )
    if not vectors.isfinite().all():
        raise LocAtError(f"{name} have values that are not finite; has the backbone's training diverged?")
