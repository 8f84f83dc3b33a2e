"""Exact attention weights of chosen blocks, while the model itself runs fused attention."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from locatvit.errors import LocAtError
from locatvit.grid import GridSize
from locatvit.layers.attention import LocalityAttention, additive
from locatvit.ops.attention import reference
from locatvit.transformers_hosts import num_prefix_tokens, only_tower, run, towers_of


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
    """Attention weights of a ViT, with LocAt or without: timm's plain, registered or rotary, Jumbo, transformers'.

    Args:
        model: of timm's kind, with ``blocks``, each with an ``attn`` of all tokens; or a transformers model that is or
            holds one of ``locatvit.transformers_hosts.HOSTS``.
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
    modes = [(module, module.training) for module in model.modules()]
    with ExitStack() as stack:
        maps = {i % depth: stack.enter_context(_taken(attentions[i % depth])) for i in wanted}
        try:
            model.eval()
            prefix, grid_size = _run(model, images)
        finally:
            for module, mode in modes:
                module.training = mode
    return AttentionMaps({index: found[0] for index, found in maps.items()}, prefix, grid_size)


def _run(model: Any, images: Tensor) -> tuple[int, GridSize]:
    """A forward pass, which takes this many prefix tokens and this grid of patches."""
    if towers_of(model):
        tower, host = only_tower(model)
        return num_prefix_tokens(tower, host), run(tower, host, images)
    model(images)
    return model.num_prefix_tokens, model.patch_embed.dynamic_feat_size(images.shape[-2:])


def _attentions(model: nn.Module) -> list[nn.Module]:
    if towers_of(model):
        tower, host = only_tower(model)
        return [block.get_submodule(host.attention) for block in tower.get_submodule(host.blocks)]
    attentions: list[Any] = [getattr(block, "attn", None) for block in getattr(model, "blocks", [])]
    if not attentions or not all(
        isinstance(attention, LocalityAttention) or hasattr(attention, "fused_attn") for attention in attentions
    ):
        raise LocAtError(
            f"attention_maps cannot read {type(model).__name__}; it needs blocks whose attn runs torch's fused "
            "attention on all tokens, as timm's ViTs and transformers' do"
        )
    return attentions


@contextmanager
def _taken(attention: Any) -> Iterator[list[Tensor]]:
    """Within it, every call of the attention leaves its weights in the list."""
    found: list[Tensor] = []

    def take(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if isinstance(module, LocalityAttention):
            found.append(module.attention_weights(*args, **kwargs))
        elif hasattr(module, "fused_attn"):
            fused, module.fused_attn = module.fused_attn, True
            try:
                with _TakeFused(found):
                    # not the module: this hook would be called again
                    type(module).forward(module, *args, **kwargs)
            finally:
                module.fused_attn = fused
        else:
            found.append(_of_transformers(module, *args, **kwargs))

    handle = attention.register_forward_pre_hook(take, with_kwargs=True)
    try:
        yield found
    finally:
        handle.remove()


def _of_transformers(attention: Any, *args: Any, **kwargs: Any) -> Tensor:
    """The weights of the library's attentions: those with LocAt and its plain one give them, fused ones do not."""
    fused: list[Tensor] = []
    locality = getattr(attention, "locality", None)
    if locality is not None:
        locality.tells_weights = True
    try:
        with _TakeFused(fused):
            weights = type(attention).forward(attention, *args, **kwargs)[1]
    finally:
        if locality is not None:
            locality.tells_weights = False
    if weights is not None:
        return cast(Tensor, weights)
    if not fused:
        raise LocAtError(
            f"attn_implementation is {attention.config._attn_implementation!r}, which tells no attention weights; use "
            "model.set_attn_implementation('sdpa')"
        )
    return fused[0]


class _TakeFused(TorchFunctionMode):
    """Computes the weights of each call of torch's fused attention, whatever a host has done to q and k before."""

    def __init__(self, found: list[Tensor]) -> None:
        super().__init__()
        self.found = found

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            self.found.append(_weights(*args, **(kwargs or {})))
        return func(*args, **(kwargs or {}))


def _weights(
    q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, *, scale: float | None = None, **_: Any
) -> Tensor:
    """Of the arguments of torch's fused attention; no dropout, no causal mask in evaluation."""
    return reference.attention_weights(
        q, k, None, None, num_prefix_tokens=0, attn_bias=additive(attn_mask, q), scale=scale
    )
