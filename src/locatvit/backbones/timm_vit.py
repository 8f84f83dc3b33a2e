"""timm's ``VisionTransformer``: ViT, DeiT (also distilled), DINOv2, the towers of CLIP and SigLIP, ..."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from timm.layers import Attention, AttentionPoolLatent, PatchEmbed
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer, global_pool_nlc
from torch import Tensor, nn

from locatvit.backbones.family import Family, check_layers, make_gaug
from locatvit.backbones.refusals import reason_against
from locatvit.config import LocAtConfig
from locatvit.errors import LocAtError
from locatvit.grid import GridSize
from locatvit.layers import CurrentGrid, LocalityAttention, PatchRefinement
from locatvit.layers.attention import take_over
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


class RefinedLatentPool(AttentionPoolLatent):
    """PRR, then the attention pool that the host had: in its place, with its weights under their names.

    Args:
        host: the pool.
        refinement: PRR.
        num_skipped: prefix tokens that the host keeps from its pool. PRR has all tokens, as elsewhere.
    """

    def __init__(self, host: AttentionPoolLatent, refinement: PatchRefinement, num_skipped: int) -> None:
        nn.Module.__init__(self)
        take_over(self, host)
        self.refinement = refinement
        self.num_skipped = num_skipped

    def forward(self, x: Float[Tensor, "B L D"], attn_mask: Tensor | None = None) -> Float[Tensor, "B D"]:
        """The pooled refined tokens; ``attn_mask`` is the pool's own."""
        return super().forward(self.refinement(x)[:, self.num_skipped :], attn_mask=attn_mask)


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
        if tokens.ndim == 4:  # [B, h, w, D], of a model of dynamic size; exporters refuse what follows
            self.grid.record((tokens.shape[1], tokens.shape[2]))
        else:
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
    add_refinement(model, config)


def check(model: Any, config: LocAtConfig, *attentions: type[nn.Module]) -> None:
    """Everything that can be wrong with a ViT, before anything is changed; its blocks have ``attentions``."""
    check_blocks(model, config, *attentions)
    if not config.position_embedding and getattr(model, "pos_embed", None) is None:
        raise LocAtError(
            "position_embedding is False but this model has no absolute position embedding to remove: leave "
            "position_embedding at True"
        )


def check_blocks(model: Any, config: LocAtConfig, *attentions: type[nn.Module]) -> None:
    """What can be wrong with the blocks of a ViT and with what enters and leaves them."""
    check_layers(config, len(model.blocks))
    for index, block in enumerate(model.blocks):
        found = getattr(block, "attn", None)
        if type(found) not in attentions:
            reason = reason_against(type(block if found is None else found))
            known = " or ".join(kind.__name__ for kind in attentions)
            raise LocAtError(
                f"block {index} is a {type(block).__name__} and has {type(found).__name__} where LocAt needs timm's "
                f"{known}{reason and ': '}{reason}; choose a model built of plain blocks"
            )
    if config.gaug and not isinstance(getattr(model, "patch_drop", None), nn.Identity | None):
        raise LocAtError(
            "patch_drop_rate is above 0; GAug needs every patch at its place on the grid: "
            "create the model with patch_drop_rate=0"
        )
    if config.prr:
        PatchRefinement(model.embed_dim, model.blocks[0].attn.num_heads)  # raises where heads do not divide the width


def prepare(model: Any, config: LocAtConfig) -> None:
    """The changes to a ViT that are not LocAt's own: no absolute positions, average pooling."""
    if not config.position_embedding:
        model.pos_embed = None
    if config.pooling == "avg":
        model.attn_pool, model.global_pool = None, "avg"


def add_gaug(model: Any, config: LocAtConfig, replacement: Callable[..., LocalityAttention]) -> None:
    """A ``replacement`` for the attention of every chosen block of a ViT with timm's patch embedding."""
    if config.gaug:
        grid = replace_attentions(model, config, replacement, model.patch_embed.grid_size)
        model.patch_embed.register_forward_hook(RecordGrid(grid))


def replace_attentions(
    model: Any, config: LocAtConfig, replacement: Callable[..., LocalityAttention], trained_grid: GridSize
) -> CurrentGrid:
    """A ``replacement`` in every chosen block; they ask the grid that is returned, which the caller must fill."""
    grid = CurrentGrid()
    for index, block in enumerate(model.blocks):
        if config.layers is None or index in config.layers:
            block.attn = replacement(
                block.attn,
                make_gaug(block.attn, trained_grid, config),
                grid,
                num_prefix_tokens=model.num_prefix_tokens,
                backend=config.backend,
            )
            block.register_forward_pre_hook(EnterBlock(grid))
    return grid


def add_refinement(model: Any, config: LocAtConfig) -> None:
    """PRR, if ``config`` has it, where a ViT pools its tokens."""
    if not config.prr:
        return
    if isinstance(model, VisionTransformerDistilled):
        model.prr = make_refinement(model, config)
        model.norm.register_forward_hook(RefinePrefix(model.prr, model.num_prefix_tokens))
    elif isinstance(model.attn_pool, AttentionPoolLatent):
        # Eva always pools all tokens
        num_skipped = 0 if getattr(model, "pool_include_prefix", True) else model.num_prefix_tokens
        model.attn_pool = RefinedLatentPool(model.attn_pool, make_refinement(model, config), num_skipped)
        model.pool_include_prefix = True
    elif model.global_pool == "prr":  # timm's own computes every row; ours takes over in full
        add_refined_pool(model, replace(config, start="paper"), model.attn_pool.pool)
    else:
        add_refined_pool(model, config, model.global_pool)


def make_refinement(model: Any, config: LocAtConfig) -> PatchRefinement:
    """PRR of a ViT, where its weights are."""
    weight = model.blocks[0].attn.proj.weight
    refinement = PatchRefinement(model.embed_dim, model.blocks[0].attn.num_heads, config.start)
    model.blocks[-1].register_forward_pre_hook(RecordMask(refinement.mask), with_kwargs=True)
    return refinement.to(device=weight.device, dtype=weight.dtype)


def add_refined_pool(model: Any, config: LocAtConfig, pool_type: str, kind: type[RefinedPool] = RefinedPool) -> None:
    """PRR before the pooling of a ViT, as a pool of this kind."""
    include_prefix = getattr(model, "pool_include_prefix", False)
    model.attn_pool = kind(make_refinement(model, config), pool_type, model.num_prefix_tokens, include_prefix)
    # timm then hands all tokens to attn_pool; reset_classifier with another pooling drops it, as any attention pooling
    model.pool_include_prefix = True
    model.global_pool = "prr"


FAMILY = Family("ViT", "timm's VisionTransformer (ViT, DeiT, DINOv2, CLIP, SigLIP)", matches, add)
