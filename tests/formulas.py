"""The paper's formulas, written once more and as plainly as they are printed: (N, N) tensors, no factors."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def positions(height: int, width: int, like: Tensor) -> Tensor:
    """P of Eq. 6, [N, 2]."""
    return torch.tensor([(i, j) for i in range(height) for j in range(width)], dtype=like.dtype, device=like.device)


def variance(logits: Tensor, top: float) -> Tensor:
    """f of Eq. 5."""
    return top / (1 + torch.exp(-(logits - math.log(top - 1))))


def gaussian(var: Tensor, height: int, width: int, cap: float = math.inf) -> Tensor:
    """G of Eq. 8, [..., N, N], from variances [..., N, 2]."""
    p = positions(height, width, var)
    d = (p[:, None] - p[None]) ** 2  # Eq. 7
    d = d.clamp(max=cap)
    return torch.exp(-0.5 * (d[..., 0] / var[..., :, None, 0] + d[..., 1] / var[..., :, None, 1]))


def distance(height: int, width: int, like: Tensor, cap: float = math.inf) -> Tensor:
    """The Euclidean distance of Eqs. 20 and 21, [N, N]."""
    p = positions(height, width, like)
    return ((p[:, None] - p[None]) ** 2).clamp(max=cap).sum(-1).sqrt()


def laplace(width_of_patch: Tensor, height: int, width: int, cap: float = math.inf) -> Tensor:
    """G of Eq. 20, [..., N, N], from λ [..., N]."""
    return torch.exp(-distance(height, width, width_of_patch, cap) / width_of_patch[..., None])


def inverse_distance(width_of_patch: Tensor, height: int, width: int, cap: float = math.inf) -> Tensor:
    """G of Eq. 21, [..., N, N], from γ [..., N]."""
    return 1 / (1 + distance(height, width, width_of_patch, cap) / width_of_patch[..., None])


def automatic_alpha(q: Tensor, k: Tensor) -> Tensor:
    """alpha of Eqs. 13-19, [..., N]: the mean over the keys of |q_p| |k_t| / sqrt(K)."""
    sizes = torch.sqrt((q**2).sum(-1))[..., :, None] * torch.sqrt((k**2).sum(-1))[..., None, :]
    return sizes.mean(-1) / math.sqrt(q.shape[-1])


def supplement(var: Tensor, alpha: Tensor, height: int, width: int, prefix: int, cap: float = math.inf) -> Tensor:
    """S of Eq. 10, [..., L, L]."""
    return padded(alpha[..., :, None] * gaussian(var, height, width, cap), prefix)


def padded(dense: Tensor, prefix: int) -> Tensor:
    """Zero in the rows and columns of prefix tokens."""
    size = prefix + dense.shape[-1]
    full = dense.new_zeros(*dense.shape[:-2], size, size)
    full[..., prefix:, prefix:] = dense
    return full


def attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Z of Eq. 4."""
    logits = torch.einsum("bhik,bhjk->bhij", q, k) / math.sqrt(q.shape[-1]) + bias
    weights = torch.exp(logits - logits.max(-1, keepdim=True).values)
    return torch.einsum("bhij,bhjk->bhik", weights / weights.sum(-1, keepdim=True), v)


def refinement(x: Tensor, heads: int) -> Tensor:
    """x⁺ of Eq. 11, [B, L, D]."""
    parts = []
    for part in x.chunk(heads, dim=-1):
        parts.append(torch.softmax(part @ part.transpose(1, 2) / math.sqrt(part.shape[-1]), -1) @ part)
    return torch.cat(parts, -1)
