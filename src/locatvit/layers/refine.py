"""PRR: a parameter-free attention before the head that sends gradient to every patch (Eq. 11)."""

from __future__ import annotations

from contextvars import ContextVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from locatvit.errors import LocAtError

# One thread's forward pass does not see another's mask.
_of_this_context: ContextVar[tuple[object, Tensor | None]] = ContextVar("locatvit_mask", default=(None, None))


class CurrentMask:
    """The mask of the blocks' attention in the present forward pass, which PRR must heed like them.

    The host hands its mask to its blocks and not to its head: a hook on the last block, installed by the backbone's
    adapter, calls ``record``.
    """

    def __init__(self) -> None:
        self._key = object()
        self._traced: Tensor | None = None

    def record(self, attn_mask: Tensor | None) -> None:
        """Remember the mask of this pass; None where there is none."""
        if torch.compiler.is_compiling():
            self._traced = attn_mask
        else:
            _of_this_context.set((self._key, attn_mask))

    def of(self, queries: Float[Tensor, "B H Q K"], num_keys: int) -> Tensor | None:
        """The rows of the mask that belong to the first tokens, as torch's attention takes it."""
        mask = self._traced
        if not torch.compiler.is_compiling():
            key, mask = _of_this_context.get()
            if key is not self._key:
                return None
        if mask is None or mask.shape[-1] not in (1, num_keys):  # that of other tokens
            return None
        mask = mask if mask.shape[-2] == 1 else mask[..., : queries.shape[2], :]
        return mask if mask.dtype == torch.bool else mask.to(queries.dtype)

    def __reduce__(self) -> tuple[type[CurrentMask], tuple[()]]:
        return CurrentMask, ()  # a copy has seen no mask


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
        refined = F.scaled_dot_product_attention(queries, heads, heads, attn_mask=self.mask.of(queries, x.shape[1]))
        refined = refined.transpose(1, 2).flatten(2)
        if self.gate is not None:
            x = x[:, :num_queries]
            return x + self.gate * (refined - x)
        return refined
