"""Models by name, in timm's registry under the authors' spelling."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import timm
from timm.models import generate_default_cfgs, get_pretrained_cfg, is_model, list_models, register_model
from torch import nn

from locatvit.backbones import jumbo  # noqa: F401  (its models go into timm's registry)
from locatvit.config import LocAtConfig
from locatvit.errors import LocAtError, near_matches


@dataclass(frozen=True)
class NamedModel:
    """A registered name: a timm model and what it is created with.

    Attributes:
        host: timm's name of the plain model, or ours of ``jumbo.py``.
        host_kwargs: keyword arguments that belong to the name.
        hub_id: where the authors published its weights, None where they did not.
        has_locat: whether LocAt is put into the host.
    """

    host: str
    host_kwargs: dict[str, Any] = field(default_factory=dict)
    hub_id: str | None = None
    has_locat: bool = True


_ROPE_TINY = {"embed_dim": 192, "num_heads": 3}

MODELS: dict[str, NamedModel] = {
    "locatvit_tiny": NamedModel("vit_tiny_patch16_224", hub_id="sinahmr/locatvit_tiny"),
    "locatvit_small": NamedModel("vit_small_patch16_224"),
    "locatvit_base": NamedModel("vit_base_patch16_224", hub_id="sinahmr/locatvit_base"),
    "locatvit_tiny_reg4": NamedModel("vit_tiny_patch16_224", {"reg_tokens": 4}),
    "locatvit_small_reg4": NamedModel("vit_small_patch16_224", {"reg_tokens": 4}),
    "locatvit_base_reg4": NamedModel("vit_base_patch16_224", {"reg_tokens": 4}),
    "vit_tiny_patch16_rope_mixed_224": NamedModel("vit_small_patch16_rope_mixed_224", _ROPE_TINY, has_locat=False),
    "locatvit_tiny_rope_mixed": NamedModel("vit_small_patch16_rope_mixed_224", _ROPE_TINY),
    "locatvit_small_rope_mixed": NamedModel("vit_small_patch16_rope_mixed_224"),
    "locatvit_base_rope_mixed": NamedModel("vit_base_patch16_rope_mixed_224"),
    "locatswin_tiny": NamedModel("swin_tiny_patch4_window7_224"),
    "locatswin_small": NamedModel("swin_small_patch4_window7_224"),
    "locatswin_base": NamedModel("swin_base_patch4_window7_224"),
    "locatjumbo_tiny": NamedModel("jumbo_tiny"),
    "locatjumbo_small": NamedModel("jumbo_small"),
    "locatjumbo_base": NamedModel("jumbo_base"),
}
"""The only list of names, beside those of ``jumbo.py``."""

TRANSFORMERS = "hf/"
"""What stands before the names of transformers' models."""
# What timm's and torch's constructors raise on arguments that do not go together.
_REFUSALS = (
    TypeError, ValueError, AssertionError, AttributeError, ArithmeticError, LookupError, RuntimeError, OSError
)  # fmt: skip
# What stands before names that timm fetches itself.
_OUTSIDE = ("hf-hub:", "hf_hub:", "local-dir:")

# Of every model that the authors trained; the rest (mean and std among it) is the host's.
_PRETRAINED = {"num_classes": 1000, "crop_pct": 0.9, "interpolation": "bicubic", "license": "mit"}
# Of the host's published weights, which are not ours.
_OF_OTHER_WEIGHTS = {"url": "", "tag": None, "custom_load": False, "origin_url": None}


def _published_cfg(model: NamedModel) -> dict[str, Any]:
    of_host = get_pretrained_cfg(model.host)
    assert of_host is not None, f"timm does not know {model.host}"
    return {**of_host.to_dict(), **_PRETRAINED, **_OF_OTHER_WEIGHTS, "hf_hub_id": model.hub_id}


def create_model(name: str, pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """A model by name: ``timm.create_model``, with ours among timm's names; and transformers' models.

    Args:
        name: e.g. ``"locatvit_base"`` (timm's ViT-Base and ``add_locat``), any timm name, or a transformers model as
            ``"hf/owner/name"`` or ``"hf/FOLDER"``, see ``transformers_create.create``.
        pretrained: load published weights.
        kwargs: timm's (``num_classes``, ``img_size``, ``dynamic_img_size``, ``reg_tokens``,
            ``pos_embed="none"``, ``drop_path_rate``, ...), and for our names ``locat``, a ``LocAtConfig``, or
            ``gaug`` and ``prr``. For transformers' models ``num_classes``, ``locat`` and their configuration's.

    Raises:
        LocAtError: an unknown name (with near matches), or a keyword that the model does not take.
    """
    if name.startswith(TRANSFORMERS):
        from locatvit.backbones import transformers_create  # here: see _with_locat

        return transformers_create.create(name, pretrained, **kwargs)
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
    if name.startswith(TRANSFORMERS):
        from locatvit.backbones import transformers_create

        transformers_create.check_name(name)
    elif not is_model(name) and not name.startswith(_OUTSIDE):
        raise LocAtError(f"model {name!r} is unknown; {near_matches(name, list_models())} Ours: {', '.join(MODELS)}")


def create_plain(name: str, **kwargs: Any) -> nn.Module:
    """The host of one of our names, without LocAt: what its paper's table compares it with.

    Args:
        name: of ``MODELS``.
        kwargs: timm's.
    """
    named = MODELS[name]
    return timm.create_model(named.host, **{**named.host_kwargs, **kwargs})


def _with_locat(name: str) -> Callable[..., nn.Module]:
    def entrypoint(
        pretrained: bool = False,
        *,
        locat: LocAtConfig | dict[str, Any] | None = None,
        gaug: bool | None = None,
        prr: bool | None = None,
        no_pos_emb: bool = False,
        **kwargs: Any,
    ) -> nn.Module:
        # here, not above: timm may be imported by the very module that add_locat is made of
        from locatvit.backbones.add import add_locat

        if kwargs.get("features_only"):
            raise LocAtError(
                "features_only is True, which hides the model from LocAt; create it without, and take its features by "
                "locatvit.extract_features, or by its forward_intermediates"
            )
        config = LocAtConfig(**locat) if isinstance(locat, dict) else locat or LocAtConfig()
        config = replace(
            config,
            gaug=config.gaug if gaug is None else gaug,
            prr=config.prr if prr is None else prr,
            position_embedding=config.position_embedding and not no_pos_emb,  # the authors' keyword
        )
        return _create(name, lambda **rest: add_locat(create_plain(name, **rest), config), pretrained, kwargs)

    entrypoint.__doc__ = f"timm's {MODELS[name].host} with LocAt."
    return entrypoint


def _without_locat(name: str) -> Callable[..., nn.Module]:
    def entrypoint(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return _create(name, lambda **rest: create_plain(name, **rest), pretrained, kwargs)

    entrypoint.__doc__ = f"timm's {MODELS[name].host} in another size."
    return entrypoint


def _create(name: str, build: Callable[..., nn.Module], pretrained: bool, kwargs: dict[str, Any]) -> nn.Module:
    """A model by ``build``, with timm's record of where its weights would come from."""
    cfg = kwargs.pop("pretrained_cfg", None) or default_cfgs[name].default.to_dict()
    cfg = cfg if isinstance(cfg, dict) else cfg.to_dict()
    overlay, cache_dir = kwargs.pop("pretrained_cfg_overlay", None) or {}, kwargs.pop("cache_dir", None)
    kwargs.pop("pretrained_model_args", None)  # timm's note of what a folder says; it is in kwargs as well
    model: Any = build(**kwargs)
    model.pretrained_cfg = model.default_cfg = {**cfg, "architecture": name, **overlay}
    if pretrained:
        _load_published(model, name, cfg, cache_dir)
    return model


def _load_published(model: nn.Module, name: str, cfg: dict[str, Any], cache_dir: str | None) -> None:
    """From the folder or repository that timm was pointed at, or else from where the authors published the name."""
    from locatvit.backbones.checkpoint import load_checkpoint

    source = cfg.get("file") or (f"hf-hub:{cfg['hf_hub_id']}" if cfg.get("hf_hub_id") else None)
    if source is None:
        published = ", ".join(known for known, other in MODELS.items() if other.hub_id)
        raise LocAtError(f"there are no published weights of {name}; there are of {published}: use pretrained=False")
    load_checkpoint(model, source, cache_dir=cache_dir)


def _register(name: str) -> None:
    """Put one of ``MODELS`` among timm's."""
    function = _with_locat(name) if MODELS[name].has_locat else _without_locat(name)
    function.__name__ = function.__qualname__ = name
    setattr(sys.modules[__name__], name, function)
    register_model(function)


default_cfgs = generate_default_cfgs({name: _published_cfg(model) for name, model in MODELS.items()})
for _name in MODELS:
    if not is_model(_name):  # a later timm may have the plain ones
        _register(_name)
