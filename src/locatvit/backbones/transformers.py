"""Hugging Face transformers: ViT, DeiT, DINOv2, DINOv3, I-JEPA, MAE, BEiT, and the image towers of CLIP and SigLIP.

Their attentions ask a registry for the function to run. LocAt registers one, ``"locat"``, and gives each attention its
``gaug``: no class is replaced and no weight renamed. What the function must know beside q, k and v is in ``locality``
of the attention: the grid, which a hook on the patch embedding records; and, from a hook on the query projection, the
queries before rotary positions turn them and the attention's input, where the model or the variant needs them. (An
adapter that wraps the projection later, as LoRA does, is not in those recorded queries.)

The parts of these models have the names below since version 5.19 of the library.
"""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from locatvit.backbones import transformers_head
from locatvit.backbones.family import Family, check_layers
from locatvit.backbones.transformers_attention import (
    IMPLEMENTATION,
    EnterBlock,
    Locality,
    RecordGrid,
    RecordQuery,
    demand_implementation,
    refuse_shuffled,
    register,
)
from locatvit.config import LocAtConfig
from locatvit.errors import LocAtError
from locatvit.grid import GridSize
from locatvit.layers import CurrentGrid, GAug


@dataclass(frozen=True)
class Host:
    """Where things are in a class of the library.

    Attributes:
        blocks, patch_embedding: from the model; the second is the convolution.
        attention, first_norm: from a block.
        num_prefix_tokens: before the patches, registers not counted.
        has_registers: whether ``config.num_register_tokens`` come on top.
        is_rotary: whether the queries that the function gets are rotated.
        shuffles: whether the patches come in a random order (MAE).
    """

    blocks: str = "layers"
    patch_embedding: str = "embeddings.patch_embeddings.projection"
    attention: str = "attention"
    first_norm: str = "layernorm_before"
    num_prefix_tokens: int = 1
    has_registers: bool = False
    is_rotary: bool = False
    shuffles: bool = False


_DINOV2 = Host(blocks="encoder.layer", first_norm="norm1")
_REGISTERS = Host(blocks="encoder.layer", first_norm="norm1", has_registers=True)
_DINOV3 = Host("model.layer", "embeddings.patch_embeddings", first_norm="norm1", has_registers=True, is_rotary=True)
_TOWER = {"blocks": "encoder.layers", "attention": "self_attn", "first_norm": "layer_norm1"}
HOSTS: dict[str, Host] = {
    "ViTModel": Host(),
    "DeiTModel": Host(num_prefix_tokens=2),
    "IJepaModel": Host(num_prefix_tokens=0),
    "ViTMAEModel": Host(shuffles=True),
    "BeitModel": Host(),
    "Dinov2Model": _DINOV2,
    "Dinov2Backbone": _DINOV2,
    "Dinov2WithRegistersModel": _REGISTERS,
    "Dinov2WithRegistersBackbone": _REGISTERS,
    "DINOv3ViTModel": _DINOV3,
    "DINOv3ViTBackbone": _DINOV3,
    "CLIPVisionModel": Host(patch_embedding="embeddings.patch_embedding", **_TOWER),  # type: ignore[arg-type]
    "SiglipVisionModel": Host(patch_embedding="embeddings.patch_embedding", num_prefix_tokens=0, **_TOWER),  # type: ignore[arg-type]
}
"""Class to its layout. A model may be of such a class, or hold one: a classifier, a model of images and text."""


def towers_of(model: nn.Module) -> list[tuple[Any, Host]]:
    """The parts of a model that are of a class in ``HOSTS``."""
    found = []
    for module in model.modules():
        names = [each.__name__ for each in type(module).__mro__ if each.__module__.startswith("transformers.models.")]
        found.extend([(module, HOSTS[name]) for name in names if name in HOSTS][:1])
    return found


def matches(model: nn.Module) -> bool:
    library = sys.modules.get("transformers.modeling_utils")  # no model of it exists before it is imported
    return library is not None and isinstance(model, library.PreTrainedModel) and bool(towers_of(model))


def add(model: Any, config: LocAtConfig) -> None:
    """See ``add_locat``."""
    tower, host = _check(model, config)
    num_prefix_tokens = host.num_prefix_tokens + (tower.config.num_register_tokens if host.has_registers else 0)
    head = transformers_head.plan(model, tower, num_prefix_tokens, config)
    register()
    _own_configs(model)
    attentions = [getattr(block, host.attention) for block in tower.get_submodule(host.blocks)]
    refinement = head(attentions[-1].q_proj) if head is not None else None
    _add_gaug(tower, host, config, num_prefix_tokens)
    if refinement is not None:
        attentions[-1].locality.mask = refinement.mask
    tower.set_attn_implementation(IMPLEMENTATION)
    _write_into_config(model.config, tower.config, config)


def _write_into_config(whole: Any, of_tower: Any, config: LocAtConfig) -> None:
    """LocAt's settings, and what makes loading without LocAt fail, instead of dropping its weights.

    The library reads ``attn_implementation`` from ``config.json``, as one name, or for a model of several parts as a
    name for each.
    """
    settings = json.loads(json.dumps(asdict(config)))
    del settings["backend"]
    whole.locat = settings
    of_tower.attn_implementation = IMPLEMENTATION
    for key in whole.sub_configs:
        if getattr(whole, key) is of_tower:
            whole.attn_implementation = {key: IMPLEMENTATION}


def _check(model: Any, config: LocAtConfig) -> tuple[Any, Host]:
    """Everything that can be wrong, before anything is changed."""
    towers = towers_of(model)
    if len(towers) != 1:
        names = ", ".join(type(tower).__name__ for tower, _ in towers)
        raise LocAtError(f"{type(model).__name__} holds {names}; add_locat takes one of them: give it that part")
    tower, host = towers[0]
    try:
        blocks: Any = tower.get_submodule(host.blocks)
        attentions = [block.get_submodule(host.attention) for block in blocks]
        projections = [attention.get_submodule("q_proj") for attention in attentions]
        tower.get_submodule(host.patch_embedding)
    except AttributeError as error:
        raise LocAtError(
            f"this {type(tower).__name__} is not built as LocAt knows it ({error}); install transformers>=5.19"
        ) from error
    if any(hasattr(attention, "gaug") for attention in attentions):
        raise LocAtError(f"this {type(tower).__name__} has LocAt already; add_locat takes a model without it")
    check_layers(config, len(projections))
    if not config.position_embedding:
        raise LocAtError(
            "position_embedding is False, but transformers' models add theirs always: leave it at True, or use "
            "timm's model"
        )
    return tower, host


def _own_configs(model: nn.Module) -> None:
    """Each part's configuration copied: another model may be made of the same one, and keeps its attention."""
    copies: dict[int, Any] = {}
    for module in model.modules():
        if "config" in vars(module):
            module.config = copy.deepcopy(module.config, copies)


def _add_gaug(tower: Any, host: Host, config: LocAtConfig, num_prefix_tokens: int) -> None:
    """GAug, or in blocks that are left out None, and what it needs to know."""
    grid = CurrentGrid()
    for index, block in enumerate(tower.get_submodule(host.blocks)):
        attention = getattr(block, host.attention)
        attention.locality = Locality(grid, num_prefix_tokens, config.backend)
        attention.gaug = None
        attention.register_forward_pre_hook(demand_implementation)
        if not config.gaug or (config.layers is not None and index not in config.layers):
            continue
        attention.gaug = _make_gaug(attention, _trained_grid(tower.config), config)
        if host.is_rotary or config.variance == "input":
            attention.q_proj.register_forward_hook(RecordQuery(attention.locality))
        getattr(block, host.first_norm).register_forward_pre_hook(EnterBlock(grid))
    tower.get_submodule(host.patch_embedding).register_forward_hook(RecordGrid(grid))
    if host.shuffles and config.gaug:
        tower.embeddings.register_forward_pre_hook(refuse_shuffled, with_kwargs=True)


def _make_gaug(attention: Any, trained_grid: GridSize, config: LocAtConfig) -> GAug:
    num_outputs, embed_dim = attention.q_proj.weight.shape
    num_heads = num_outputs // attention.head_dim
    gaug = GAug(attention.head_dim, trained_grid, config, embed_dim=embed_dim, num_heads=num_heads)
    return gaug.to(device=attention.q_proj.weight.device, dtype=attention.q_proj.weight.dtype)


def _trained_grid(config: Any) -> GridSize:
    (height, width), (patch_height, patch_width) = _pair(config.image_size), _pair(config.patch_size)
    return height // patch_height, width // patch_width


def _pair(size: Any) -> tuple[int, int]:
    first, second = size if isinstance(size, Iterable) else (size, size)
    return first, second


FAMILY = Family(
    "transformers",
    "transformers' ViT, DeiT, DINOv2, DINOv3 ViT, I-JEPA, ViTMAE and BEiT, and CLIP's and SigLIP's vision models",
    matches,
    add,
)
