"""timm's ``Beit`` and ``VisionTransformerRelPos``: ViTs with relative positions as biases of the attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jaxtyping import Float
from timm.models.beit import Attention, Beit
from timm.models.vision_transformer_relpos import RelPosAttention, VisionTransformerRelPos
from torch import Tensor, nn

from locatvit.backbones import timm_vit
from locatvit.backbones.family import Family
from locatvit.backbones.timm_projections import projections
from locatvit.config import LocAtConfig
from locatvit.layers import LocalityAttention
from locatvit.layers.attention import Terms


class BeitLocalityAttention(LocalityAttention, Attention):
    """In the place of BEiT's attention, whose table and whose change of window it keeps."""

    _get_rel_pos_bias: Callable[[], Tensor]

    def terms(  # type: ignore[override]  # the host's arguments
        self, x: Float[Tensor, "B L D"], shared_rel_pos_bias: Float[Tensor, "H L L"] | None = None
    ) -> Terms:
        """See ``LocalityAttention.terms``; ``shared_rel_pos_bias`` is of the table that all blocks have in common."""
        own = None if self.relative_position_bias_table is None else self._get_rel_pos_bias()
        return _terms(self, x, own, shared_rel_pos_bias)


class RelPosLocalityAttention(LocalityAttention):
    """In the place of timm's ``RelPosAttention``."""

    rel_pos: Any

    def terms(  # type: ignore[override]  # the host's arguments
        self, x: Float[Tensor, "B L D"], shared_rel_pos: Float[Tensor, "1 H L L"] | None = None
    ) -> Terms:
        """See ``LocalityAttention.terms``; ``shared_rel_pos`` is the bias that all blocks have in common."""
        return _terms(self, x, None if self.rel_pos is None else self.rel_pos.get_bias(), shared_rel_pos)


def _terms(attention: LocalityAttention, x: Tensor, *biases: Tensor | None) -> Terms:
    """Of an attention to whose logits these are added."""
    q, k, v = projections(attention, x)
    found = [bias.to(q.dtype)[(None,) * (4 - bias.ndim)] for bias in biases if bias is not None]
    return Terms(q, k, v, attention.locality_bias(q, k, x, None), sum(found[1:], found[0]) if found else None)


class PoolFirst:
    """Forward pre-hook on the norm behind the pooling, of a model that pools without a module: refines and pools.

    The model's own ``global_pool`` is then empty. Tokens that are pooled already, because another ``global_pool`` has
    been set since, pass.
    """

    def __init__(self, pool: timm_vit.RefinedPool) -> None:
        self.pool = pool

    def __call__(self, norm: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (self.pool(args[0]) if args[0].ndim == 3 else args[0],)


def matches(model: nn.Module) -> bool:
    return isinstance(model, Beit | VisionTransformerRelPos)


def add(model: Any, config: LocAtConfig) -> None:
    """See ``add_locat``."""
    timm_vit.check(model, config, Attention, RelPosAttention)
    if not config.position_embedding:
        model.pos_embed = None
    if config.pooling == "avg":
        model.global_pool = "avg"
    timm_vit.add_gaug(model, config, _replacement)
    if config.prr:
        refinement = timm_vit.make_refinement(model, config)
        model.attn_pool = timm_vit.RefinedPool(refinement, model.global_pool, model.num_prefix_tokens, False)
        model.fc_norm.register_forward_pre_hook(PoolFirst(model.attn_pool))
        model.global_pool = ""


def _replacement(host: nn.Module, *args: Any, **kwargs: Any) -> LocalityAttention:
    kind = BeitLocalityAttention if isinstance(host, Attention) else RelPosLocalityAttention
    return kind(host, *args, **kwargs)


FAMILY = Family("BEiT", "timm's Beit and VisionTransformerRelPos", matches, add)
