"""Queries, keys and values of timm's attentions that have more, or fewer, weights for them than one ``qkv`` layer."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from locatvit.layers import attention as layers


def projections(attention: Any, x: Float[Tensor, "B L D"]) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v, each [B, H, L, K], q and k normed, of whichever form the attention has:

    one ``qkv`` layer; one without a bias beside ``q_bias``, ``k_bias`` and ``v_bias`` (BEiT, EVA); ``q_proj``,
    ``k_proj`` and ``v_proj``, the latter two perhaps for fewer heads (grouped queries), which are then repeated.
    """
    if attention.qkv is None:
        parts: tuple[Tensor, ...] = (attention.q_proj(x), attention.k_proj(x), attention.v_proj(x))
    elif getattr(attention, "q_bias", None) is not None:
        parts = _with_own_biases(attention, x).chunk(3, dim=-1)
    else:
        return layers.projections(attention, x)
    head_dim = parts[0].shape[-1] // attention.num_heads
    q, k, v = (part.unflatten(-1, (-1, head_dim)).transpose(1, 2) for part in parts)
    if hasattr(attention, "q_norm"):
        q, k = attention.q_norm(q), attention.k_norm(k)
    num_queries_a_key = attention.num_heads // k.shape[1]
    if num_queries_a_key > 1:
        k, v = (tokens.repeat_interleave(num_queries_a_key, dim=1) for tokens in (k, v))
    return q, k, v


def _with_own_biases(attention: Any, x: Float[Tensor, "B L D"]) -> Float[Tensor, "B L 3D"]:
    bias = torch.cat((attention.q_bias, attention.k_bias, attention.v_bias))
    if attention.qkv_bias_separate:
        return attention.qkv(x) + bias
    return F.linear(x, attention.qkv.weight, bias)
