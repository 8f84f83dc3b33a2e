"""The locality bias as one would write it down first, and as the authors' code makes it: dense, in several passes."""

from __future__ import annotations

import functools
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from locatvit.grid import GridSize, coordinates
from locatvit.layers import GAug
from locatvit.ops.attention.reference import repeated


def dense_gaussian(
    variance: Float[Tensor, "*B N 2"], grid_size: GridSize, *, distance_clamp: float | None = None
) -> Float[Tensor, "*B N N"]:
    """G of Eq. 8, term by term: squared differences (Eq. 7), their quotient [*B, N, N, 2], its sum, the exponential.

    Args:
        variance: of each patch along rows and columns, in patches².
        grid_size: (h, w), h * w = N.
        distance_clamp: cap of each axis' squared distance, in patches².
    """
    quotient = _squared_differences(grid_size, distance_clamp, variance.device) / variance[..., :, None, :]
    return torch.exp(-0.5 * quotient.sum(-1))


@functools.lru_cache(maxsize=2)
def _squared_differences(grid_size: GridSize, clamp: float | None, device: torch.device) -> Float[Tensor, "N N 2"]:
    with torch.inference_mode(False):  # what is made in inference mode cannot serve training later
        places = coordinates(grid_size, device=device, dtype=torch.float32)
        differences = (places[:, None] - places[None]).square()
        return differences if clamp is None else differences.clamp(max=clamp)


def dense_attention(
    q: Float[Tensor, "B H L K"],
    k: Float[Tensor, "B H L K"],
    v: Float[Tensor, "B H L K"],
    variance: Float[Tensor, "B H N 2"],
    alpha: Float[Tensor, "B H N"],
    attn_bias: Float[Tensor, ...] | None,
    *,
    grid_size: GridSize,
    num_prefix_tokens: int,
) -> Float[Tensor, "B H L K"]:
    """softmax(q kᵀ / sqrt(K) + S + attn_bias) v with S = diag(alpha) G, padded for prefix tokens (Eqs. 4, 10)."""
    supplement = alpha[..., None] * dense_gaussian(variance, grid_size)
    supplement = F.pad(supplement, (num_prefix_tokens, 0, num_prefix_tokens, 0))
    if attn_bias is not None:
        supplement = supplement + repeated(attn_bias, len(q))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=supplement.to(q.dtype))


def use_dense_gaussian(model: nn.Module) -> nn.Module:
    """Let every GAug of a model make its bias by ``dense_gaussian``; the rest of the model, PRR too, stays as it is."""
    for module in model.modules():
        if isinstance(module, GAug):
            module.kernel = replace(module.kernel, values=dense_gaussian)
    return model
