"""Hugging Face transformers: ViT, DeiT, DINOv2, DINOv3, I-JEPA, MAE, BEiT, and the image towers of CLIP and SigLIP.

Their attentions ask a registry for the function to run. LocAt registers one, ``"locat"``, and gives each attention its
``gaug``: no class is replaced and no weight renamed. What the function must know beside q, k and v is in ``locality``
of the attention: the grid, which a hook on the patch embedding records; and, from a hook on the query projection, the
queries before rotary positions turn them and the attention's input, where the model or the variant needs them. (An
adapter that wraps the projection later, as LoRA does, is not in those recorded queries.)
"""

from __future__ import annotations

import copy
import json
import sys
from dataclasses import asdict
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
from locatvit.transformers_hosts import Host, num_prefix_tokens, towers_of, trained_grid


def matches(model: nn.Module) -> bool:
    library = sys.modules.get("transformers.modeling_utils")  # no model of it exists before it is imported
    return library is not None and isinstance(model, library.PreTrainedModel) and bool(towers_of(model))


def add(model: Any, config: LocAtConfig) -> None:
    """See ``add_locat``."""
    tower, host = _check(model, config)
    num_prefix = num_prefix_tokens(tower, host)
    head = transformers_head.plan(model, tower, num_prefix, config)
    register()
    _own_configs(model)
    attentions = [getattr(block, host.attention) for block in tower.get_submodule(host.blocks)]
    refinement = head(attentions[-1].q_proj) if head is not None else None
    _add_gaug(tower, host, config, num_prefix)
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


def _add_gaug(tower: Any, host: Host, config: LocAtConfig, num_prefix: int) -> None:
    """GAug, or in blocks that are left out None, and what it needs to know."""
    grid = CurrentGrid()
    for index, block in enumerate(tower.get_submodule(host.blocks)):
        attention = getattr(block, host.attention)
        attention.locality = Locality(grid, num_prefix, config.backend)
        attention.gaug = None
        attention.register_forward_pre_hook(demand_implementation)
        if not config.gaug or (config.layers is not None and index not in config.layers):
            continue
        attention.gaug = _make_gaug(attention, trained_grid(tower), config)
        if host.is_rotary or config.variance == "input":
            attention.q_proj.register_forward_hook(RecordQuery(attention.locality))
        getattr(block, host.first_norm).register_forward_pre_hook(EnterBlock(grid))
    tower.get_submodule(host.patch_embedding).register_forward_hook(RecordGrid(grid))
    if host.shuffles and config.gaug:
        tower.embeddings.register_forward_pre_hook(refuse_shuffled, with_kwargs=True)


def _make_gaug(attention: Any, grid_size: GridSize, config: LocAtConfig) -> GAug:
    num_outputs, embed_dim = attention.q_proj.weight.shape
    num_heads = num_outputs // attention.head_dim
    gaug = GAug(attention.head_dim, grid_size, config, embed_dim=embed_dim, num_heads=num_heads)
    return gaug.to(device=attention.q_proj.weight.device, dtype=attention.q_proj.weight.dtype)


FAMILY = Family(
    "transformers",
    "transformers' ViT, DeiT, DINOv2, DINOv3 ViT, I-JEPA, ViTMAE and BEiT, and CLIP's and SigLIP's vision models",
    matches,
    add,
)
