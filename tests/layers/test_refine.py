import copy
import threading

import pytest
import torch

import formulas
from locatvit.errors import LocAtError
from locatvit.layers import PatchRefinement


def test_equals_the_formula_with_gradients():
    x = torch.randn(2, 11, 21, dtype=torch.float64, requires_grad=True)
    refined, expected = PatchRefinement(21, 3)(x), formulas.refinement(x, 3)
    torch.testing.assert_close(refined, expected, rtol=1e-12, atol=1e-13)
    cotangent = torch.randn_like(refined)
    (got,), (want,) = (torch.autograd.grad(y, x, cotangent) for y in (refined, expected))
    torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-12)


def test_one_query_gives_the_first_row_and_its_gradient():
    x = torch.randn(2, 11, 21, dtype=torch.float64, requires_grad=True)
    refine = PatchRefinement(21, 3)
    row, full = refine(x, num_queries=1)[:, 0], refine(x)[:, 0]
    torch.testing.assert_close(row, full)
    cotangent = torch.randn_like(row)
    (got,), (want,) = (torch.autograd.grad(y, x, cotangent) for y in (row, full))
    torch.testing.assert_close(got, want)
    assert got[:, 1:].abs().sum(-1).min() > 0  # every patch gets a gradient: what PRR is for


def test_identity_start_changes_nothing_and_can_learn():
    x = torch.randn(2, 11, 21)
    refine = PatchRefinement(21, 3, start="identity")
    out = refine(x)
    assert torch.equal(out, x)
    (out * torch.randn_like(out)).sum().backward()
    assert refine.gate.grad.abs() > 0


def test_no_parameters():
    assert list(PatchRefinement(21, 3).parameters()) == []


def test_heads_must_divide():
    with pytest.raises(LocAtError, match="embed_dim 20 is no multiple of num_heads 3"):
        PatchRefinement(20, 3)


def test_a_mask_is_of_one_thread_and_of_its_own_tokens():
    refinement = PatchRefinement(24, 3)
    x, mask = torch.randn(2, 7, 24), torch.ones(2, 1, 1, 7, dtype=torch.bool)
    mask[..., 5:] = False
    free = refinement(x)
    refinement.mask.record(mask)
    masked = refinement(x)
    assert not torch.allclose(masked, free)
    found = []
    other = threading.Thread(target=lambda: found.append(refinement(x)))
    other.start()
    other.join()
    assert torch.equal(found[0], free)
    assert torch.equal(refinement(x[:, :5]), refinement(x[:, :5]))  # 5 tokens, and a mask of 7 left from before
    assert torch.equal(copy.deepcopy(refinement)(x), free)
    refinement.mask.record(None)
    assert torch.equal(refinement(x), free)
