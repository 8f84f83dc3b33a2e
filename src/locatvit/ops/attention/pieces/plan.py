"""How attention on a CPU is cut into pieces that fit the cache, and what a piece's logits look like in memory."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from locatvit.grid import GridSize
from locatvit.ops.attention.pieces.scratch import room, views

# Bytes of the logits of a piece, of which the backward pass has two rooms: measured on 2 cores with 1 MiB of L2 cache
# each and 32 MiB of L3 between them; with 512 KiB of L2 half and twice as many are slower, too.
_PIECE_BYTES = 5 << 20
# The least queries of one head that are worth a matrix product.
_QUERY_BLOCK = 64


class Piece(NamedTuple):
    """Heads and images, and all or some of their queries; [m, n, queries, ...] of each tensor.

    The n matrices of one product are images of one head, or heads of one image, so that they have one stride between
    them, as the batched products need it: queries and values are read where the host's projection wrote them. What is
    done logit by logit is done for all m of them at once.

    Attributes:
        outer: m heads; or images, where ``inner`` are heads.
        inner: n images, or heads.
        queries: of all tokens.
    """

    outer: slice
    inner: slice
    queries: slice


class Form(NamedTuple):
    """What the memory of a piece's logits depends on.

    Attributes:
        shape: (m, n, queries, L).
        further: keys after those of the tokens.
        by_query: whether neighbours in memory are queries and not keys.
        grid_size: (h, w) of the keys that are patches.
        num_prefix_queries: how many of the queries are prefix tokens.
        num_prefix_tokens: how many of the keys are.
        dtype: of the logits.
    """

    shape: tuple[int, int, int, int]
    further: int
    by_query: bool
    grid_size: GridSize
    num_prefix_queries: int
    num_prefix_tokens: int
    dtype: torch.dtype

    @property
    def size(self) -> int:
        """Numbers in the memory."""
        m, n, queries, keys = self.shape
        return m * n * queries * (keys + self.further)


class Plan:
    """The pieces of one call, and any tensor of the call cut into them: one part a piece, in their order.

    Cut whole, by few calls: a call costs as much as the arithmetic on a small part.

    Args:
        shape: B, H, L.
        dtype: of the logits.
        num_prefix_tokens: P.
        budget: bytes of logits that are alive at a time.
        threads: of torch.
        query_block: the least queries of one head that are worth a matrix product.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        dtype: torch.dtype,
        num_prefix_tokens: int,
        budget: int,
        threads: int,
        query_block: int,
    ) -> None:
        batch, num_heads, self._num_tokens = shape
        self._num_prefix_tokens, self._dtype = num_prefix_tokens, dtype
        row_bytes = dtype.itemsize * self._num_tokens
        pairs = max(1, budget // (row_bytes * self._num_tokens))
        block = self._num_tokens
        if row_bytes * self._num_tokens > budget:
            block = max(query_block, budget // row_bytes // query_block * query_block)
        # a product of many matrices gives whole ones to threads, a product of one is shared out inside
        if pairs > threads:
            pairs -= pairs % threads
        self._by_head = (batch % threads == 0, batch) > (num_heads % threads == 0, num_heads)
        outer, inner = (num_heads, batch) if self._by_head else (batch, num_heads)
        self._sizes = max(1, min(outer, pairs // max(1, inner))), max(1, min(pairs, inner))
        self._blocks = list(_parts(self._num_tokens, block))
        self.pieces = [
            Piece(outer_part, inner_part, queries)
            for outer_part in _parts(outer, self._sizes[0])
            for inner_part in _parts(inner, self._sizes[1])
            for queries in self._blocks
        ]
        self.patches = [self._patches_of(piece.queries) for piece in self.pieces]
        """Of every piece, which of all patches are queries."""
        self._forms: dict[tuple[int, bool, GridSize], list[Form]] = {}

    def of_keys(self, tensor: Tensor) -> list[Tensor]:
        """[B, H, ...] as [m, n, ...], with all tokens."""
        groups = self._groups(tensor)
        return groups if len(self._blocks) == 1 else [group for group in groups for _ in self._blocks]

    def of_queries(self, tensor: Tensor) -> list[Tensor]:
        """[B, H, L, ...] as [m, n, queries, ...]."""
        groups = self._groups(tensor)
        return groups if len(self._blocks) == 1 else [group[:, :, part] for group in groups for part in self._blocks]

    def of_factor(self, factor: Tensor) -> list[Tensor]:
        """[B, H, N, ...] as [m, n, patches among the queries, ...]."""
        groups = self._groups(factor)
        if len(self._blocks) == 1:
            return groups
        return [group[:, :, self._patches_of(block)] for group in groups for block in self._blocks]

    def forms(self, further: int, by_query: bool, grid_size: GridSize) -> list[Form]:
        """Of every piece's logits; see ``Form``."""
        key = further, by_query, grid_size
        if key not in self._forms:
            self._forms[key] = self._make_forms(*key)
        return self._forms[key]

    def _make_forms(self, further: int, by_query: bool, grid_size: GridSize) -> list[Form]:
        forms = []
        for outer, inner, queries in self.pieces:
            shape = *(part.stop - part.start for part in (outer, inner, queries)), self._num_tokens
            prefix = max(min(self._num_prefix_tokens, queries.stop) - queries.start, 0)
            forms.append(Form(shape, further, by_query, grid_size, prefix, self._num_prefix_tokens, self._dtype))
        return forms

    def with_bias(self, piece: Piece, logits: Tensor, attn_bias: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Logits [m, n, queries, L] of a piece, and the bias that is theirs and broadcasts to them.

        In as many parts as it takes: a bias of fewer images comes again and again.
        """
        own = attn_bias.transpose(0, 1) if self._by_head else attn_bias
        heads_dim, images_dim = (0, 1) if self._by_head else (1, 0)
        heads, images = piece[heads_dim], piece[images_dim]
        own = own.narrow(heads_dim, heads.start, heads.stop - heads.start) if own.shape[heads_dim] > 1 else own
        own = own[:, :, piece.queries] if own.shape[2] > 1 else own
        period, start = own.shape[images_dim], images.start
        if period == 1:
            yield logits, own
            return
        while start < images.stop:
            place = start % period
            count = min(images.stop - start, period - place)
            part = logits.narrow(images_dim, start - images.start, count)
            yield part, own.narrow(images_dim, place, count)
            start += count

    def _groups(self, tensor: Tensor) -> list[Tensor]:
        whole = tensor.transpose(0, 1) if self._by_head else tensor
        if len(self.pieces) <= 1:
            return [whole][: len(self.pieces)]  # none of no images
        return [part for each in whole.split(self._sizes[0]) for part in each.split(self._sizes[1], 1)]

    def _patches_of(self, queries: slice) -> slice:
        prefix = self._num_prefix_tokens
        return slice(max(queries.start - prefix, 0), max(queries.stop - prefix, 0))


@functools.lru_cache(maxsize=64)
def _plan(*arguments: Any) -> Plan:
    return Plan(*arguments)


def plan_of(q: Tensor, num_prefix_tokens: int, threads: int) -> Plan:
    """The plan of a call, kept for the next one of its form."""
    return _plan(tuple(q.shape[:3]), compute_dtype(q), num_prefix_tokens, _PIECE_BYTES, threads, _QUERY_BLOCK)


class Logits:
    """The logits of a piece, [m, n, queries, L], and those of further keys, in one memory; and its views in use.

    Args:
        form: what it looks like.
        memory: ``form.size`` uninitialised numbers.
    """

    def __init__(self, form: Form, memory: Tensor) -> None:
        m, n, queries, keys = form.shape
        all_keys = keys + form.further
        self.form, self.keys_dim = form, -2 if form.by_query else -1
        in_memory = memory.view((m, n, all_keys, queries) if form.by_query else (m, n, queries, all_keys))
        self.parts = in_memory.unbind(0)
        """All of it, as it lies in memory, product by product: [n, queries, L + further], or keys first."""
        self.all_keys = in_memory.mT if form.by_query else in_memory
        """[m, n, queries, L + further]."""
        self.in_memory = in_memory.narrow(self.keys_dim, 0, keys)
        """That of the tokens' keys, as it lies in memory."""
        self.whole = self.in_memory.mT if form.by_query else self.in_memory

    @functools.cached_property
    def patches(self) -> Tensor:
        """[m, n, queries, h, w] where both are patches."""
        of_patches = self.whole[:, :, self.form.num_prefix_queries :, self.form.num_prefix_tokens :]
        return of_patches.unflatten(-1, self.form.grid_size)

    @functools.cached_property
    def of_further(self) -> Tensor:
        """[m, n, further, queries]."""
        return self.all_keys.mT[:, :, self.form.shape[3] :]

    @functools.cached_property
    def of_further_patches(self) -> Tensor:
        """[m, n, further, queries] of the queries that are patches."""
        return self.of_further[..., self.form.num_prefix_queries :]


def logits_room(name: str, form: Form) -> Logits:
    """Room that is taken again and again."""
    return views((name, form), lambda: Logits(form, room(name, form.size, form.dtype)))


def compute_dtype(tensor: Tensor) -> torch.dtype:
    """At least float32."""
    return torch.promote_types(tensor.dtype, torch.float32)


def _parts(length: int, size: int) -> Iterator[slice]:
    for start in range(0, length, size):
        yield slice(start, min(length, start + size))
