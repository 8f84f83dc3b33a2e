"""Exact attention weights of chosen blocks, while the model itself runs fused attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from locatvit.errors import LocAtError
from locatvit.grid import GridSize
from locatvit.layers.attention import LocalityAttention, projections
from locatvit.ops.attention import reference


@dataclass(frozen=True)
class AttentionMaps:
    """Attention weights by block.

    Attributes:
        weights: block index to [B, H, L, L]; each row sums to 1.
        num_prefix_tokens: tokens before the patches.
        grid_size: (h, w) of the patches.
    """

    weights: dict[int, Float[Tensor, "B H L L"]]
    num_prefix_tokens: int
    grid_size: GridSize

    def of_patch(self, layer: int, row: int, column: int) -> Float[Tensor, "B H h w"]:
        """Where the patch at (row, column) looks, over the patches."""
        height, width = self.grid_size
        if not (0 <= row < height and 0 <= column < width):
            raise LocAtError(f"patch ({row}, {column}) lies outside the grid {self.grid_size}")
        return self._map(layer, self.num_prefix_tokens + row * width + column)

    def of_prefix(self, layer: int, token: int = 0) -> Float[Tensor, "B H h w"]:
        """Where a prefix token, [CLS] by default, looks, over the patches."""
        if not 0 <= token < self.num_prefix_tokens:
            raise LocAtError(f"token is {token}; the model has {self.num_prefix_tokens} prefix tokens, numbered from 0")
        return self._map(layer, token)

    def _map(self, layer: int, query: int) -> Tensor:
        if layer not in self.weights:
            known = ", ".join(map(str, sorted(self.weights)))
            raise LocAtError(f"layer is {layer}; the maps are of the blocks {known}")
        return self.weights[layer][:, :, query, self.num_prefix_tokens :].unflatten(-1, self.grid_size)


@torch.no_grad()
def attention_maps(
    model: nn.Module, images: Float[Tensor, "B C height width"], layers: Sequence[int] | None = None
) -> AttentionMaps:
    """Attention weights of a timm ViT, with LocAt or without.

    Args:
        model: a model with ``blocks``, each with an ``attn`` of one qkv projection.
        images: normalised as the model expects.
        layers: block indices, negative ones from the end; None for all. One block keeps B H L² numbers.

    Raises:
        LocAtError: another kind of model, or a block that does not exist.
    """
    attentions = _attentions(model)
    depth = len(attentions)
    wanted = range(depth) if layers is None else layers
    if not all(-depth <= layer < depth for layer in wanted):
        raise LocAtError(f"layers is {list(wanted)}; the model's blocks are numbered 0 to {depth - 1}")
    weights: dict[int, Tensor] = {}

    def keep(index: int) -> Any:
        def hook(attention: nn.Module, args: tuple[Tensor, ...]) -> None:
            weights[index] = _weights(attention, args[0])

        return hook

    handles = [attentions[i % depth].register_forward_pre_hook(keep(i % depth)) for i in wanted]
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        model(images)
    finally:
        for module, mode in modes:
            module.training = mode
        for handle in handles:
            handle.remove()
    host = cast(Any, model)
    return AttentionMaps(weights, host.num_prefix_tokens, host.patch_embed.dynamic_feat_size(images.shape[-2:]))


def _attentions(model: nn.Module) -> list[nn.Module]:
    attentions: list[Any] = [getattr(block, "attn", None) for block in getattr(model, "blocks", [])]
    if not attentions or not all(hasattr(attention, "qkv") for attention in attentions):
        raise LocAtError(
            f"attention_maps cannot read {type(model).__name__}; it needs blocks whose attn has one qkv "
            "projection, as timm's ViTs have"
        )
    return attentions


def _weights(attention: nn.Module, x: Tensor) -> Tensor:
    if isinstance(attention, LocalityAttention):
        return attention.attention_weights(x)
    q, k, _ = projections(attention, x)
    return reference.attention_weights(q, k, None, None, num_prefix_tokens=0)
