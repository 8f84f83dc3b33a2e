"""The attention function that LocAt registers in transformers, and the hooks that tell it what it needs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from locatvit.errors import LocAtError
from locatvit.layers import CurrentGrid, GAug
from locatvit.layers.attention import additive, fixed_layout, refuse_causal
from locatvit.layers.refine import CurrentMask
from locatvit.ops import Gaussian, PredictedGaussian, gaussian_attention
from locatvit.ops.attention import reference

IMPLEMENTATION = "locat"
"""The name in the library's registry of attentions."""


def register() -> None:
    """Put ``attend`` into the library's registry; masks are made for it as for its own plain attention."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    AttentionInterface.register(IMPLEMENTATION, attend)
    AttentionMaskInterface.register(IMPLEMENTATION, eager_mask)


@dataclass
class Locality:
    """What an attention of a model with LocAt knows beside its weights; not part of the state.

    Attributes:
        grid: of the present tokens.
        mask: where PRR learns what the last block's attention excludes; None in other blocks.
        passed: input and output of the query projection in this forward pass, where they are recorded.
        tells_weights: give the attention weights, whether the library asks for them or not.
    """

    grid: CurrentGrid
    num_prefix_tokens: int
    backend: str
    mask: CurrentMask | None = None
    passed: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    tells_weights: bool = False

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "passed": []}


def attend(
    module: nn.Module,
    query: Float[Tensor, "B H L K"],
    key: Float[Tensor, "B H L K"],
    value: Float[Tensor, "B H L K"],
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Float[Tensor, "B L H K"], Float[Tensor, "B H L L"] | None]:
    """Attention with GAug (Eq. 4) in the form of the library's registry; the weights where they are asked for.

    Raises:
        LocAtError: the module was never given LocAt: its weights were loaded without it and are lost.
    """
    host: Any = module
    if not hasattr(host, "gaug"):
        raise LocAtError(
            f"attn_implementation is {IMPLEMENTATION!r} but this {type(module).__name__} has no GAug: its model was "
            "saved with LocAt and loaded without; load it by locatvit.load_pretrained"
        )
    refuse_causal(bool(is_causal))
    locality: Locality = host.locality
    attn_bias = additive(attention_mask, query)
    excluded = None if attn_bias is None else attn_bias <= torch.finfo(attn_bias.dtype).min / 2
    if locality.mask is not None:
        locality.mask.record(None if excluded is None else ~excluded)
    gaussian, attn_bias = _biases(host, query, key, attn_bias, excluded)
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    first = locality.num_prefix_tokens
    if gaussian is None:
        out = fixed_layout(
            F.scaled_dot_product_attention(query, key, value, attn_mask=attn_bias, dropout_p=dropout, scale=scaling)
        )
    else:
        out = gaussian_attention(
            query, key, value, gaussian, num_prefix_tokens=first, attn_bias=attn_bias, scale=scaling,
            dropout_p=dropout, backend=locality.backend,
        )  # fmt: skip
    weights = None
    if kwargs.get("output_attentions") or locality.tells_weights:
        factors = gaussian.factors() if gaussian else (None, None)
        weights = reference.attention_weights(
            query, key, *factors, num_prefix_tokens=first, attn_bias=attn_bias, scale=scaling
        )
    return out.transpose(1, 2).contiguous(), weights


def _biases(
    host: Any, query: Tensor, key: Tensor, attn_bias: Tensor | None, excluded: Tensor | None
) -> tuple[Gaussian | PredictedGaussian | None, Tensor | None]:
    """The Gaussian, if there is one, and the sum of what is dense."""
    gaug: GAug | None = host.gaug
    if gaug is None:  # a block that config.layers leaves as it was
        return None, attn_bias
    locality: Locality = host.locality
    first = locality.num_prefix_tokens
    x = None
    if locality.passed:
        x, projected = locality.passed.pop()
        query = projected.unflatten(-1, (-1, query.shape[-1])).transpose(1, 2)
    allowed = None
    if excluded is not None and gaug.config.alpha == "auto":
        allowed = ~excluded[..., first:]
        allowed = allowed[..., first:, :] if allowed.shape[-2] > 1 else allowed
    grid_size = locality.grid.of(query.shape[2] - first, first)
    bias = gaug(query, grid_size, num_prefix_tokens=first, k=key, x=x, allowed=allowed)
    if not isinstance(bias, Tensor):
        return bias, attn_bias
    dense = F.pad(bias, (first, 0, first, 0)).to(query.dtype)
    return None, dense if attn_bias is None else dense + attn_bias


class RecordGrid:
    """Forward hook on the convolution of the patch embedding: its output has the grid."""

    def __init__(self, grid: CurrentGrid) -> None:
        self.grid = grid

    def __call__(self, convolution: nn.Module, args: Any, patches: Float[Tensor, "B D h w"]) -> None:
        self.grid.record((patches.shape[-2], patches.shape[-1]))


class EnterBlock:
    """Forward pre-hook on a block's first norm: tells which tokens enter the block.

    Not on the block: the library checkpoints a block's ``forward``, and a backward pass does not run its hooks again.
    """

    def __init__(self, grid: CurrentGrid) -> None:
        self.grid = grid

    def __call__(self, norm: nn.Module, args: tuple[Tensor, ...]) -> None:
        self.grid.enter(args[0])


class RecordQuery:
    """Forward hook on the query projection: GAug wants the queries before rotation, or the input."""

    def __init__(self, locality: Locality) -> None:
        self.locality = locality

    def __call__(self, projection: nn.Module, args: tuple[Tensor, ...], query: Float[Tensor, "B L D"]) -> None:
        self.locality.passed[:] = [(args[0], query)]


def demand_implementation(attention: Any, args: Any) -> None:
    """Forward pre-hook on an attention: another function of the registry would leave GAug out in silence."""
    chosen = attention.config._attn_implementation
    if chosen != IMPLEMENTATION:
        raise LocAtError(
            f"attn_implementation is {chosen!r}, which knows nothing of GAug; set it to {IMPLEMENTATION!r} (it gives "
            "attention weights too), and choose how it is computed by LocAtConfig(backend=...)"
        )


def refuse_shuffled(embeddings: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Forward pre-hook on MAE's embeddings: GAug needs every patch at its place on the grid."""
    if embeddings.config.mask_ratio > 0:
        raise LocAtError(
            f"mask_ratio is {embeddings.config.mask_ratio}; GAug needs every patch at its place on the grid: set "
            "model.config.mask_ratio = 0"
        )
    noise = kwargs.get("noise", args[1] if len(args) > 1 else None)
    if noise is None or (not torch.compiler.is_compiling() and bool((noise.diff(dim=-1) <= 0).any())):
        raise LocAtError(
            "noise is not increasing, so MAE shuffles the patches, and GAug needs them at their places on the grid: "
            "give noise=torch.arange(num_patches).expand(batch, -1)"
        )
