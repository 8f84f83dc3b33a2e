"""PRR: a parameter-free attention before the head that sends gradient to every patch (Eq. 11)."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from locatvit.errors import LocAtError


class CurrentMask:
    """The mask of the blocks' attention in the present forward pass, which PRR must heed like them.

    The host hands its mask to its blocks and not to its head: a hook on the last block, installed by the backbone's
    adapter, calls ``record``.
    """

    def __init__(self) -> None:
        self._mask: Tensor | None = None

    def record(self, attn_mask: Tensor | None) -> None:
        """Remember the mask of this pass; None where there is none."""
        self._mask = attn_mask

    def of(self, queries: Float[Tensor, "B H Q K"]) -> Tensor | None:
        """The rows of the mask that belong to the first tokens, as torch's attention takes it."""
        mask = self._mask
        if mask is None:
            return None
        mask = mask if mask.shape[-2] == 1 else mask[..., : queries.shape[2], :]
        return mask if mask.dtype == torch.bool else mask.to(queries.dtype)

    def __getstate__(self) -> dict[str, Any]:
        return {"_mask": None}


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

        self.mask = CurrentMask()

    def forward(self, x: Float[Tensor, "B L D"], num_queries: int | None = None) -> Float[Tensor, "B Q D"]:
        """Refined tokens.

        Args:
            x: normalised tokens, prefix included.
            num_queries: refine the first so many tokens only. A classifier that reads [CLS] needs 1, which costs
                O(L D) and not O(L² D), and gives the same output and gradients. None for all.
        """
        heads = x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # [B, H, L, K]
        queries = heads[:, :, :num_queries]
        refined = F.scaled_dot_product_attention(queries, heads, heads, attn_mask=self.mask.of(queries))
        refined = refined.transpose(1, 2).flatten(2)
        if self.gate is not None:
            x = x[:, :num_queries]
            return x + self.gate * (refined - x)
        return refined
