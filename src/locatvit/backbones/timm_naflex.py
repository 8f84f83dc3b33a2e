"""timm's ``NaFlexVit`` on batches of images: all of one size, and so one grid."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from timm.layers import Attention, AttentionRope
from timm.models.eva import EvaAttention
from timm.models.naflexvit import NaFlexEmbeds, NaFlexVit
from torch import Tensor, nn

from locatvit.backbones import timm_rope, timm_vit
from locatvit.backbones.family import Family
from locatvit.config import LocAtConfig
from locatvit.errors import LocAtError
from locatvit.grid import GridSize
from locatvit.layers import CurrentGrid, LocalityAttention


class RecordGrid:
    """Forward hook on the embedding: records the grid that it tells, which it has of images alone."""

    def __init__(self, grid: CurrentGrid) -> None:
        self.grid = grid

    def __call__(self, embeds: NaFlexEmbeds, args: Any, out: tuple[Tensor, GridSize | None]) -> None:
        if out[1] is None:
            raise LocAtError(
                "patch_coord is given, so each image of the batch may have another grid; GAug needs one for all: "
                "give the model images [B, 3, height, width], or use LocAtConfig(gaug=False, prr=False)"
            )
        self.grid.record((out[1][0], out[1][1]))


class RefinedFlexPool(timm_vit.RefinedPool):
    """As its parent; takes the mask of padding patches that timm hands on, which images have none of."""

    def forward(self, x: Float[Tensor, "B L D"], attn_mask: None = None) -> Tensor:
        """See ``RefinedPool.forward``."""
        return super().forward(x)


def matches(model: nn.Module) -> bool:
    return isinstance(model, NaFlexVit)


def add(model: Any, config: LocAtConfig) -> None:
    """See ``add_locat``."""
    timm_vit.check_blocks(model, config, Attention, AttentionRope, EvaAttention)
    _check_embeds(model.embeds, config)
    if not config.position_embedding:
        model.embeds.pos_embed = model.embeds.pos_embed_y = model.embeds.pos_embed_x = None
        model.embeds.pos_embed_type = "none"
    if config.pooling == "avg":
        model.attn_pool, model.global_pool = None, "avg"
    if config.gaug or config.prr:
        grid = CurrentGrid()
        if config.gaug:
            grid = timm_vit.replace_attentions(model, config, _replacement, model.embeds.pos_embed_grid_size)
        model.embeds.register_forward_hook(RecordGrid(grid))
    if config.prr and model.attn_pool is None:
        timm_vit.add_refined_pool(model, config, model.global_pool, RefinedFlexPool)
    else:
        timm_vit.add_refinement(model, config)


def _check_embeds(embeds: Any, config: LocAtConfig) -> None:
    if config.gaug and embeds.pos_embed_grid_size is None:
        raise LocAtError(
            "pos_embed_grid_size is None, so this NaFlexVit does not tell which grid it is made for, which GAug's "
            "widths start from: create the model with pos_embed_grid_size=(rows, columns) or img_size=..."
        )
    if not config.position_embedding and embeds.pos_embed_type == "none":
        raise LocAtError(
            "position_embedding is False but this model has no absolute position embedding to remove: leave "
            "position_embedding at True"
        )


def _replacement(host: nn.Module, *args: Any, **kwargs: Any) -> LocalityAttention:
    kind = LocalityAttention if isinstance(host, Attention) else timm_rope.replacement
    return kind(host, *args, **kwargs)


FAMILY = Family("NaFlexViT", "timm's NaFlexVit", matches, add)
