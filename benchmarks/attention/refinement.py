"""PRR alone: refining the [CLS] row, which a classifier reads, against refining all rows and reading that one."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.attention.cases import RefinementCase
from benchmarks.attention.checks import Results, check, errors
from benchmarks.attention.contenders import dtype_of
from locatvit.analysis.timing import Step
from locatvit.layers import PatchRefinement

ALL, ROW = "all rows", "[CLS] row"


def contenders(case: RefinementCase, device: torch.device) -> tuple[str, ...]:
    """All rows are what the one is compared with."""
    return (ALL, ROW)


def make_step(case: RefinementCase, contender: str, device: torch.device) -> Step:
    """``case.calls`` times the refined [CLS]; in training each with the gradient of the tokens."""
    refinement, tokens = _make(case, device)
    if not case.train:

        def forward() -> None:
            with torch.inference_mode():
                for _ in range(case.calls):
                    _refined(refinement, contender, tokens)

        return forward
    cotangent = torch.randn_like(tokens[:, 0])

    def train() -> None:
        for _ in range(case.calls):
            torch.autograd.grad(_refined(refinement, contender, tokens), tokens, cotangent)

    return train


def verify(case: RefinementCase, contender: str, device: torch.device) -> None:
    """Compare with all rows in float64, on one image.

    Raises:
        LocAtError: it is further off than the tests of the op allow.
    """
    refinement, tokens = _make(case, device)
    tokens = tokens[:1].detach().requires_grad_(case.train)
    cotangent = torch.randn_like(tokens[:, 0])
    exact = tokens.detach().double().requires_grad_(case.train)
    truth = _results(case, refinement, ALL, exact, cotangent.double())
    plain = errors(_results(case, refinement, ALL, tokens, cotangent), truth)
    check(case.name, contender, _results(case, refinement, contender, tokens, cotangent), truth, plain)


def _make(case: RefinementCase, device: torch.device) -> tuple[PatchRefinement, Tensor]:
    torch.manual_seed(0)
    width = case.num_heads * case.head_dim
    tokens = torch.randn(case.batch_size, case.num_tokens, width, dtype=dtype_of(case), device=device)
    return PatchRefinement(width, case.num_heads), tokens.requires_grad_(case.train)


def _refined(refinement: PatchRefinement, contender: str, tokens: Tensor) -> Tensor:
    return refinement(tokens, num_queries=1 if contender == ROW else None)[:, 0]


def _results(
    case: RefinementCase, refinement: PatchRefinement, contender: str, tokens: Tensor, cotangent: Tensor
) -> Results:
    with torch.set_grad_enabled(case.train):
        output = _refined(refinement, contender, tokens)
    results = Results({"output": output.detach()})
    if case.train:
        (results["gradient of the tokens"],) = torch.autograd.grad(output, tokens, cotangent)
    return results
