"""timm's ``Eva``: ViTs with rotary positions, such as RoPE-mixed ViT."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from timm.layers import AttentionRope, apply_rot_embed_cat
from timm.models.eva import Eva
from torch import Tensor, nn

from locatvit.backbones import timm_vit
from locatvit.backbones.family import Family
from locatvit.config import LocAtConfig
from locatvit.layers import LocalityAttention
from locatvit.layers.attention import Terms, additive, projections, refuse_causal


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


def matches(model: nn.Module) -> bool:
    return isinstance(model, Eva)


def add(model: Any, config: LocAtConfig) -> None:
    """See ``add_locat``."""
    timm_vit.check(model, config, AttentionRope)
    timm_vit.prepare(model, config)
    timm_vit.add_gaug(model, config, RotaryLocalityAttention)
    if config.prr:
        timm_vit.add_refined_pool(model, config, model.global_pool)


FAMILY = Family("RoPEViT", "timm's Eva with fused projections (RoPE ViT)", matches, add)
