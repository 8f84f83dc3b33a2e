"""Models by name, in timm's registry under the authors' spelling."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import timm
from timm.models import generate_default_cfgs, is_model, list_models, register_model
from torch import nn

from locatvit.config import LocAtConfig
from locatvit.errors import LocAtError, near_matches


@dataclass(frozen=True)
class NamedModel:
    """A registered name: a timm model and what it is created with.

    Attributes:
        host: timm's name of the plain model.
        host_kwargs: keyword arguments that belong to the name.
        hub_id: where the authors published its weights, None where they did not.
    """

    host: str
    host_kwargs: dict[str, Any] = field(default_factory=dict)
    hub_id: str | None = None


MODELS: dict[str, NamedModel] = {
    "locatvit_tiny": NamedModel("vit_tiny_patch16_224", hub_id="sinahmr/locatvit_tiny"),
    "locatvit_small": NamedModel("vit_small_patch16_224"),
    "locatvit_base": NamedModel("vit_base_patch16_224", hub_id="sinahmr/locatvit_base"),
    "locatvit_tiny_reg4": NamedModel("vit_tiny_patch16_224", {"reg_tokens": 4}),
    "locatvit_small_reg4": NamedModel("vit_small_patch16_224", {"reg_tokens": 4}),
    "locatvit_base_reg4": NamedModel("vit_base_patch16_224", {"reg_tokens": 4}),
}
"""The only list of names."""

# What timm's and torch's constructors raise on arguments that do not go together.
_REFUSALS = (
    TypeError, ValueError, AssertionError, AttributeError, ArithmeticError, LookupError, RuntimeError, OSError
)  # fmt: skip
# What stands before names that timm fetches itself.
_OUTSIDE = ("hf-hub:", "hf_hub:", "local-dir:")

# The authors trained with these, and details of their models follow from them.
_PRETRAINED = {
    "num_classes": 1000, "input_size": (3, 224, 224), "pool_size": None, "crop_pct": 0.9,
    "interpolation": "bicubic", "fixed_input_size": True, "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5),
    "first_conv": "patch_embed.proj", "classifier": "head", "license": "mit",
}  # fmt: skip

default_cfgs = generate_default_cfgs(
    {name: {**_PRETRAINED, "hf_hub_id": model.hub_id} for name, model in MODELS.items()}
)


def create_model(name: str, pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """A model by name: ``timm.create_model``, with ours among timm's names.

    Args:
        name: e.g. ``"locatvit_base"`` (timm's ViT-Base and ``add_locat``) or any timm name.
        pretrained: load published weights.
        kwargs: timm's (``num_classes``, ``img_size``, ``dynamic_img_size``, ``reg_tokens``,
            ``pos_embed="none"``, ``drop_path_rate``, ...), and for our names ``locat``, a ``LocAtConfig``, or
            ``gaug`` and ``prr``.

    Raises:
        LocAtError: an unknown name (with near matches), or a keyword that the model does not take.
    """
    check_name(name)
    try:
        return timm.create_model(name, pretrained=pretrained, **kwargs)
    except LocAtError:
        raise
    except _REFUSALS as error:
        given = ", ".join(f"{key}={value!r}" for key, value in {"pretrained": pretrained, **kwargs}.items())
        reason = " ".join(str(error).split()) or type(error).__name__
        raise LocAtError(f"model {name!r} cannot be created with {given}: {reason}") from error


def check_name(name: str) -> None:
    """Raise ``LocAtError``, with near matches, for a name that ``create_model`` does not know."""
    if not is_model(name) and not name.startswith(_OUTSIDE):
        raise LocAtError(f"model {name!r} is unknown; {near_matches(name, list_models())} Ours: {', '.join(MODELS)}")


def _entrypoint(name: str, named: NamedModel) -> Callable[..., nn.Module]:
    def entrypoint(
        pretrained: bool = False,
        *,
        locat: LocAtConfig | None = None,
        gaug: bool | None = None,
        prr: bool | None = None,
        no_pos_emb: bool = False,
        pretrained_cfg: Any = None,
        pretrained_cfg_overlay: dict[str, Any] | None = None,
        cache_dir: str | None = None,
        **kwargs: Any,
    ) -> nn.Module:
        # here, not above: timm may be imported by the very module that add_locat is made of
        from locatvit.backbones.add import add_locat

        config = locat or LocAtConfig()
        config = replace(
            config,
            gaug=config.gaug if gaug is None else gaug,
            prr=config.prr if prr is None else prr,
        )
        if no_pos_emb:  # the authors' keyword
            kwargs["pos_embed"] = "none"
        model = add_locat(timm.create_model(named.host, **{**named.host_kwargs, **kwargs}), config)
        cfg = pretrained_cfg or default_cfgs[name].default.to_dict()
        cfg = cfg if isinstance(cfg, dict) else cfg.to_dict()
        model.pretrained_cfg = model.default_cfg = {
            **cfg,
            "architecture": name,
            **(pretrained_cfg_overlay or {}),
        }
        if pretrained:
            _load_published(model, name, named, cache_dir)
        return model

    entrypoint.__name__ = entrypoint.__qualname__ = name
    entrypoint.__doc__ = f"timm's {named.host} with LocAt."
    return entrypoint


def _load_published(model: nn.Module, name: str, named: NamedModel, cache_dir: str | None) -> None:
    if named.hub_id is None:
        published = ", ".join(known for known, other in MODELS.items() if other.hub_id)
        raise LocAtError(f"there are no published weights of {name}; there are of {published}: use pretrained=False")
    from locatvit.backbones.checkpoint import load_checkpoint

    load_checkpoint(model, f"hf-hub:{named.hub_id}", cache_dir=cache_dir)


for _name, _named in MODELS.items():
    _function = _entrypoint(_name, _named)
    setattr(sys.modules[__name__], _name, _function)
    register_model(_function)
