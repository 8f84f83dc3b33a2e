"""PRR in transformers' models: before the head, with the backbone's ``last_hidden_state`` left as it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from locatvit.config import LocAtConfig
from locatvit.errors import LocAtError
from locatvit.layers import PatchRefinement

Reading = Callable[[Callable[..., Tensor], int, Tensor], Tensor]
"""What a head reads, [B, D]: from a refinement, the number of prefix tokens, and the tokens."""


def first(refine: Callable[..., Tensor], num_prefix_tokens: int, x: Tensor) -> Tensor:
    """The first prefix token, [CLS]."""
    return refine(x, num_queries=1)[:, 0]


def second(refine: Callable[..., Tensor], num_prefix_tokens: int, x: Tensor) -> Tensor:
    """The second prefix token, DeiT's for distillation."""
    return refine(x, num_queries=2)[:, 1]


def mean(refine: Callable[..., Tensor], num_prefix_tokens: int, x: Tensor) -> Tensor:
    """The mean of the patches."""
    return refine(x)[:, num_prefix_tokens:].mean(dim=1)


def cls_and_mean(refine: Callable[..., Tensor], num_prefix_tokens: int, x: Tensor) -> Tensor:
    """[CLS] and the mean of the patches, side by side."""
    refined = refine(x)
    return torch.cat((refined[:, 0], refined[:, num_prefix_tokens:].mean(dim=1)), dim=1)


HEADS: dict[str, dict[str, Reading]] = {
    "ViTForImageClassification": {"classifier": first},
    "DeiTForImageClassification": {"classifier": first},
    "DeiTForImageClassificationWithTeacher": {"cls_classifier": first, "distillation_classifier": second},
    "IJepaForImageClassification": {"classifier": mean},
    "Dinov2ForImageClassification": {"classifier": cls_and_mean},
    "Dinov2WithRegistersForImageClassification": {"classifier": cls_and_mean},
    "CLIPForImageClassification": {"classifier": mean},
    "SiglipForImageClassification": {"classifier": mean},
}
"""Class to its heads and what each reads of the backbone's ``last_hidden_state``."""
POOLERS = ("pooler", "head")
"""Modules of a backbone that are given all its final tokens."""
_OF_CLS = ("ViTPooler", "DeiTPooler", "IJepaPooler")
"""Poolers that read the first token alone."""
_NORM_OF_CLS = {"CLIPVisionModel": ("encoder", "post_layernorm")}
"""A backbone that normalises its [CLS] alone: the part that gives the final tokens, and the norm of [CLS]."""


class Tokens:
    """The final tokens of the forward pass that a model with a head is in, from its backbone to its head.

    The head is given what was read of them only. Outside the model's own forward, as when its backbone is called for
    dense features, nothing is kept.
    """

    def __init__(self) -> None:
        self.inside = False
        self.tokens: Tensor | None = None

    def enter(self, model: nn.Module, args: Any) -> None:
        """Forward pre-hook on the model."""
        self.inside = True

    def record(self, backbone: nn.Module, args: Any, output: Any) -> None:
        """Forward hook on the backbone."""
        self.tokens = output[0] if self.inside else None

    def leave(self, model: nn.Module, args: Any, output: Any) -> None:
        """Forward hook on the model."""
        self.inside, self.tokens = False, None

    def __getstate__(self) -> dict[str, Any]:
        return {"inside": False, "tokens": None}


class ReadRefined:
    """Forward pre-hook on a head: gives it the refined tokens, read as the host reads them."""

    def __init__(self, tokens: Tokens, refine: Callable[..., Tensor], reading: Reading, num_prefix_tokens: int) -> None:
        self.tokens, self.refine, self.reading, self.num_prefix_tokens = tokens, refine, reading, num_prefix_tokens

    def __call__(self, head: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        if self.tokens.tokens is None:
            return None
        return (self.reading(self.refine, self.num_prefix_tokens, self.tokens.tokens), *args[1:])


class RefineInput:
    """Forward pre-hook on a pooler that is given all tokens: refines them."""

    def __init__(self, refinement: PatchRefinement) -> None:
        self.refinement = refinement

    def __call__(self, pooler: nn.Module, args: tuple[Float[Tensor, "B L D"], ...]) -> tuple[Tensor, ...]:
        num_queries = 1 if type(pooler).__name__ in _OF_CLS else None
        return (self.refinement(args[0], num_queries), *args[1:])


class NormRefined:
    """Forward hook on a norm that is given [CLS] alone: normalises all tokens and gives the refined [CLS]."""

    def __init__(self, tokens: Tokens, refinement: PatchRefinement) -> None:
        self.tokens, self.refinement = tokens, refinement

    def __call__(self, norm: nn.Module, args: Any, output: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        if self.tokens.tokens is None:
            return output
        return self.refinement(norm.forward(self.tokens.tokens), num_queries=1)[:, 0]


def unrefined(x: Tensor, num_queries: int | None = None) -> Tensor:
    """The tokens as they are, in the place of a refinement."""
    return x


def plan(
    model: Any, tower: Any, num_prefix_tokens: int, config: LocAtConfig
) -> Callable[[nn.Linear], PatchRefinement | None] | None:
    """What to do to the head, to be called with a layer that tells device and precision; None where nothing.

    PRR goes before a classifier's head or, in a model without one, before its pooler; BEiT's classifier reads its
    pooler, and CLIP's image features their normalised [CLS]. It refines the tokens that the host's head or pooler
    reads, which the host has normalised, but for CLIP's classifier and BEiT's average.

    Raises:
        LocAtError: there is no place for what is asked.
    """
    heads = _heads(model)
    if config.pooling == "avg":
        if heads != {"classifier": first}:
            raise LocAtError(
                f"pooling is 'avg', but {type(model).__name__} has no head that reads [CLS] alone: leave pooling at "
                "'host'"
            )
        return lambda layer: _before_heads(model, tower, {"classifier": mean}, unrefined, num_prefix_tokens)
    if not config.prr:
        return None
    pooler = next((each for each in (getattr(tower, name, None) for name in POOLERS) if each is not None), None)
    norm_of_cls = next((_NORM_OF_CLS[each] for each in _names(tower) if each in _NORM_OF_CLS), None)
    if not heads and pooler is None and norm_of_cls is None:
        raise LocAtError(
            f"prr is True, but {type(model).__name__} has no head or pooler that PRR could go before, and dense "
            "features are not refined: use LocAtConfig(prr=False), or a ...ForImageClassification"
        )

    def add(layer: nn.Linear) -> PatchRefinement:
        refinement = _make(tower, layer, config)
        model.prr = refinement
        if heads:
            _before_heads(model, tower, heads, refinement, num_prefix_tokens)
        elif pooler is not None:
            pooler.register_forward_pre_hook(RefineInput(refinement))
        else:
            assert norm_of_cls is not None
            tokens = _passing(tower, getattr(tower, norm_of_cls[0]))
            getattr(tower, norm_of_cls[1]).register_forward_hook(NormRefined(tokens, refinement))
        return refinement

    return add


def _heads(model: Any) -> dict[str, Reading]:
    """The heads of a model, by the first of its classes that is listed."""
    return next((HEADS[name] for name in _names(model) if name in HEADS), {})


def _names(model: Any) -> list[str]:
    """Of a model's classes, its own first."""
    return [each.__name__ for each in type(model).__mro__]


def _make(tower: Any, layer: nn.Linear, config: LocAtConfig) -> PatchRefinement:
    refinement = PatchRefinement(tower.config.hidden_size, tower.config.num_attention_heads, config.start)
    return refinement.to(device=layer.weight.device, dtype=layer.weight.dtype)


def _before_heads(
    model: Any, tower: Any, heads: dict[str, Reading], refine: Callable[..., Tensor], num_prefix_tokens: int
) -> None:
    tokens = _passing(model, tower)
    for name, reading in heads.items():
        getattr(model, name).register_forward_pre_hook(ReadRefined(tokens, refine, reading, num_prefix_tokens))


def _passing(model: nn.Module, source: nn.Module) -> Tokens:
    """The tokens that ``source`` gives, while ``model`` runs."""
    tokens = Tokens()
    model.register_forward_pre_hook(tokens.enter)
    source.register_forward_hook(tokens.record)
    model.register_forward_hook(tokens.leave)
    return tokens
