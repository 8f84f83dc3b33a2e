"""Exact search: against sorted float64 scores, by every backend, whatever the blocks."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from locatvit.errors import LocAtError
from locatvit.evaluation import nearest as blocks
from locatvit.evaluation.nearest import Neighbours, nearest
from locatvit.evaluation.retrieval import TOLERANCE, make_search

needs_faiss = pytest.mark.skipif(importlib.util.find_spec("faiss") is None, reason="faiss is not installed")
BACKENDS = ("torch", pytest.param("faiss", marks=needs_faiss))


def unit_vectors(count: int, width: int, seed: int) -> Tensor:
    return F.normalize(torch.randn(count, width, generator=torch.Generator().manual_seed(seed)), dim=1)


def as_images(count: int, width: int, seed: int) -> Tensor:
    """Vectors that come in runs of alike ones, as the patches of an image do."""
    centres = unit_vectors(-(-count // 50), width, seed).repeat_interleave(50, dim=0)[:count]
    return F.normalize(centres + 0.5 * unit_vectors(count, width, seed + 1), dim=1)


def by_sorting(queries: Tensor, memory: Tensor, neighbours: int) -> tuple[Tensor, Tensor]:
    scores = queries.double() @ memory.double().T
    order = scores.argsort(dim=1, descending=True, stable=True)[:, :neighbours]
    return scores.gather(1, order), order


def check(found: Neighbours, queries: Tensor, memory: Tensor, neighbours: int) -> None:
    """The scores are the best ones, and the indices are theirs."""
    best, order = by_sorting(queries, memory, neighbours)
    assert found.scores.dtype == torch.float32
    assert found.indices.dtype == torch.int64
    torch.testing.assert_close(found.scores.double(), best, rtol=0, atol=TOLERANCE)
    own = torch.einsum("qd,qkd->qk", queries.double(), memory.double()[found.indices])
    torch.testing.assert_close(own, best, rtol=0, atol=TOLERANCE)
    assert all(len(set(row)) == neighbours for row in found.indices.tolist())
    # wherever the next score is further off than float32 can err, there is no choice
    gaps = best[:, :-1] - best[:, 1:] > 2 * TOLERANCE
    sure = gaps[:, 1:] & gaps[:, :-1]
    assert sure.float().mean() > 0.9
    assert torch.equal(found.indices[:, 1:-1][sure], order[:, 1:-1][sure])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("make", [unit_vectors, as_images])
def test_the_nearest_are_found(backend: str, make) -> None:
    memory, queries = make(7001, 23, 1), make(211, 23, 5)
    check(make_search(backend, memory)(queries, 30), queries, memory, 30)


@pytest.mark.parametrize("block", [(1, 64), (7, 100), (211, 640), (1000, 10_000)])
@pytest.mark.parametrize("neighbours", [1, 29, 701])
def test_blocks_change_nothing(block: tuple[int, int], neighbours: int) -> None:
    memory, queries = as_images(701, 11, 1), as_images(31, 11, 7)
    found = nearest(queries, memory, neighbours, block=block)
    best, _ = by_sorting(queries, memory, neighbours)
    torch.testing.assert_close(found.scores.double(), best, rtol=0, atol=TOLERANCE)
    assert all(len(set(row)) == neighbours for row in found.indices.tolist())


@pytest.mark.parametrize("order", ["rising", "falling"])
def test_a_memory_in_the_worst_order(order: str) -> None:
    """Each row nearer than all before it passes every bound, each further one none."""
    angles = torch.linspace(1.5, 0.1, 5000, dtype=torch.float64)
    memory = torch.stack([angles.cos(), angles.sin()], dim=1).float()
    memory = memory if order == "rising" else memory.flip(0)
    queries = torch.tensor([[1.0, 0.0]]).repeat(3, 1)
    found = nearest(queries, memory, 30, block=(2, 128))
    expected = torch.arange(4999, 4969, -1) if order == "rising" else torch.arange(30)
    assert torch.equal(found.indices, expected.repeat(3, 1))


@pytest.mark.parametrize("block", [(2, 64), (5, 128), (5, 1024)])
def test_of_equal_scores_the_first_rows_are_taken(block: tuple[int, int]) -> None:
    """Small whole numbers: their products are exact, so equal rows have equal scores in any order of summation."""
    generator = torch.Generator().manual_seed(3)
    memory = torch.randint(0, 3, (1000, 4), generator=generator).float()
    queries = torch.randint(0, 3, (5, 4), generator=generator).float()
    found = nearest(queries, memory, 77, block=block)
    best, order = by_sorting(queries, memory, 77)
    assert torch.equal(found.indices, order)
    assert torch.equal(found.scores.double(), best)
    same = nearest(queries, torch.ones(300, 4), 7, block=block)
    assert torch.equal(same.indices, torch.arange(7).repeat(5, 1))


@needs_faiss
def test_backends_find_the_same() -> None:
    memory, queries = as_images(20_011, 48, 1), as_images(307, 48, 9)
    ours, theirs = (make_search(backend, memory)(queries, 30) for backend in ("torch", "faiss"))
    torch.testing.assert_close(ours.scores, theirs.scores, rtol=0, atol=TOLERANCE)
    different = ours.indices != theirs.indices
    assert different.float().mean() < 0.001
    # where they differ, they have swapped what is equal within the tolerance
    swapped = (queries[:, None] * (memory[ours.indices] - memory[theirs.indices])).sum(dim=2)[different]
    assert (swapped.abs() <= TOLERANCE).all()


def test_coarse_arithmetic_does_not_touch_it() -> None:
    """Neither autocast nor a setting that lets products of float32 be computed in bfloat16."""
    memory, queries = unit_vectors(3001, 64, 1), unit_vectors(101, 64, 5)
    convolutions = torch.backends.mkldnn.conv
    before = convolutions.fp32_precision
    try:
        convolutions.fp32_precision = "bf16"
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = nearest(queries, memory, 30)
        assert convolutions.fp32_precision == "bf16"
    finally:
        convolutions.fp32_precision = before
    check(found, queries, memory, 30)


def test_without_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    memory, queries = as_images(3001, 23, 1), as_images(101, 23, 5)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    check(nearest(queries, memory, 30), queries, memory, 30)


def test_what_is_held_is_a_block_of_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    passing = blocks._passing

    def measured(scores: Tensor, *arguments, **options):
        sizes.append(scores.numel())
        return passing(scores, *arguments, **options)

    monkeypatch.setattr(blocks, "_passing", measured)
    nearest(unit_vectors(1000, 8, 1), unit_vectors(4000, 8, 2), 5, block=(100, 256))
    assert max(sizes) == 100 * 256
    assert len(sizes) == 10 * 16


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("queries", "neighbours", "message"),
    [
        (torch.zeros(3, 7), 1, "queries are 7 wide and the memory 5; both must be features of one layer"),
        (torch.zeros(3, 5), 0, "neighbours is 0 and the memory has 11 rows; it must be from 1"),
        (torch.zeros(3, 5), 12, "neighbours is 12 and the memory has 11 rows"),
        (torch.zeros(0, 5), 1, r"queries are torch.float32 of shape \(0, 5\); they must be"),
        (torch.zeros(3, 5, dtype=torch.long), 1, "queries are torch.int64 of shape"),
        (torch.full((3, 5), torch.nan), 1, "queries have values that are not finite; has the backbone"),
    ],
)
def test_a_wrong_request(backend: str, queries: Tensor, neighbours: int, message: str) -> None:
    search = make_search(backend, unit_vectors(11, 5, 1))
    with pytest.raises(LocAtError, match=message):
        search(queries, neighbours)


def test_a_wrong_backend_or_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LocAtError, match="backend is 'scann'; it must be torch or faiss"):
        make_search("scann", torch.zeros(3, 5))
    with pytest.raises(LocAtError, match="memory have values that are not finite"):
        make_search("torch", torch.full((3, 5), torch.inf))
    with pytest.raises(LocAtError, match=r"memory are torch.float32 of shape \(0, 5\)"):
        make_search("torch", torch.zeros(0, 5))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(LocAtError, match=r"'faiss', which is not installed; install it \(pip install 'locatvit\[ret"):
        make_search("faiss", torch.ones(3, 5))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("on_gpu", [True, False])
def test_a_gpu_finds_the_same(on_gpu: bool) -> None:
    memory, queries = as_images(100_003, 48, 1), as_images(307, 48, 9)
    held = memory.cuda() if on_gpu else memory
    found = nearest(queries.cuda(), held, 30, block=(128, 4096))
    check(Neighbours(found.scores.cpu(), found.indices.cpu()), queries, memory, 30)
