"""PRR: a parameter-free attention before the head that sends gradient to every patch (Eq. 11)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from locatvit.errors import LocAtError


class PatchRefinement(nn.Module):
    """softmax(x_i x_iᵀ / sqrt(K)) x_i for each head's slice x_i of the tokens (Eq. 11).

    Args:
        embed_dim: D.
        num_heads: H, the host's; D / H is the K of the equation.
        start: ``"paper"`` has no parameters. ``"identity"`` adds one number, ``gate``, that starts at 0: the result
            is x + gate * (refined - x), so that a pretrained model gives at first what it gave before.
    """

    def __init__(self, embed_dim: int, num_heads: int, start: str = "paper") -> None:
        super().__init__()
        if embed_dim % num_heads:
            raise LocAtError(f"embed_dim {embed_dim} is no multiple of num_heads {num_heads}, which PRR splits it into")
        self.num_heads = num_heads
        self.gate = nn.Parameter(torch.zeros(())) if start == "identity" else None

    def forward(self, x: Float[Tensor, "B L D"], num_queries: int | None = None) -> Float[Tensor, "B Q D"]:
        """Refined tokens.

        Args:
            x: normalised tokens, prefix included.
            num_queries: refine the first so many tokens only. A classifier that reads [CLS] needs 1, which costs
                O(L D) and not O(L² D), and gives the same output and gradients. None for all.
        """
        heads = x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # [B, H, L, K]
        queries = heads[:, :, :num_queries]
        refined = F.scaled_dot_product_attention(queries, heads, heads).transpose(1, 2).flatten(2)
        if self.gate is not None:
            x = x[:, :num_queries]
            return x + self.gate * (refined - x)
        return refined
