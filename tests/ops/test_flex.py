"""FlexAttention on a CPU: the forward pass; and what it refuses."""

import pytest
import torch

import formulas
from locatvit.errors import LocAtError
from locatvit.ops import gaug_attention


def _inputs(grid_size, prefix, batch=4):
    height, width = grid_size
    q, k, v = torch.randn(3, batch, 3, height * width + prefix, 16).unbind(0)
    return [q, k, v, *(torch.rand(batch, 3, height * width, side) * 3 for side in grid_size)]


def _truth(inputs, prefix, attn_bias=0.0):
    q, k, v, row, column = (x.double() for x in inputs)
    bias = formulas.padded((row[..., :, None] * column[..., None, :]).flatten(-2), prefix)
    return formulas.attention(q, k, v, bias + attn_bias)


@pytest.mark.slow
@pytest.mark.parametrize(("grid_size", "prefix"), [((5, 7), 1), ((3, 11), 5), ((7, 7), 0)])
def test_forward(grid_size, prefix):
    inputs = _inputs(grid_size, prefix)
    with torch.no_grad():
        out = gaug_attention(*inputs, num_prefix_tokens=prefix, backend="flex")
    torch.testing.assert_close(out.double(), _truth(inputs, prefix), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(2, 3, 36, 36), (1, 1, 1, 36)])
def test_a_further_bias(shape):
    inputs, attn_bias = _inputs((5, 7), 1), torch.randn(shape)
    out = gaug_attention(*inputs, num_prefix_tokens=1, attn_bias=attn_bias, backend="flex")
    repeated = attn_bias.double().repeat(4 // shape[0], 1, 1, 1)
    torch.testing.assert_close(out.double(), _truth(inputs, 1, repeated), rtol=1e-5, atol=1e-5)


def test_refusals():
    inputs = _inputs((5, 7), 1)
    with pytest.raises(LocAtError, match="'flex' cannot run here: FlexAttention has no dropout"):
        gaug_attention(*inputs, num_prefix_tokens=1, dropout_p=0.1, backend="flex")
    with pytest.raises(LocAtError, match="FlexAttention has no float64"):
        gaug_attention(*(x.double() for x in inputs), num_prefix_tokens=1, backend="flex")
    inputs[3].requires_grad_()
    with pytest.raises(LocAtError, match=r"no backward on a CPU; use it under torch.no_grad"):
        gaug_attention(*inputs, num_prefix_tokens=1, backend="flex")


@pytest.mark.slow
def test_it_stays_compiled_over_many_shapes():
    with torch._dynamo.config.patch(recompile_limit=2):
        for side in (2, 3, 4, 5):
            inputs = _inputs((side, 3), 1, batch=1)
            out = gaug_attention(*inputs, num_prefix_tokens=1, backend="flex")  # a fallback warns, and fails the test
            torch.testing.assert_close(out.double(), _truth(inputs, 1), rtol=1e-5, atol=1e-5)
