"""Every model that LocAt goes into and every variant of LocAt, made small enough for a test of a second.

Models come from the registry and variants from the fields of ``LocAtConfig``, so what is new there is tested at once.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
import timm
import torch
from torch import Tensor, nn

import locatvit
from locatvit import LocAtConfig
from locatvit.backbones import BACKBONES
from locatvit.backbones.registry import MODELS, create_plain
from locatvit.layers import GAug, LocalityAttention

NAMES = [name for name, model in MODELS.items() if model.has_locat]
"""Models with LocAt."""

_VIT = {"img_size": 24, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}
# 12 x 12 and 6 x 6 patches in windows of 3 x 3; the second block shifts them
_SWIN = {"img_size": 48, "patch_size": 4, "embed_dim": 24, "depths": (2, 1), "num_heads": (2, 3), "window_size": 3}


def small_kwargs(name: str) -> dict[str, Any]:
    """What makes the model of this name small; 5 classes."""
    return {**(_SWIN if "swin" in name else _VIT), "num_classes": 5}


def image_size(name: str) -> int:
    """The size that ``small_kwargs`` builds for, in pixels."""
    return small_kwargs(name)["img_size"]


def small(name: str, **kwargs: Any) -> nn.Module:
    """A small model of this name."""
    return locatvit.create_model(name, **{**small_kwargs(name), **kwargs})


@dataclass(frozen=True)
class Subject:
    """A small model that LocAt goes into.

    Attributes:
        name: one of ``MODELS``, or a model of timm's.
        kwargs: what it is created with, beside ``small_kwargs``.
    """

    name: str
    kwargs: dict[str, Any] = field(default_factory=dict)

    def plain(self, **kwargs: Any) -> nn.Module:
        """Without LocAt."""
        kwargs = {**small_kwargs(self.name), **self.kwargs, **kwargs}
        return create_plain(self.name, **kwargs) if self.name in MODELS else timm.create_model(self.name, **kwargs)

    def build(self, config: LocAtConfig | None = None, **kwargs: Any) -> nn.Module:
        """With LocAt."""
        if self.name in MODELS:
            return small(self.name, locat=config, **{**self.kwargs, **kwargs})
        return locatvit.add_locat(self.plain(**kwargs), config)

    def host_of(self, model: nn.Module) -> nn.Module:
        """The plain model with the weights that ``model`` shares with it, in evaluation mode."""
        host, shared = self.plain(), model.state_dict()
        host.load_state_dict({key: shared[key] for key in host.state_dict()})
        return host.eval()

    def images(self, *size: int, batch: int = 2) -> Tensor:
        """Noise of ``size``, by default of the size that the model is built for."""
        return torch.randn(batch, 3, *(size or (image_size(self.name),) * 2))

    @cached_property
    def on_meta(self) -> Any:
        """The plain model without memory, to ask what it is."""
        with torch.device("meta"):
            return self.plain()

    @property
    def takes_masks(self) -> bool:
        return "is_causal" in inspect.signature(type(self.on_meta).forward).parameters

    @property
    def is_windowed(self) -> bool:
        return "window_size" in small_kwargs(self.name)

    @property
    def any_size(self) -> dict[str, bool]:
        """What the model is created with to take every size that it can."""
        if self.is_windowed:
            return {"strict_img_size": False}
        if hasattr(self.on_meta, "dynamic_img_size"):
            return {"dynamic_img_size": True, "dynamic_img_pad": True}
        return {"dynamic_img_pad": True} if hasattr(self.on_meta, "embeds") else {}

    @property
    def takes_any_size(self) -> bool:
        """Whether one model may get images of several sizes; the others have tables of one."""
        return bool(self.any_size)

    @property
    def equal_counts(self) -> list[tuple[int, int]]:
        """Another image size with as many patches as the model is built for, and that one."""
        return [(36, 64), (48, 48)] if self.is_windowed else [(8, 72), (24, 24)]

    def reads_patches(self, config: LocAtConfig) -> bool:
        """Whether the head gets to see the last block's patches."""
        return config.prr or config.pooling == "avg" or self.on_meta.global_pool != "token"


REGISTERED = {name: Subject(name) for name in NAMES}
_HOSTS = {
    "no positions": Subject("vit_tiny_patch16_224", {"pos_embed": "none"}),
    "average pool": Subject("vit_tiny_patch16_224", {"global_pool": "avg"}),
    "no class token": Subject("vit_tiny_patch16_224", {"class_token": False, "global_pool": "avg"}),
    "q-norm, layer scale": Subject("vit_tiny_patch16_224", {"qk_norm": True, "init_values": 0.1}),
    "norm of attention's output": Subject("vit_tiny_patch16_224", {"scale_attn_norm": True}),
    "timm's prr": Subject("vit_tiny_patch16_224", {"global_pool": "prr"}),
    "deit3": Subject("deit3_small_patch16_224"),
    "distilled": Subject("deit_tiny_distilled_patch16_224"),
    "rope, average pool": Subject("vit_small_patch16_rope_mixed_224", {"global_pool": "avg"}),
    "rope of axes": Subject("vit_small_patch16_rope_224", {"scale_attn_inner": True, "rope_rotate_half": True}),
    "rope and positions": Subject("vit_small_patch16_rope_mixed_ape_224"),
    "rope, registers, q-norm": Subject("vit_small_patch16_rope_mixed_224", {"num_reg_tokens": 3, "qk_norm": True}),
    "clip": Subject("vit_base_patch32_clip_quickgelu_224"),
    "siglip": Subject("vit_base_patch16_siglip_224"),
    "attention pool beside registers": Subject("vit_so150m_patch16_reg4_map_256"),
    "norm behind the pool": Subject("vit_medium_patch16_gap_240"),
    "dinov2 with registers": Subject("vit_small_patch14_reg4_dinov2"),
    "dinov2 giant": Subject("vit_giant_patch14_dinov2"),
    "norms behind the branches": Subject("vit_base_patch16_rpn_224"),
    "aimv2": Subject("aimv2_large_patch14_224"),
    "flexivit": Subject("flexivit_small"),
    "eva": Subject("eva_giant_patch14_224"),
    "eva-02": Subject("eva02_tiny_patch14_224"),
    "eva-02, three projections": Subject("eva02_base_patch14_224"),
    "eva-02, norms behind": Subject("eva02_enormous_patch14_clip_224"),
    "dinov3": Subject("vit_small_patch16_dinov3"),
    "perception encoder": Subject("vit_pe_core_tiny_patch16_384"),
    "perception encoder, spatial": Subject("vit_pe_spatial_tiny_patch16_512"),
    "grouped queries": Subject("vit_base_patch16_sapiens2", {"num_kv_heads": 1}),
    "beit": Subject("beit_base_patch16_224"),
    "beit, shared table": Subject(
        "beit_base_patch16_224", {"use_shared_rel_pos_bias": True, "use_abs_pos_emb": True, "global_pool": "token"}
    ),
    "relative positions": Subject("vit_relpos_small_patch16_224"),
    "relative positions, norms behind": Subject("vit_relpos_base_patch32_plus_rpn_256"),
    "relative positions, class token": Subject("vit_relpos_base_patch16_cls_224"),
    "relative positions, shared": Subject("vit_srelpos_small_patch16_224"),
    "naflex": Subject("naflexvit_base_patch16_gap"),
    "naflex, attention pool": Subject("naflexvit_so150m2_patch16_reg1_map"),
    "naflex, rope": Subject("naflexvit_base_patch16_gap", {"rope_type": "mixed", "class_token": True}),
    "swin, largest value": Subject("swin_tiny_patch4_window7_224", {"global_pool": "max"}),
}
"""Other hosts that the families take, with what a host may have."""
SUBJECTS = {**REGISTERED, **_HOSTS}


def family_of(model: nn.Module) -> str:
    """The name of the family that takes this model."""
    return next(family.name for family in BACKBONES if family.matches(model))


def _first_of_each_family() -> dict[str, Subject]:
    first: dict[str, Subject] = {}
    for subject in REGISTERED.values():
        first.setdefault(family_of(subject.on_meta), subject)
    return first


def _distinct() -> dict[str, Subject]:
    found: dict[tuple[str, ...], str] = {}
    for name, subject in SUBJECTS.items():
        shapes = [f"{key} {tuple(value.shape)}" for key, value in subject.on_meta.state_dict().items()]
        found.setdefault((str(subject.on_meta), str(subject.kwargs), *shapes), name)
    return {name: SUBJECTS[name] for name in found.values()}


FAMILIES = _first_of_each_family()
"""Family to its first registered model."""
DISTINCT = _distinct()
"""Subjects without those that are another one over again once they are small."""

# Values of fields that are numbers or names of another list.
_MORE_VALUES: dict[str, tuple[Any, ...]] = {
    "variance": (2.5,),
    "variance_floor": (0.3,),
    "layers": ((1,),),
    "backend": ("reference",),  # the tests of the op go through the list
}
_NEEDS: dict[tuple[str, Any], dict[str, Any]] = {("pooling", "avg"): {"prr": False}}
_TOGETHER: dict[str, LocAtConfig] = {
    "as printed": LocAtConfig(variance_floor=0, distance_clamp=False, variance_scaling="area"),
    "neither": LocAtConfig(gaug=False, prr=False),
    "GAP alone": LocAtConfig(gaug=False, prr=False, pooling="avg"),
    "laplace of input": LocAtConfig(kernel="laplace", variance="input"),
    "laplace, fixed, unscaled": LocAtConfig(kernel="laplace", variance=1.5, alpha="none"),
    "inverse distance, automatic": LocAtConfig(kernel="inverse_distance", alpha="auto"),
    "identity, laplace": LocAtConfig(start="identity", kernel="laplace"),
    "first block alone": LocAtConfig(layers=(0,), prr=False),
}


def choices(hint: Any) -> list[Any]:
    """The values that a type names: those of its literals, or both booleans."""
    if hint is bool:
        return [False, True]
    if get_origin(hint) is Literal:
        return list(get_args(hint))
    return [value for part in get_args(hint) for value in choices(part)]


def _variants() -> dict[str, LocAtConfig]:
    """The paper's, one field changed at a time, and some together."""
    hints, paper = get_type_hints(LocAtConfig), LocAtConfig()
    found = {"paper": paper}
    for each in fields(LocAtConfig):
        values = [*choices(hints[each.name]), *_MORE_VALUES.get(each.name, ())]
        assert values, f"give _MORE_VALUES some of {each.name}"
        for value in values:
            if value != getattr(paper, each.name):
                needs = _NEEDS.get((each.name, value), {})
                found[f"{each.name}={value}"] = LocAtConfig(**{each.name: value, **needs})
    return {**found, **_TOGETHER}


VARIANTS = _variants()
REFUSED: dict[tuple[str, str], str] = {
    ("Jumbo", "pooling"): "pooling is 'avg', but the head of a Jumbo model reads its wide .*: leave pooling at 'host'",
    ("RoPEViT", "position_embedding"): "has no absolute position embedding to remove",
    ("Swin", "position_embedding"): "Swin has no absolute position embedding to remove",
}
"""Family and field that it cannot serve when changed, to the message."""


def is_refused(family: str, config: LocAtConfig) -> bool:
    """Whether ``REFUSED`` has it."""
    changed = {each.name for each in fields(config) if getattr(config, each.name) != getattr(LocAtConfig(), each.name)}
    return any((family, name) in REFUSED for name in changed)


_CASES = [
    *(pytest.param(subject, LocAtConfig(), id=name) for name, subject in DISTINCT.items()),
    *(
        pytest.param(subject, config, id=f"{family}, {name}")
        for family, subject in FAMILIES.items()
        for name, config in VARIANTS.items()
        if name != "paper" and not is_refused(family, config)
    ),
]


def cases(where: Callable[[Subject, LocAtConfig], bool] = lambda subject, config: True) -> Any:
    """Every distinct model as the paper has it, the first of every family with every variant; those ``where`` holds."""
    return pytest.mark.parametrize(("subject", "config"), [case for case in _CASES if where(*case.values)])


def subjects(where: Callable[[Subject], bool] = lambda subject: True) -> Any:
    """Every distinct model; those ``where`` holds."""
    chosen = {name: subject for name, subject in DISTINCT.items() if where(subject)}
    return pytest.mark.parametrize("subject", chosen.values(), ids=chosen)


families = pytest.mark.parametrize("subject", FAMILIES.values(), ids=FAMILIES)


@torch.no_grad()
def stir(model: nn.Module) -> nn.Module:
    """Every weight moved from its initial value, so that nothing is zero or one by chance; in evaluation mode."""
    for parameter in model.parameters():
        noise = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.2
        parameter.add_(noise * torch.randn_like(parameter))
    return model.eval()


def gaugs(model: nn.Module) -> list[GAug]:
    """In the order of the blocks."""
    return [module for module in model.modules() if isinstance(module, GAug)]


def locality_attentions(model: nn.Module) -> list[LocalityAttention]:
    """In the order of the blocks."""
    return [module for module in model.modules() if isinstance(module, LocalityAttention)]


def gradients(model: nn.Module, images: Tensor, cotangent: Tensor | None = None) -> dict[str, Tensor]:
    """Of the sum of the outputs' squares, or of the outputs times ``cotangent``."""
    model.zero_grad()
    logits = model(images)
    (logits.square() if cotangent is None else logits * cotangent).sum().backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
