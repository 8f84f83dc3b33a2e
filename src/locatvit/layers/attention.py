"""Self-attention with GAug (Eq. 4), around the projections of the host's attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from locatvit.errors import LocAtError
from locatvit.grid import GridSize
from locatvit.layers.current_grid import CurrentGrid
from locatvit.layers.gaug import GAug
from locatvit.ops import Gaussian, PredictedGaussian, gaussian_attention
from locatvit.ops.attention import reference
from locatvit.ops.attention.reference import repeated


@dataclass(frozen=True)
class Terms:
    """What goes into one attention: [B, H, L, K] each of q, k, v, and what is added to the logits.

    Attributes:
        bias: of the patches: a Gaussian, or where the kernel does not separate, [B, H, N, N].
        attn_bias: the host's own, or None.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    bias: Gaussian | PredictedGaussian | Tensor
    attn_bias: Tensor | None


class LocalityAttention(nn.Module):
    """Takes the place of a host's attention, with all that the host has under its names, and ``gaug``.

    This class serves hosts with one ``qkv`` projection; a family with more in its attention overrides ``terms``.

    Args:
        host: an attention with ``num_heads``, ``qkv``, ``attn_drop``, ``proj``, ``proj_drop`` and perhaps ``q_norm``
            and ``k_norm``, ``norm`` (of the output) and ``gate``. Its modules and weights are shared.
        gaug: the bias.
        grid: tells the grid of the present tokens.
        num_prefix_tokens: tokens before the patches.
        backend: of the op, see ``locatvit.ops.gaussian_attention``.
    """

    # the host's
    num_heads: int
    attn_drop: nn.Dropout
    proj: nn.Module
    proj_drop: nn.Module

    def __init__(
        self, host: nn.Module, gaug: GAug, grid: CurrentGrid | None, *, num_prefix_tokens: int, backend: str = "auto"
    ) -> None:
        nn.Module.__init__(self)  # alone: a subclass that is also the host's class must not build it anew
        take_over(self, host)
        self.num_prefix_tokens = num_prefix_tokens
        self.backend = backend
        self.grid = grid
        self.gaug = gaug

    def forward(self, x: Float[Tensor, "B L D"], *args: Any, **kwargs: Any) -> Float[Tensor, "B L D"]:
        """Attention of every token to all; the arguments are the host's, see ``terms``."""
        out = self._attend(self.terms(x, *args, **kwargs)).transpose(1, 2).flatten(2)
        # not every host has these two
        norm, gate = getattr(self, "norm", None), getattr(self, "gate", None)
        out = out if norm is None else norm(out)
        out = out if gate is None else out * gate(x).sigmoid()
        return self.proj_drop(self.proj(out))

    def terms(self, x: Float[Tensor, "B L D"], attn_mask: Tensor | None = None, is_causal: bool = False) -> Terms:
        """What the attention is made of.

        Args:
            x: prefix tokens, then patches row by row.
            attn_mask: True where attention is allowed, or a float term to add; broadcastable to [B, H, L, L].
            is_causal: not meant for images; refused.
        """
        refuse_causal(is_causal)
        q, k, v = projections(self, x)
        attn_bias = additive(attn_mask, q)
        return Terms(q, k, v, self.locality_bias(q, k, x, attn_bias), attn_bias)

    def locality_bias(
        self, q: Tensor, k: Tensor, x: Tensor, attn_bias: Tensor | None
    ) -> Gaussian | PredictedGaussian | Tensor:
        """GAug's bias of the patches, from normed and not yet rotated queries and keys, and what excludes keys."""
        first = self.num_prefix_tokens
        allowed = None
        if attn_bias is not None and self.gaug.config.alpha == "auto":  # what is excluded must not count in its mean
            allowed = attn_bias[..., first:] > float("-inf")
            allowed = allowed[..., first:, :] if allowed.shape[-2] > 1 else allowed
        grid_size = self.grid_of(q.shape[2] - first)
        return self.gaug(q, grid_size, num_prefix_tokens=first, k=k, x=x, allowed=allowed)

    def grid_of(self, num_patches: int) -> GridSize:
        """The present grid, of ``num_patches`` patches."""
        assert self.grid is not None
        return self.grid.of(num_patches, self.num_prefix_tokens)

    def attention_weights(self, x: Float[Tensor, "B L D"], *args: Any, **kwargs: Any) -> Float[Tensor, "B H L L"]:
        """The exact weights that ``forward`` uses for its arguments, for looking at; dense."""
        terms = self.terms(x, *args, **kwargs)
        gaussian, attn_bias = self._split(terms)
        return reference.attention_weights(
            terms.q, terms.k, *(gaussian.factors() if gaussian else (None, None)),
            num_prefix_tokens=self.num_prefix_tokens, attn_bias=attn_bias,
        )  # fmt: skip

    def _attend(self, terms: Terms) -> Float[Tensor, "B H L K"]:
        gaussian, attn_bias = self._split(terms)
        dropout_p = self.attn_drop.p if self.training else 0.0
        if gaussian is None:
            assert attn_bias is not None
            return fixed_layout(
                F.scaled_dot_product_attention(
                    terms.q, terms.k, terms.v, attn_mask=attn_bias.to(terms.q.dtype), dropout_p=dropout_p
                )
            )
        return gaussian_attention(
            terms.q, terms.k, terms.v, gaussian,
            num_prefix_tokens=self.num_prefix_tokens, attn_bias=attn_bias,
            dropout_p=dropout_p, backend=self.backend,
        )  # fmt: skip

    def _split(self, terms: Terms) -> tuple[Gaussian | PredictedGaussian | None, Tensor | None]:
        """The Gaussian, if there is one, and the sum of what is dense."""
        if not isinstance(terms.bias, Tensor):
            return terms.bias, terms.attn_bias
        dense = F.pad(terms.bias, (self.num_prefix_tokens, 0, self.num_prefix_tokens, 0))
        return None, dense if terms.attn_bias is None else dense + repeated(terms.attn_bias, dense.shape[0])


def take_over(module: nn.Module, host: nn.Module) -> None:
    """Give ``module`` everything that the host has, in its order: weights, modules, buffers, settings, hooks."""
    for name, value in vars(host).items():
        # what we add later must not appear in the host
        vars(module)[name] = value.copy() if name in ("_parameters", "_buffers", "_modules") else value


def fixed_layout(out: Float[Tensor, "B H L K"]) -> Float[Tensor, "B H L K"]:
    """The output of torch's attention; in an export with its heads put together anew.

    A program of ONNX computes it in another layout in memory than torch, which what follows must not rely on.
    """
    return torch.stack(out.unbind(1), dim=2).transpose(1, 2) if torch.compiler.is_exporting() else out


def refuse_causal(is_causal: bool) -> None:
    """Raise ``LocAtError`` where a causal mask is asked for."""
    if is_causal:
        raise LocAtError("is_causal is True; the locality bias has no causal form: pass an attn_mask instead")


def projections(attention: Any, x: Float[Tensor, "B L D"]) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v, each [B, H, L, K], of an attention with one qkv projection, ours or a host's; q and k normed."""
    qkv = attention.qkv(x).unflatten(-1, (3, attention.num_heads, -1))
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    if hasattr(attention, "q_norm"):
        q, k = attention.q_norm(q), attention.k_norm(k)
    return q, k, v


def additive(attn_mask: Tensor | None, q: Tensor) -> Tensor | None:
    """A mask as a term to add, with four dimensions: -inf where a boolean mask forbids."""
    if attn_mask is None:
        return None
    if attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=q.dtype).masked_fill(~attn_mask, float("-inf"))
    return attn_mask.to(q.dtype)[(None,) * (4 - attn_mask.ndim)]
