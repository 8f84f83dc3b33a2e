"""The bias in torch's fused attention.

On a CPU the bias is made in pieces that fit the cache (``pieces/``). Elsewhere, while a model is exported, and
with dropout, it is one dense mask and torch does the rest.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from locatvit.ops.attention import pieces
from locatvit.ops.attention.factors import make_factors
from locatvit.ops.attention.reference import repeated, supplement
from locatvit.ops.distance import Gaussian
from locatvit.ops.prediction import PredictedGaussian


def run(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    row_factor: Tensor,
    column_factor: Tensor,
    num_prefix_tokens: int,
    attn_bias: Tensor | None,
    scale: float,
    dropout_p: float,
) -> Tensor:
    """Z = softmax(q kᵀ · scale + S + attn_bias) v (Eq. 4)."""
    if _in_pieces(q, dropout_p):
        return pieces.attend(q, k, v, row_factor, column_factor, num_prefix_tokens, attn_bias, scale)
    attn_mask = supplement(row_factor, column_factor, num_prefix_tokens).to(q.dtype)
    if attn_bias is not None:
        attn_mask = attn_mask + repeated(attn_bias, q.shape[0]).to(q.dtype)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask, scale=scale, dropout_p=dropout_p)
    if torch.compiler.is_exporting():
        # what a program is later made of need not lay its output out as torch's kernel does here
        return out.transpose(1, 2).clone(memory_format=torch.contiguous_format).transpose(1, 2)
    return out


def run_gaussian(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gaussian: Gaussian,
    num_prefix_tokens: int,
    attn_bias: Tensor | None,
    scale: float,
    dropout_p: float,
) -> Tensor:
    """The same for a Gaussian."""
    # torch 2.14 traces make_factors for several sizes with a wrong shape; a compiler makes gradients of its own anyway
    in_few_passes = _in_pieces(q, dropout_p) and not torch.compiler.is_compiling()
    factors = make_factors(gaussian) if in_few_passes else gaussian.factors()
    return run(q, k, v, *factors, num_prefix_tokens, attn_bias, scale, dropout_p)


def run_predicted(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gaussian: PredictedGaussian,
    num_prefix_tokens: int,
    attn_bias: Tensor | None,
    scale: float,
    dropout_p: float,
) -> Tensor:
    """The same for a Gaussian that is predicted from these queries."""
    # the prediction's products are divided by the scale
    if _in_pieces(q, dropout_p) and scale != 0 and pieces.worth_predicting(q):
        return pieces.attend_predicted(q, k, v, gaussian, attn_bias, scale)
    return run_gaussian(q, k, v, gaussian.evaluate(), num_prefix_tokens, attn_bias, scale, dropout_p)


def _in_pieces(q: Tensor, dropout_p: float) -> bool:
    return q.device.type == "cpu" and dropout_p == 0 and not torch.compiler.is_exporting()
