"""Search in a memory of vectors, by one of two backends. Both are exact, and compute in float32; see ``TOLERANCE``.

``torch`` (``nearest``) runs where the queries are. ``faiss`` (extra ``retrieval``) does the same job on the CPU.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from locatvit.errors import LocAtError
from locatvit.evaluation.nearest import Neighbours, check_request, check_vectors, nearest

__all__ = ["TOLERANCE", "Neighbours", "SearchFn", "check_backend", "make_search", "placed"]

TOLERANCE = 2e-6
"""How far the scores of two backends may be apart, for vectors of length 1: float32 sums in another order. Where two
scores of a query are nearer to each other than that, the backends may rank them differently."""

_GPU_SHARE = 0.5

SearchFn = Callable[[Tensor, int], Neighbours]
"""(queries ``[Q, D]``, k) to the k nearest of each in a memory."""


def make_search(backend: str, memory: Float[Tensor, "M D"], device: torch.device | str = "cpu") -> SearchFn:
    """The search of a backend in ``memory``.

    Args:
        backend: ``"torch"`` or ``"faiss"``.
        memory: float32, finite; it is not copied, but by faiss, and for a GPU that has room for it.
        device: where the queries will be.

    Raises:
        LocAtError: an unknown backend, faiss is not installed, or a memory that is empty or not finite.
    """
    check_backend(backend)
    check_vectors("memory", memory)
    if backend == "faiss":
        return _faiss_search(memory)
    held = placed(memory, torch.device(device))

    def search(queries: Tensor, neighbours: int) -> Neighbours:
        return nearest(queries, held, neighbours)

    return search


def check_backend(backend: str) -> None:
    """Raise ``LocAtError`` for a backend that is unknown or not installed."""
    if backend not in ("torch", "faiss"):
        raise LocAtError(f"backend is {backend!r}; it must be torch or faiss")
    if backend == "faiss" and importlib.util.find_spec("faiss") is None:
        raise LocAtError(
            "backend is 'faiss', which is not installed; install it (pip install 'locatvit[retrieval]') or take "
            "backend 'torch', which finds the same"
        )


def _faiss_search(memory: Tensor) -> SearchFn:
    import faiss

    index = faiss.IndexFlatIP(memory.shape[1])
    index.add(memory.detach().float().cpu().contiguous().numpy())

    def search(queries: Tensor, neighbours: int) -> Neighbours:
        check_request(queries, memory, neighbours)
        faiss.omp_set_num_threads(torch.get_num_threads())
        scores, indices = index.search(queries.detach().float().cpu().contiguous().numpy(), neighbours)
        return Neighbours(*(torch.from_numpy(found).to(queries.device) for found in (scores, indices)))

    return search


def placed(memory: Tensor, device: torch.device) -> Tensor:
    """The memory on a GPU that keeps at least half of its free memory with it; else where it is."""
    if device.type != "cuda":
        return memory
    free, _ = torch.cuda.mem_get_info(device)
    return memory.to(device) if 4 * memory.numel() <= _GPU_SHARE * free else memory
