"""Finding neighbours: the package's blocks, faiss, and ``torch.topk`` over all scores."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.dense.cases import SearchCase
from benchmarks.dense.outcome import Outcome, Progress
from locatvit.errors import LocAtError
from locatvit.evaluation.retrieval import TOLERANCE, Neighbours, SearchFn, make_search

OURS = "locatvit"
FAISS = "faiss IndexFlatIP"
_CHECKED_QUERIES = 98
# scores at a time: 256 queries and all rows, 1 GB of a million
_QUERIES, _ROWS = 256, 65_536


def contenders(memory: Tensor) -> dict[str, Callable[[], SearchFn]]:
    """Who takes part, made when its turn comes: faiss keeps a copy of the memory."""
    found: dict[str, Callable[[], SearchFn]] = {OURS: lambda: make_search("torch", memory, memory.device)}
    if memory.device.type == "cpu" and importlib.util.find_spec("faiss") is not None:
        found[FAISS] = lambda: make_search("faiss", memory)
    found["topk of chunks, merged"] = lambda: _by_chunks(memory)
    found["topk of whole rows"] = lambda: _by_rows(memory)
    return found


def _by_rows(memory: Tensor) -> SearchFn:
    def search(queries: Tensor, neighbours: int) -> Neighbours:
        parts = [(part @ memory.T).topk(neighbours, dim=1) for part in queries.split(_QUERIES)]
        return Neighbours(*map(torch.cat, zip(*parts, strict=True)))

    return search


def _by_chunks(memory: Tensor) -> SearchFn:
    """The best of each chunk of the memory, then the best of those."""

    def search(queries: Tensor, neighbours: int) -> Neighbours:
        found = []
        for part in queries.split(8 * _QUERIES):
            scores, indices = [], []
            for start in range(0, len(memory), _ROWS):
                best = (part @ memory[start : start + _ROWS].T).topk(neighbours, dim=1)
                scores.append(best.values)
                indices.append(best.indices + start)
            best = torch.cat(scores, dim=1).topk(neighbours, dim=1)
            found.append((best.values, torch.cat(indices, dim=1).gather(1, best.indices)))
        return Neighbours(*map(torch.cat, zip(*found, strict=True)))

    return search


def vectors(case: SearchCase, device: torch.device) -> tuple[Tensor, Tensor]:
    """Queries and memory of length 1: patches that are alike within an image, and images within a kind."""
    generator = torch.Generator().manual_seed(0)

    def normal(count: int) -> Tensor:
        return torch.randn(count, case.width, generator=generator)

    kinds = normal(150)

    def patches(num_images: int) -> Tensor:
        image = 0.5 * kinds[torch.randint(150, (num_images,), generator=generator)] + 0.5 * normal(num_images)
        every = image.repeat_interleave(case.patches, dim=0)
        return F.normalize(every.add_(normal(len(every))), dim=1)

    memory = patches(-(-case.num_rows // case.patches))[: case.num_rows]
    return patches(case.turns * case.images_a_turn).to(device), memory.to(device)


def verify(case: SearchCase, name: str, search: SearchFn, queries: Tensor, memory: Tensor) -> None:
    """The neighbours are the best ones by float64.

    Raises:
        LocAtError: they are not.
    """
    queries = queries[:: max(1, len(queries) // _CHECKED_QUERIES)]
    found = search(queries, case.neighbours)
    best = torch.cat([_best(part, memory, case.neighbours) for part in queries.split(7)])
    own = (queries.double()[:, None] * memory[found.indices].double()).sum(dim=2)
    error = max((found.scores - best).abs().max().item(), (own - best).abs().max().item())
    if not error <= TOLERANCE:
        raise LocAtError(
            f"{case.name}, {name}: a score is off by {error:.1e}, more than {TOLERANCE:.1e}; no time is reported over "
            "a wrong result: run the tests of the search first"
        )


def _best(queries: Tensor, memory: Tensor, neighbours: int) -> Tensor:
    return (queries.double() @ memory.double().T).topk(neighbours, dim=1).values


def measure(case: SearchCase, device: torch.device, progress: Progress) -> list[Outcome]:
    """Times of each contender, turn by turn; every turn has queries of its own, the same for all."""
    progress(f"{case.name}: making {case.num_rows:,} rows")
    queries, memory = vectors(case, device)
    searches = {}
    for name, make in contenders(memory).items():
        progress(f"{case.name}: checking {name}")
        searches[name] = make()
        verify(case, name, searches[name], queries, memory)
        # one turn that is not timed: memory and thread pools settle
        searches[name](queries[: case.queries_a_turn], case.neighbours)
    taken: dict[str, list[float]] = {name: [] for name in searches}
    for turn, part in enumerate(queries.split(case.queries_a_turn), start=1):
        for name, search in searches.items():
            progress(f"{case.name}: {name}, turn {turn} of {case.turns}")
            _wait(device)
            start = time.perf_counter()
            search(part, case.neighbours)
            _wait(device)
            taken[name].append(time.perf_counter() - start)
    return [Outcome(case, name, tuple(values), case.queries_a_turn, case.num_queries) for name, values in taken.items()]


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
