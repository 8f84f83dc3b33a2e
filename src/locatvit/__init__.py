"""Locality-attending attention (LocAt, ICLR 2026) for vision transformers: from a model to a model.

The names below are loaded when they are first used, so that the command line answers at once.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import wrapt

if TYPE_CHECKING:
    from locatvit.analysis.attention_maps import attention_maps
    from locatvit.backbones.add import add_locat
    from locatvit.backbones.checkpoint import load_checkpoint, save_checkpoint
    from locatvit.backbones.freeze import freeze_host
    from locatvit.backbones.hub import load_pretrained, push_to_hub, save_pretrained
    from locatvit.backbones.registry import create_model
    from locatvit.config import LocAtConfig
    from locatvit.errors import LocAtError
    from locatvit.evaluation.extract import extract_features
    from locatvit.features import Features

__version__ = "0.1.0"

_HOMES = {
    "add_locat": "locatvit.backbones.add",
    "attention_maps": "locatvit.analysis.attention_maps",
    "create_model": "locatvit.backbones.registry",
    "freeze_host": "locatvit.backbones.freeze",
    "load_pretrained": "locatvit.backbones.hub",
    "push_to_hub": "locatvit.backbones.hub",
    "save_pretrained": "locatvit.backbones.hub",
    "extract_features": "locatvit.evaluation.extract",
    "Features": "locatvit.features",
    "load_checkpoint": "locatvit.backbones.checkpoint",
    "LocAtConfig": "locatvit.config",
    "LocAtError": "locatvit.errors",
    "save_checkpoint": "locatvit.backbones.checkpoint",
}

__all__ = [
    "Features",
    "LocAtConfig",
    "LocAtError",
    "add_locat",
    "attention_maps",
    "create_model",
    "extract_features",
    "freeze_host",
    "load_checkpoint",
    "load_pretrained",
    "push_to_hub",
    "save_checkpoint",
    "save_pretrained",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'locatvit' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]


@wrapt.when_imported("timm")
def _register_models(timm: Any) -> None:
    """``timm.create_model("locatvit_base")`` works whichever of the two was imported first."""
    importlib.import_module("locatvit.backbones.registry")
