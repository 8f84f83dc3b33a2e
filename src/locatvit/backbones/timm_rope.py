"""timm's ``Eva``: ViTs with rotary positions (RoPE ViT, DINOv3, PE) and EVA's, with or without them."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from timm.layers import AttentionRope, apply_rot_embed_cat
from timm.models.eva import Eva, EvaAttention
from torch import Tensor, nn

from locatvit.backbones import timm_vit
from locatvit.backbones.family import Family
from locatvit.backbones.timm_projections import projections
from locatvit.config import LocAtConfig
from locatvit.layers import LocalityAttention
from locatvit.layers.attention import Terms, additive, refuse_causal


class RotaryLocalityAttention(LocalityAttention):
    """In the place of timm's ``AttentionRope``: the bias comes from the query before it is rotated."""

    rotate_half: bool

    def terms(  # type: ignore[override]  # the host's arguments
        self,
        x: Float[Tensor, "B L D"],
        rope: Tensor | None = None,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Terms:
        """See ``LocalityAttention.terms``; ``rope`` is the sines and cosines of the patches, [..., N, 2 K]."""
        refuse_causal(is_causal)
        q, k, v = projections(self, x)
        attn_bias = additive(attn_mask, q)
        bias = self.locality_bias(q, k, x, attn_bias)
        if rope is not None:
            q, k = (self._rotated(tokens, rope).type_as(v) for tokens in (q, k))
        return Terms(q, k, v, bias, attn_bias)

    def _rotated(self, tokens: Float[Tensor, "B H L K"], rope: Tensor) -> Float[Tensor, "B H L K"]:
        prefix, patches = tokens.tensor_split((self.num_prefix_tokens,), dim=2)
        return torch.cat((prefix, apply_rot_embed_cat(patches, rope, half=self.rotate_half)), dim=2)


class EvaLocalityAttention(RotaryLocalityAttention, EvaAttention):
    """In the place of timm's ``EvaAttention``, which fills its bias of the keys anew where no checkpoint has it."""


def replacement(host: nn.Module, *args: Any, **kwargs: Any) -> LocalityAttention:
    """The attention with LocAt for this one of ``Eva``."""
    kind = EvaLocalityAttention if isinstance(host, EvaAttention) else RotaryLocalityAttention
    return kind(host, *args, **kwargs)


def matches(model: nn.Module) -> bool:
    return isinstance(model, Eva)


def add(model: Any, config: LocAtConfig) -> None:
    """See ``add_locat``."""
    timm_vit.check(model, config, AttentionRope, EvaAttention)
    timm_vit.prepare(model, config)
    timm_vit.add_gaug(model, config, replacement)
    timm_vit.add_refinement(model, config)


FAMILY = Family("RoPEViT", "timm's Eva (RoPE ViT, EVA-02, DINOv3, PE)", matches, add)
