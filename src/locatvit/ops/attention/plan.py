"""How attention on a CPU is cut into pieces that fit the cache, and the memory that they share."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from locatvit.grid import GridSize

# The least queries of one head that are worth a matrix product.
_QUERY_BLOCK = 64


class Piece(NamedTuple):
    """Images of one head, or heads of one image, and all or some of their queries.

    So the matrices of a piece are one axis of memory with one stride, as the batched products need it: queries, keys
    and values are read where the host's projection wrote them.

    Attributes:
        outer: the head; or the image, where ``inner`` are heads.
        inner: the images, or the heads.
        queries: of all tokens.
    """

    outer: int
    inner: slice
    queries: slice


class Plan:
    """The pieces of one call, and any tensor of the call cut into them: one part a piece, in their order.

    Cut whole, by few calls: a call costs as much as the arithmetic on a small part.

    Args:
        q: [B, H, L, K].
        num_prefix_tokens: P.
        budget: bytes of logits that are alive at a time.
    """

    def __init__(self, q: Tensor, num_prefix_tokens: int, budget: int) -> None:
        batch, num_heads, self._num_tokens, _ = q.shape
        self._num_prefix_tokens = num_prefix_tokens
        row_bytes = compute_dtype(q).itemsize * self._num_tokens
        pairs = max(1, budget // (row_bytes * self._num_tokens))
        block = self._num_tokens
        if row_bytes * self._num_tokens > budget:
            block = max(_QUERY_BLOCK, budget // row_bytes // _QUERY_BLOCK * _QUERY_BLOCK)
        threads = torch.get_num_threads()
        # a product of many matrices gives whole ones to threads, a product of one is shared out inside
        if pairs > threads:
            pairs -= pairs % threads
        self._by_head = (batch % threads == 0, batch) > (num_heads % threads == 0, num_heads)
        outer, inner = (num_heads, batch) if self._by_head else (batch, num_heads)
        self._size, self._blocks = min(pairs, inner), list(_parts(self._num_tokens, block))
        self.pieces = [
            Piece(index, part, queries)
            for index in range(outer)
            for part in _parts(inner, self._size)
            for queries in self._blocks
        ]

    def of_keys(self, tensor: Tensor) -> list[Tensor]:
        """[B, H, ...] as [n, ...], with all tokens."""
        groups = self._groups(tensor)
        return groups if len(self._blocks) == 1 else [group for group in groups for _ in self._blocks]

    def of_queries(self, tensor: Tensor) -> list[Tensor]:
        """[B, H, L, ...] as [n, queries, ...]."""
        groups = self._groups(tensor)
        return groups if len(self._blocks) == 1 else [group[:, part] for group in groups for part in self._blocks]

    def of_factor(self, factor: Tensor) -> list[Tensor]:
        """[B, H, N, ...] as [n, patches among the queries, ...]."""
        groups, prefix = self._groups(factor), self._num_prefix_tokens
        if len(self._blocks) == 1:
            return groups
        parts = [slice(max(block.start - prefix, 0), max(block.stop - prefix, 0)) for block in self._blocks]
        return [group[:, part] for group in groups for part in parts]

    def num_prefix_queries(self, piece: Piece) -> int:
        """How many of the piece's queries are prefix tokens."""
        return max(min(self._num_prefix_tokens, piece.queries.stop) - piece.queries.start, 0)

    def with_bias(self, piece: Piece, logits: Tensor, attn_bias: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Logits [n, queries, L] of a piece, and the bias that is theirs and broadcasts to them.

        In as many parts as it takes: a bias of fewer images comes again and again.
        """
        if self._by_head:
            own = attn_bias[:, piece.outer if attn_bias.shape[1] > 1 else 0]
        else:
            own = attn_bias[piece.outer % attn_bias.shape[0]]
        own = own[:, piece.queries] if own.shape[1] > 1 else own
        period, (first, last) = own.shape[0], (piece.inner.start, piece.inner.stop)
        if period == 1:
            yield logits, own
            return
        start = first
        while start < last:
            place = start % period
            stop = min(last, start - place + period)
            yield logits[start - first : stop - first], own[place : place + stop - start]
            start = stop

    def _groups(self, tensor: Tensor) -> list[Tensor]:
        whole = tensor.unbind(1 if self._by_head else 0)
        if all(each.shape[0] == self._size for each in whole):
            return list(whole)
        return [part for each in whole for part in each.split(self._size)]


class Logits:
    """Room for the logits of a piece, [n, queries, L], and the views of it that are written.

    Args:
        memory: n * queries * L uninitialised numbers.
        shape: (n, queries, L).
        by_query: whether neighbours in memory are queries and not keys.
        grid_size: (h, w) of the keys that are patches.
        num_prefix_queries: how many of the queries are prefix tokens.
        num_prefix_tokens: how many of the keys are.
    """

    def __init__(
        self,
        memory: Tensor,
        shape: tuple[int, int, int],
        by_query: bool,
        grid_size: GridSize,
        num_prefix_queries: int,
        num_prefix_tokens: int,
    ) -> None:
        n, queries, keys = shape
        self.in_memory = memory.view((n, keys, queries) if by_query else shape)
        """The same, contiguous."""
        self.whole = self.in_memory.mT if by_query else self.in_memory
        self.by_query, self.keys_dim = by_query, -2 if by_query else -1
        self._grid_size = grid_size
        self._num_prefix_queries, self._num_prefix_tokens = num_prefix_queries, num_prefix_tokens

    @functools.cached_property
    def patches(self) -> Tensor:
        """[n, queries, h, w] where both are patches."""
        return self.whole[:, self._num_prefix_queries :, self._num_prefix_tokens :].unflatten(-1, self._grid_size)


_scratch = threading.local()


def room(name: str, size: int, dtype: torch.dtype) -> Tensor:
    """Uninitialised memory, kept for the next call, a few MiB a thread.

    Fresh memory of this size costs more in page faults than the bias costs in arithmetic.
    """
    kept: dict[tuple[str, torch.dtype], Tensor] = _scratch.__dict__.setdefault("rooms", {})
    if (name, dtype) not in kept or kept[name, dtype].numel() < size:
        with torch.inference_mode(False):  # what is made in inference mode cannot be written outside of it
            kept[name, dtype] = torch.empty(size, dtype=dtype)
    return kept[name, dtype][:size]


def compute_dtype(tensor: Tensor) -> torch.dtype:
    """At least float32."""
    return torch.promote_types(tensor.dtype, torch.float32)


def _parts(length: int, size: int) -> Iterator[slice]:
    for start in range(0, length, size):
        yield slice(start, min(length, start + size))
