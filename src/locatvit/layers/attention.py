"""Self-attention with GAug (Eq. 4), around the projections of the host's attention."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from locatvit.errors import LocAtError
from locatvit.layers.current_grid import CurrentGrid
from locatvit.layers.gaug import GAug
from locatvit.ops.attention import gaug_attention, reference

# What is taken over from a host with one qkv projection; the last three are not in every host.
_ADOPTED = ("qkv", "q_norm", "k_norm", "attn_drop", "proj", "proj_drop", "norm", "gate")


class LocalityAttention(nn.Module):
    """Takes the place of a host's attention: its modules under their names, and ``gaug``.

    Args:
        host: an attention with ``qkv``, ``q_norm``, ``k_norm``, ``attn_drop``, ``proj``, ``proj_drop`` and perhaps
            ``norm`` (of the output) and ``gate``, and with ``num_heads`` and ``head_dim``. Its modules are shared.
        gaug: the bias.
        grid: tells the grid of the present tokens.
        num_prefix_tokens: tokens before the patches.
        backend: of the op, see ``locatvit.ops.gaug_attention``.
    """

    # the host's modules
    qkv: nn.Module
    q_norm: nn.Module
    k_norm: nn.Module
    attn_drop: nn.Dropout
    norm: nn.Module
    gate: nn.Module | None
    proj: nn.Module
    proj_drop: nn.Module

    def __init__(
        self, host: nn.Module, gaug: GAug, grid: CurrentGrid, *, num_prefix_tokens: int, backend: str = "auto"
    ) -> None:
        super().__init__()
        self.num_heads: int = host.num_heads  # type: ignore[assignment]
        self.head_dim: int = host.head_dim  # type: ignore[assignment]
        self.num_prefix_tokens = num_prefix_tokens
        self.backend = backend
        self.grid = grid
        for name in _ADOPTED:
            setattr(self, name, getattr(host, name, nn.Identity() if name == "norm" else None))
        self.gaug = gaug
        self.train(host.training)

    def forward(
        self,
        x: Float[Tensor, "B L D"],
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Float[Tensor, "B L D"]:
        """Attention of every token to all.

        Args:
            x: prefix tokens, then patches row by row.
            attn_mask: True where attention is allowed, or a float term to add; broadcastable to [B, H, L, L].
            is_causal: not meant for images; refused.
        """
        if is_causal:
            raise LocAtError("is_causal is True; the locality bias has no causal form: pass an attn_mask instead")
        q, k, v = projections(self, x)
        row_factor, column_factor = self._factors(q)
        out = gaug_attention(
            q, k, v, row_factor, column_factor,
            num_prefix_tokens=self.num_prefix_tokens,
            attn_bias=additive(attn_mask, q),
            dropout_p=self.attn_drop.p if self.training else 0.0,
            backend=self.backend,
        )  # fmt: skip
        out = self.norm(out.transpose(1, 2).flatten(2))
        if self.gate is not None:
            out = out * self.gate(x).sigmoid()
        return self.proj_drop(self.proj(out))

    def attention_weights(self, x: Float[Tensor, "B L D"]) -> Float[Tensor, "B H L L"]:
        """The exact weights that ``forward`` uses for x, for looking at; dense."""
        q, k, _ = projections(self, x)
        return reference.attention_weights(q, k, *self._factors(q), num_prefix_tokens=self.num_prefix_tokens)

    def _factors(self, q: Tensor) -> tuple[Tensor, Tensor]:
        q_patches = q[:, :, self.num_prefix_tokens :]
        return self.gaug(q_patches, self.grid.of(q_patches.shape[2], self.num_prefix_tokens))


def projections(attention: Any, x: Float[Tensor, "B L D"]) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v, each [B, H, L, K], of an attention with one qkv projection, ours or a host's; q and k normed."""
    qkv = attention.qkv(x).unflatten(-1, (3, attention.num_heads, attention.head_dim))
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    return attention.q_norm(q), attention.k_norm(k), v


def additive(attn_mask: Tensor | None, q: Tensor) -> Tensor | None:
    """A mask as a term to add, with four dimensions: -inf where a boolean mask forbids."""
    if attn_mask is None:
        return None
    if attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=q.dtype).masked_fill(~attn_mask, float("-inf"))
    return attn_mask.to(q.dtype)[(None,) * (4 - attn_mask.ndim)]
