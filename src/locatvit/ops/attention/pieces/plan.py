"""How attention on a CPU is cut into pieces that fit the cache, and what a piece's logits look like in memory."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from locatvit.grid import GridSize
from locatvit.ops.attention.pieces.scratch import room, views
from locatvit.ops.launches import ceil_div

# Bytes of the logits of a piece, of which the backward pass has two rooms: measured on 2 cores with 1 MiB of L2 cache
# each and 32 MiB of L3 between them; with 512 KiB of L2 half and twice as many are slower, too.
_PIECE_BYTES = 5 << 20
# Logits of one head of one image that are a piece by themselves: of that size, products of several matrices are slower
# than as many products of one.
_SINGLE_BYTES = 1 << 20
# The least queries of one head that are worth a matrix product.
_QUERY_BLOCK = 64
# Numbers of which a line of a single product's logits has a multiple: its stores are slower where they cross what a
# vector register holds. Products of several matrices want them without gaps.
_ALIGNED = 8


class Piece(NamedTuple):
    """Heads and images, and all or some of their queries and keys; [m, n, queries, ...] of each tensor.

    The n matrices of one product are images of one head, or heads of one image, so that they have one stride between
    them, as the batched products need it: queries and values are read where the host's projection wrote them. What is
    done logit by logit is done for all m of them at once.

    Attributes:
        outer: m heads; or images, where ``inner`` are heads.
        inner: n images, or heads.
        queries: of all tokens.
        keys: of all tokens, whole rows of the grid; the prefix with the first of them.
        rows: those rows.
    """

    outer: slice
    inner: slice
    queries: slice
    keys: slice
    rows: slice

    @property
    def is_first_for_keys(self) -> bool:
        """Whether the sums over queries, which belong to these keys, begin here."""
        return self.queries.start == 0

    @property
    def is_first_for_queries(self) -> bool:
        """Whether the sums over keys, which belong to these queries, begin here."""
        return self.rows.start == 0


class Form(NamedTuple):
    """What the memory of a piece's logits depends on.

    Attributes:
        shape: (m, n, queries, keys).
        further: keys after those of the tokens.
        by_query: whether neighbours in memory are queries and not keys.
        grid_size: rows and columns of the keys that are patches.
        num_prefix_queries: how many of the queries are prefix tokens.
        num_prefix_tokens: how many of the keys are.
        dtype: of the logits.
        aligned: whether every line of the memory starts at a multiple of 32 bytes.
    """

    shape: tuple[int, int, int, int]
    further: int
    by_query: bool
    grid_size: GridSize
    num_prefix_queries: int
    num_prefix_tokens: int
    dtype: torch.dtype
    aligned: bool

    @property
    def lines(self) -> tuple[int, int]:
        """How many lines of neighbours in memory a product has, and numbers in one."""
        _, _, queries, keys = self.shape
        all_keys = keys + self.further
        return (all_keys, queries) if self.by_query else (queries, all_keys)

    @property
    def pitch(self) -> int:
        """Numbers from the start of one line to that of the next."""
        length = self.lines[1]
        return ceil_div(length, _ALIGNED) * _ALIGNED if self.aligned else length

    @property
    def size(self) -> int:
        """Numbers in the memory."""
        return math.prod(self.shape[:2]) * self.lines[0] * self.pitch


class Plan:
    """The pieces of one call, and any tensor of the call cut into them: one part a piece, in their order.

    Cut whole, by few calls: a call costs as much as the arithmetic on a small part. The pieces with the same queries
    follow one another.

    Args:
        shape: B, H, L.
        dtype: of the logits.
        grid_size: (h, w) of the patches.
        num_prefix_tokens: P.
        budget: bytes of logits that are alive at a time.
        single: bytes of the logits of a head that is a piece by itself.
        threads: of torch.
        query_block: the least queries of one head that are worth a matrix product.
        keeps_weights: whether the backward pass may find the weights kept, which have no gaps then.
        may_cut_keys: whether a piece may have some of its queries' keys, so that what belongs to a query is a sum over
            pieces.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        dtype: torch.dtype,
        grid_size: GridSize,
        num_prefix_tokens: int,
        budget: int,
        single: int,
        threads: int,
        query_block: int,
        keeps_weights: bool,
        may_cut_keys: bool,
    ) -> None:
        batch, num_heads, self._num_tokens = shape
        self.num_prefix_tokens, self._dtype, self._grid_size = num_prefix_tokens, dtype, grid_size
        self.keeps_weights = keeps_weights
        pairs = 1 if dtype.itemsize * self._num_tokens**2 >= single else self._num_pairs(budget, threads)
        self._by_head = (batch % threads == 0, batch) > (num_heads % threads == 0, num_heads)
        outer, inner = (num_heads, batch) if self._by_head else (batch, num_heads)
        self._sizes = max(1, min(outer, pairs // max(1, inner))), max(1, min(pairs, inner))
        query_parts, row_parts = self._cut_one(budget, query_block, may_cut_keys and not keeps_weights)
        self.pieces_of_one = len(query_parts) * len(row_parts)
        """Pieces that the same heads and images are cut into."""
        self.pieces = [
            Piece(outer_part, inner_part, queries, self._keys_of(rows), rows)
            for outer_part in _parts(outer, self._sizes[0])
            for inner_part in _parts(inner, self._sizes[1])
            for queries in query_parts
            for rows in row_parts
        ]
        self._forms: dict[tuple[int, bool], list[Form]] = {}
        self._places: dict[Hashable, list[tuple[tuple[int, ...], int]]] = {}

    def of_keys(self, tensor: Tensor) -> list[Tensor]:
        """[B, H, L, ...] as [m, n, keys, ...]."""
        return self._parts_of(tensor, _keys_of)

    def of_queries(self, tensor: Tensor) -> list[Tensor]:
        """[B, H, L, ...] as [m, n, queries, ...]."""
        return self._parts_of(tensor, _queries_of)

    def of_row_factor(self, factor: Tensor) -> list[Tensor]:
        """[B, H, N, h, ...] as [m, n, patches among the queries, rows, ...]."""
        return self._parts_of(factor, _rows_of)

    def of_column_factor(self, factor: Tensor) -> list[Tensor]:
        """[B, H, N, ...] as [m, n, patches among the queries, ...]."""
        return self._parts_of(factor, _patches_of)

    def forms(self, further: int, by_query: bool) -> list[Form]:
        """Of every piece's logits; see ``Form``."""
        key = further, by_query
        if key not in self._forms:
            self._forms[key] = [self._form_of(piece, *key) for piece in self.pieces]
        return self._forms[key]

    def _form_of(self, piece: Piece, further: int, by_query: bool) -> Form:
        m, n, queries, keys, rows = (part.stop - part.start for part in piece)
        prefix = self.num_prefix_tokens
        return Form(
            (m, n, queries, keys), further, by_query, (rows, self._grid_size[1]),
            num_prefix_queries=max(min(prefix, piece.queries.stop) - piece.queries.start, 0),
            num_prefix_tokens=prefix if piece.rows.start == 0 else 0,
            dtype=self._dtype, aligned=n == 1 and not self.keeps_weights,
        )  # fmt: skip

    def with_bias(self, piece: Piece, logits: Tensor, attn_bias: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Logits [m, n, queries, keys] of a piece, and the bias that is theirs and broadcasts to them.

        In as many parts as it takes: a bias of fewer images comes again and again.
        """
        own = attn_bias.transpose(0, 1) if self._by_head else attn_bias
        heads_dim, images_dim = (0, 1) if self._by_head else (1, 0)
        heads, images = piece[heads_dim], piece[images_dim]
        own = own.narrow(heads_dim, heads.start, heads.stop - heads.start) if own.shape[heads_dim] > 1 else own
        own = own[:, :, piece.queries] if own.shape[2] > 1 else own
        own = own[..., piece.keys] if own.shape[3] > 1 else own
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

    def _num_pairs(self, budget: int, threads: int) -> int:
        """Heads of images, with all of their tokens, whose logits are a piece."""
        count = max(1, budget // (self._dtype.itemsize * self._num_tokens**2))
        # a product of many matrices gives whole ones to threads, a product of one is shared out inside
        return count - count % threads if count > threads else count

    def _cut_one(self, budget: int, query_block: int, may_cut_keys: bool) -> tuple[list[slice], list[slice]]:
        """Queries, and rows of keys, of the pieces of one head: nearly squares, for long lines make slow products."""
        num_tokens, (height, width) = self._num_tokens, self._grid_size
        row_bytes = self._dtype.itemsize * num_tokens
        whole = [slice(0, num_tokens)], [slice(0, height)]
        if row_bytes * num_tokens <= budget:
            return whole
        if not may_cut_keys:
            block = max(query_block, budget // row_bytes // query_block * query_block)
            return list(_parts(num_tokens, block)), whole[1]
        most = budget // self._dtype.itemsize
        rows = _even_parts(height, max(math.isqrt(most) // width, 1))
        return _even_parts(num_tokens, max(most // self._keys_of(rows[0]).stop, query_block)), rows

    def _parts_of(self, tensor: Tensor, slices_of: Callable[[Plan, Piece], tuple[slice, ...]]) -> list[Tensor]:
        """Of [B, H, ...] the heads and images of every piece, and of the dimensions after them what it names."""
        whole = tensor.transpose(0, 1) if self._by_head else tensor
        if len(self.pieces) == 1:
            return [whole]
        # one view a part, not one a dimension; where it begins is known from the last call with these strides
        strides, offset = whole.stride(), whole.storage_offset()
        key = slices_of, whole.shape, strides
        if key not in self._places:
            self._places[key] = [_place(whole, (*piece[:2], *slices_of(self, piece))) for piece in self.pieces]
        return [whole.as_strided(sizes, strides, offset + start) for sizes, start in self._places[key]]

    def _keys_of(self, rows: slice) -> slice:
        prefix, width = self.num_prefix_tokens, self._grid_size[1]
        return slice(prefix + rows.start * width if rows.start else 0, prefix + rows.stop * width)


@functools.lru_cache(maxsize=64)
def _plan(*arguments: Any) -> Plan:
    return Plan(*arguments)


def plan_of(q: Tensor, grid_size: Sequence[int], num_prefix_tokens: int, threads: int, *, may_cut_keys: bool) -> Plan:
    """The plan of a call, kept for the next one of its form."""
    return _plan(
        tuple(q.shape[:3]), compute_dtype(q), tuple(grid_size), num_prefix_tokens, _PIECE_BYTES, _SINGLE_BYTES, threads,
        _QUERY_BLOCK, worth_keeping(q), may_cut_keys,
    )  # fmt: skip


def worth_keeping(q: Tensor) -> bool:
    """Whether the weights take no more memory than q, k, v and the output, so that all stays linear in L.

    To make them again adds a product and an exponential to the four products of the backward pass.
    """
    num_tokens, head_dim = q.shape[2:]
    return num_tokens * compute_dtype(q).itemsize <= 4 * head_dim * q.element_size()


def worth_predicting(q: Tensor) -> bool:
    """Whether a prediction on the way is cheaper than one before: it saves a reading of q, and costs calls a piece.

    Where it is, no head is cut.
    """
    return compute_dtype(q).itemsize * q.shape[2] ** 2 < min(_SINGLE_BYTES, _PIECE_BYTES)


class Logits:
    """The logits of a piece, [m, n, queries, keys], and those of further keys, in one memory; and its views in use.

    Args:
        form: what it looks like.
        memory: ``form.size`` uninitialised numbers.
    """

    def __init__(self, form: Form, memory: Tensor) -> None:
        m, n, _, keys = form.shape
        num_lines, length = form.lines
        self.form, self.keys_dim = form, -2 if form.by_query else -1
        in_memory = memory.view(m, n, num_lines, form.pitch)[..., :length]
        self.parts = in_memory.unbind(0)
        """All of it, as it lies in memory, product by product: [n, queries, keys + further], or keys first."""
        self.all_keys = in_memory.mT if form.by_query else in_memory
        """[m, n, queries, keys + further]."""
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


def _keys_of(plan: Plan, piece: Piece) -> tuple[slice, ...]:
    return (piece.keys,)


def _queries_of(plan: Plan, piece: Piece) -> tuple[slice, ...]:
    return (piece.queries,)


def _patches_of(plan: Plan, piece: Piece) -> tuple[slice, ...]:
    """Which of all patches are queries."""
    prefix = plan.num_prefix_tokens
    return (slice(max(piece.queries.start - prefix, 0), max(piece.queries.stop - prefix, 0)),)


def _rows_of(plan: Plan, piece: Piece) -> tuple[slice, ...]:
    return (*_patches_of(plan, piece), piece.rows)


def _place(whole: Tensor, slices: Sequence[slice]) -> tuple[tuple[int, ...], int]:
    """Sizes of a part, of as many dimensions as there are slices; and how many numbers after the whole it begins."""
    sizes = (*(part.stop - part.start for part in slices), *whole.shape[len(slices) :])
    return sizes, sum(part.start * stride for part, stride in zip(slices, whole.stride(), strict=False))


def _parts(length: int, size: int) -> Iterator[slice]:
    for start in range(0, length, size):
        yield slice(start, min(length, start + size))


def _even_parts(length: int, most: int) -> list[slice]:
    """As few parts as hold at most so many each, alike in size."""
    return list(_parts(length, ceil_div(length, ceil_div(length, most))))
