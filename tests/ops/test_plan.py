"""How a call on a CPU is cut into pieces."""

from __future__ import annotations

import pytest
import torch

from locatvit.ops.attention.pieces import plan

GRIDS = ((64, 64), (37, 37), (34, 34), (45, 80), (1, 4096), (2, 2048), (8, 1500), (5000, 1))


@pytest.mark.parametrize("may_cut_keys", [True, False])
@pytest.mark.parametrize("prefix", [0, 5])
@pytest.mark.parametrize("grid_size", GRIDS, ids=str)
def test_every_logit_is_in_one_piece_that_fits(grid_size, prefix, may_cut_keys):
    tokens = grid_size[0] * grid_size[1] + prefix
    q = torch.empty(1, 2, tokens, 64, device="meta")
    made = plan.plan_of(q, grid_size, prefix, 2, may_cut_keys=may_cut_keys)
    covered = torch.zeros(1, 2, tokens, tokens, dtype=torch.int8)
    for piece in made.pieces:
        covered[piece.outer, piece.inner, piece.queries, piece.keys] += 1
    assert (covered == 1).all()
    gaps = 1.01  # from the end of a line to the start of the next
    assert max(4 * form.size for form in made.forms(0, by_query=False)) <= gaps * plan._PIECE_BYTES


def test_the_pieces_of_a_long_image_are_nearly_squares():
    """At 1024 px: the products of long lines of logits are slow."""
    q = torch.empty(1, 3, 4097, 64, device="meta")
    made = plan.plan_of(q, (64, 64), 1, 2, may_cut_keys=True)
    lengths = {(piece.queries.stop - piece.queries.start, piece.keys.stop - piece.keys.start) for piece in made.pieces}
    assert len(made.pieces) == 3 * 4 * 4
    assert lengths == {(queries, keys) for queries in (1025, 1022) for keys in (1024, 1025)}


def test_heads_of_up_to_512_tokens_share_pieces():
    q = torch.empty(8, 3, 197, 64, device="meta")
    (piece,) = plan.plan_of(q, (14, 14), 1, 2, may_cut_keys=True).pieces
    assert (piece.outer, piece.inner) == (slice(0, 3), slice(0, 8))
    assert plan.worth_predicting(q)
    assert not plan.worth_predicting(torch.empty(8, 3, 577, 64, device="meta"))
