"""timm's ``SwinTransformer``: attention in windows, which are GAug's grid."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jaxtyping import Float
from timm.models.swin_transformer import SwinTransformer, WindowAttention
from torch import Tensor, nn

from locatvit.backbones.family import Family, check_layers, make_gaug
from locatvit.config import LocAtConfig
from locatvit.errors import LocAtError
from locatvit.grid import GridSize
from locatvit.layers import LocalityAttention, PatchRefinement
from locatvit.layers.attention import Terms, projections


class WindowLocalityAttention(LocalityAttention, WindowAttention):
    """In the place of timm's ``WindowAttention``, whose table and whose change of window it keeps."""

    window_size: GridSize
    _get_rel_pos_bias: Callable[[], Tensor]

    def terms(  # type: ignore[override]  # the host's arguments
        self, x: Float[Tensor, "windows N D"], mask: Float[Tensor, "windows_of_an_image N N"] | None = None
    ) -> Terms:
        """See ``LocalityAttention.terms``; ``mask`` keeps apart what the shift has brought into one window."""
        q, k, v = projections(self, x)
        attn_bias = self._get_rel_pos_bias().to(q.dtype)
        if mask is not None:
            attn_bias = attn_bias + mask[:, None].to(q.dtype)
        return Terms(q, k, v, self.locality_bias(q, k, x, None), attn_bias)

    def grid_of(self, num_patches: int) -> GridSize:
        """The window, as it is now: ``set_input_size`` changes it."""
        return self.window_size


class RefinedMapPool(nn.Module):
    """PRR on the last map, then the pooling that the host had: it takes the place of ``head.global_pool``.

    Args:
        refinement: PRR.
        pool: the host's pooling.
    """

    def __init__(self, refinement: PatchRefinement, pool: Any) -> None:
        super().__init__()
        self.refinement = refinement
        self.pool = pool

    def forward(self, x: Float[Tensor, "B h w D"]) -> Tensor:
        """The pooled refined map, [B, D]."""
        return self.pool(self.refinement(x.flatten(1, 2)).unflatten(1, x.shape[1:3]))

    @property
    def pool_type(self) -> str:
        """The host's; timm's head asks for it when it is reset."""
        return self.pool.pool_type

    def feat_mult(self) -> int:
        """Width of the result over D; timm's head asks for it."""
        return self.pool.feat_mult()


def matches(model: nn.Module) -> bool:
    return isinstance(model, SwinTransformer)


def add(model: SwinTransformer, config: LocAtConfig) -> None:
    """See ``add_locat``."""
    blocks = [block for stage in model.layers for block in stage.blocks]
    _check(model, config, len(blocks))
    refinement = PatchRefinement(model.num_features, blocks[-1].attn.num_heads, config.start) if config.prr else None
    for index, block in enumerate(blocks):
        if config.gaug and (config.layers is None or index in config.layers):
            gaug = make_gaug(block.attn, block.attn.window_size, config)
            block.attn = WindowLocalityAttention(block.attn, gaug, None, num_prefix_tokens=0, backend=config.backend)
    if refinement is not None:
        weight = model.patch_embed.proj.weight
        refinement.to(device=weight.device, dtype=weight.dtype)
        model.head.global_pool = RefinedMapPool(refinement, model.head.global_pool)


def _check(model: SwinTransformer, config: LocAtConfig, depth: int) -> None:
    check_layers(config, depth)
    if not config.position_embedding:
        raise LocAtError(
            "position_embedding is False but Swin has no absolute position embedding to remove, its positions are "
            "biases inside the windows: leave position_embedding at True"
        )
    if config.pooling == "avg" and model.head.global_pool.pool_type != "avg":
        raise LocAtError(
            f"pooling is 'avg' but this Swin was created with global_pool={model.head.global_pool.pool_type!r}: "
            "create it with global_pool='avg'"
        )


FAMILY = Family("Swin", "timm's SwinTransformer", matches, add)
