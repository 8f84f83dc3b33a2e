"""timm's ``VisionTransformer``: plain, with registers, without positions, DeiT and distilled DeiT."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from timm.layers import Attention, PatchEmbed
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer, global_pool_nlc
from torch import Tensor, nn

from locatvit.backbones.family import Family, check_layers, make_gaug
from locatvit.config import LocAtConfig
from locatvit.errors import LocAtError
from locatvit.layers import CurrentGrid, LocalityAttention, PatchRefinement
from locatvit.layers.refine import CurrentMask


class RefinedPool(nn.Module):
    """PRR, then the pooling that the host had: timm's place for it is ``attn_pool``.

    Args:
        refinement: PRR.
        pool_type: the host's ``global_pool``.
        num_prefix_tokens: of the host.
        include_prefix: whether averages include prefix tokens, as in the host.
    """

    def __init__(
        self, refinement: PatchRefinement, pool_type: str, num_prefix_tokens: int, include_prefix: bool
    ) -> None:
        super().__init__()
        self.refinement = refinement
        self.pool_type = pool_type
        self.num_prefix_tokens = num_prefix_tokens
        self.include_prefix = include_prefix

    def forward(self, x: Float[Tensor, "B L D"]) -> Tensor:
        """The pooled refined tokens, [B, D]; all of them where the host does not pool."""
        if self.pool_type == "token":
            return self.refinement(x, num_queries=1)[:, 0]
        return global_pool_nlc(
            self.refinement(x),
            pool_type=self.pool_type,
            num_prefix_tokens=self.num_prefix_tokens,
            reduce_include_prefix=self.include_prefix,
        )

    def extra_repr(self) -> str:
        return f"pool_type={self.pool_type!r}"


class RefinePrefix:
    """Forward hook on a final norm: refines the prefix tokens, leaves the patches.

    Distilled DeiT reads [CLS] and the distillation token right behind its norm and has no module in between.
    """

    def __init__(self, refinement: PatchRefinement, num_prefix_tokens: int) -> None:
        self.refinement = refinement
        self.num_prefix_tokens = num_prefix_tokens

    def __call__(self, norm: nn.Module, args: Any, x: Float[Tensor, "B L D"]) -> Float[Tensor, "B L D"]:
        refined = self.refinement(x, num_queries=self.num_prefix_tokens)
        return torch.cat((refined, x[:, self.num_prefix_tokens :]), dim=1)


class RecordGrid:
    """Forward hook on the patch embedding: records the grid of the images that pass."""

    def __init__(self, grid: CurrentGrid) -> None:
        self.grid = grid

    def __call__(self, patch_embed: PatchEmbed, args: tuple[Tensor, ...], tokens: Tensor) -> None:
        self.grid.record(patch_embed.dynamic_feat_size(args[0].shape[-2:]))


class EnterBlock:
    """Forward pre-hook on a block: tells which tokens enter it."""

    def __init__(self, grid: CurrentGrid) -> None:
        self.grid = grid

    def __call__(self, block: nn.Module, args: tuple[Tensor, ...]) -> None:
        self.grid.enter(args[0])


class RecordMask:
    """Forward pre-hook on the last block: records the mask that it gets."""

    def __init__(self, mask: CurrentMask) -> None:
        self.mask = mask

    def __call__(self, block: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        self.mask.record(kwargs.get("attn_mask"))


def matches(model: nn.Module) -> bool:
    return isinstance(model, VisionTransformer)


def add(model: VisionTransformer, config: LocAtConfig) -> None:
    """See ``add_locat``."""
    check(model, config, Attention)
    if config.pooling == "avg" and isinstance(model, VisionTransformerDistilled):
        raise LocAtError(
            "pooling is 'avg', but a distilled DeiT reads its two prefix tokens and pools nothing: leave it at 'host'"
        )
    prepare(model, config)
    add_gaug(model, config, LocalityAttention)
    if config.prr:
        _add_refinement(model, config)


def check(model: Any, config: LocAtConfig, attention: type[nn.Module]) -> None:
    """Everything that can be wrong with a ViT, before anything is changed; its blocks have ``attention``."""
    check_layers(config, len(model.blocks))
    for index, block in enumerate(model.blocks):
        found = getattr(block, "attn", None)
        if type(found) is not attention or getattr(found, "qkv", None) is None:
            raise LocAtError(
                f"block {index} has {type(found).__name__} where LocAt needs timm's {attention.__name__} with one "
                "qkv projection; choose a model built of plain blocks"
            )
    if not config.position_embedding and model.pos_embed is None:
        raise LocAtError(
            "position_embedding is False but this model has no absolute position embedding to remove: leave "
            "position_embedding at True"
        )
    if config.gaug and not isinstance(model.patch_drop, nn.Identity | None):
        raise LocAtError(
            "patch_drop_rate is above 0; GAug needs every patch at its place on the grid: "
            "create the model with patch_drop_rate=0"
        )
    if config.prr and model.global_pool == "map":
        raise LocAtError(
            "global_pool is 'map', an attention pool with weights of its own; PRR takes its place before the "
            "head: use LocAtConfig(prr=False), or create the model with global_pool='token' or 'avg'"
        )


def prepare(model: Any, config: LocAtConfig) -> None:
    """The changes to a ViT that are not LocAt's own: no absolute positions, average pooling."""
    if not config.position_embedding:
        model.pos_embed = None
    if config.pooling == "avg":
        model.attn_pool, model.global_pool = None, "avg"


def add_gaug(model: Any, config: LocAtConfig, replacement: type[LocalityAttention]) -> None:
    """A ``replacement`` for the attention of every chosen block of a ViT."""
    if not config.gaug:
        return
    grid = CurrentGrid()
    for index, block in enumerate(model.blocks):
        if config.layers is None or index in config.layers:
            block.attn = replacement(
                block.attn,
                make_gaug(block.attn, model.patch_embed.grid_size, config),
                grid,
                num_prefix_tokens=model.num_prefix_tokens,
                backend=config.backend,
            )
            block.register_forward_pre_hook(EnterBlock(grid))
    model.patch_embed.register_forward_hook(RecordGrid(grid))


def _add_refinement(model: VisionTransformer, config: LocAtConfig) -> None:
    if isinstance(model, VisionTransformerDistilled):
        model.prr = make_refinement(model, config)
        model.norm.register_forward_hook(RefinePrefix(model.prr, model.num_prefix_tokens))
    elif model.global_pool == "prr":  # timm's own computes every row; ours takes over in full
        add_refined_pool(model, replace(config, start="paper"), model.attn_pool.pool)
    else:
        add_refined_pool(model, config, model.global_pool)


def make_refinement(model: Any, config: LocAtConfig) -> PatchRefinement:
    """PRR of a ViT, where its weights are."""
    weight = model.patch_embed.proj.weight
    refinement = PatchRefinement(model.embed_dim, model.blocks[0].attn.num_heads, config.start)
    model.blocks[-1].register_forward_pre_hook(RecordMask(refinement.mask), with_kwargs=True)
    return refinement.to(device=weight.device, dtype=weight.dtype)


def add_refined_pool(model: Any, config: LocAtConfig, pool_type: str) -> None:
    """PRR before the pooling of a ViT."""
    include_prefix = getattr(model, "pool_include_prefix", False)
    model.attn_pool = RefinedPool(make_refinement(model, config), pool_type, model.num_prefix_tokens, include_prefix)
    # timm then hands all tokens to attn_pool, and refuses to swap this pooling for another in silence
    model.pool_include_prefix = True
    model.global_pool = "prr"


FAMILY = Family("ViT", "timm's VisionTransformer (ViT, registers, DeiT)", matches, add)
